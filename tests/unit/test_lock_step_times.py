"""How long a step of ranks in lock step takes."""

import pytest

from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.architecture import model_shape
from dynosim.timing.experts import ExpertCurve
from dynosim.timing.formulas import LinearModel
from dynosim.timing.lock_step import LockStepTimes
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.roofline_ranks import RankedRoofline
from dynosim.timing.scaled import ScaledModel
from dynosim.timing.step import StepShape

SHAPE = model_shape(model_entry("Qwen/Qwen3-30B-A3B"))
H100 = hardware_sheet("h100_sxm")
IDLE = StepShape()


def linear(*, with_experts: bool = True) -> LinearModel:
    """10 ms, 1 for each prompt token or decode, 0.1 for a token of context; half of it experts."""
    model = LinearModel(
        base_ms=10.0, per_prefill_token_ms=1.0, per_decode_ms=1.0, per_context_token_ms=0.1
    )
    if with_experts:
        model.experts = ExpertCurve([0.0, 10.0], [0.0, 5.0])
    return model


def decodes(count: int, context: int = 100) -> StepShape:
    return StepShape.of_decodes(count, count * context)


def test_a_curve_is_straight_between_its_points_and_beyond() -> None:
    curve = ExpertCurve([1.0, 2.0, 4.0], [10.0, 20.0, 24.0])
    assert [curve.ms(n) for n in (1, 1.5, 3, 4, 6)] == [10.0, 15.0, 22.0, 24.0, 28.0]


def test_ranks_that_do_the_same_take_the_step_of_one() -> None:
    step = decodes(7)
    for limit in (0, 512):
        assert LockStepTimes(linear(), limit).global_step_ms([step] * 3) == linear().step_ms(step)


def test_the_own_part_is_the_slowest_ranks_and_the_common_one_that_of_all_tokens() -> None:
    few, many = decodes(2), decodes(10)
    own, experts = linear(), linear().experts
    assert experts is not None
    expected = own.step_ms(many) - experts.ms(10) + experts.ms(6)
    assert LockStepTimes(own).global_step_ms([few, many]) == pytest.approx(expected)
    longer = StepShape.of_decodes(2, 5000)  # few tokens, and much to read
    expected = own.step_ms(longer) - experts.ms(2) + experts.ms(6)
    assert LockStepTimes(own).global_step_ms([longer, many]) == pytest.approx(expected)


def test_up_to_a_graphs_size_all_ranks_have_as_many_tokens_as_the_largest() -> None:
    times, own = LockStepTimes(linear(), padded_up_to=10), linear()
    assert times.rank_ms([decodes(10), IDLE]) == [
        own.step_ms(decodes(10)),
        own.step_ms(StepShape.of_decodes(10, 10)),
    ]
    beyond = times.rank_ms([decodes(11), IDLE])
    assert beyond == times.unfilled_ms([decodes(11), IDLE])
    for shapes in ([decodes(10), IDLE], [decodes(11), IDLE]):
        both = times.global_step_ms(shapes), times.unfilled_ms(shapes)
        assert times.step_and_work_ms(shapes) == both
    assert max(beyond) < own.step_ms(decodes(11))


def test_a_rank_without_work_runs_a_step_of_one_token() -> None:
    times = LockStepTimes(linear())
    idle_ms = times.rank_ms([decodes(9), IDLE])[1]
    one = StepShape.of_decodes(1, 1)
    assert idle_ms == pytest.approx(linear().step_ms(one) - 0.5 + 2.5)


def test_a_model_that_knows_no_common_part_answers_with_the_slowest_rank() -> None:
    own = linear(with_experts=False)
    times = LockStepTimes(own, padded_up_to=512)
    assert times.rank_ms([decodes(2), decodes(3), IDLE]) == [
        own.step_ms(decodes(2)),
        own.step_ms(decodes(3)),
        own.step_ms(IDLE),
    ]


def test_slower_workers_are_slower_in_both_parts() -> None:
    shapes = [decodes(2), decodes(10)]
    slow = LockStepTimes(ScaledModel(linear(), 3.0)).global_step_ms(shapes)
    assert slow == pytest.approx(3.0 * LockStepTimes(linear()).global_step_ms(shapes))


def roofline(**parallel: object) -> RankedRoofline:
    options = {"tensor_parallel": 1, "data_parallel": 2, "expert_parallel": True} | parallel
    return RankedRoofline(SHAPE, H100, **options)  # type: ignore[arg-type]


def test_without_ranks_a_part_of_each_expert_is_what_the_plain_roofline_has() -> None:
    plain = RooflineModel(SHAPE, H100, tensor_parallel=2)
    same = roofline(tensor_parallel=2, data_parallel=1, expert_parallel=False)
    for step in (decodes(1), decodes(64), StepShape.of_prompts(1, 2048)):
        assert same.step_ms(step) == pytest.approx(plain.step_ms(step))
    assert same.experts is None


def test_each_of_two_ranks_reads_half_of_the_experts_and_waits_for_the_exchange() -> None:
    one, two = RooflineModel(SHAPE, H100), roofline(expert_parallel=False)
    step = decodes(64)
    assert one.step_ms(step) * 0.5 < two.step_ms(step) < one.step_ms(step)
    assert two.step_ms(decodes(1)) > one.step_ms(decodes(1))  # the exchange is all that is new
    assert two.experts is not None and two.experts.ms(64) < two.step_ms(step)


def test_whole_experts_are_as_slow_as_the_gpu_that_is_asked_for_most() -> None:
    whole, parts = roofline(data_parallel=8), roofline(data_parallel=8, expert_parallel=False)
    few = decodes(2)
    assert 1.0 < whole.step_ms(few) / parts.step_ms(few) < 1.6
    # For many tokens the spread evens out, and each GPU moves those of its own experts only.
    many = StepShape.of_prompts(1, 8192)
    assert 0.5 < whole.step_ms(many) / parts.step_ms(many) < 1.0


def test_more_ranks_exchange_for_longer() -> None:
    costs = [roofline(data_parallel=n)._exchange_ms(64) for n in (2, 4, 8)]
    assert costs == sorted(costs)
    # both ways: two starts, and what the other rank's 64 tokens take at half of the link
    bytes_moved = 64 * 2 * (2 * SHAPE.hidden + SHAPE.experts)
    assert costs[0] == pytest.approx(2 * 8.9e-3 + bytes_moved / (450e6 * 0.51))
