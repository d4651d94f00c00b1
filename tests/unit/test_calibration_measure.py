"""Measuring an engine from outside: in virtual time every point is the step it stands for."""

from array import array
from dataclasses import replace
from typing import Any

import pytest
from recorded_runs import TRUE
from virtual_engine import VirtualEngine, own_page, use_virtual_clock
from virtual_time import in_virtual_time, now_s

from dynosim.engine.spec import EngineSpec
from dynosim.fit.forms import point_ms
from dynosim.timing.fitted import Fit, FittedModel
from dynosim.timing.formulas import LinearModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape
from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.client import TimedAnswer
from dynosim_runtime.measure.prompts import UNKNOWN_VOCABULARY, PromptMaker
from dynosim_runtime.measure.steps import MIN_ROUNDS, MeasurementPlan, Measurer, StepMeasurements

MODEL = FittedModel(Fit(parameters=replace(TRUE, ingress_ms=1.5, egress_ms=0.5), knee=2.5))
SPEC = EngineSpec(
    num_gpu_blocks=2001,
    max_model_len=4096,
    block_size=16,
    max_num_seqs=16,
    max_num_batched_tokens=2048,
)
PLAN = MeasurementPlan(
    prompt_lengths=(16, 64, 256),
    cached=((256, 16), (512, 64)),
    batch_sizes=(1, 3),
    contexts=(32, 100),
    mixed_prompts=(16, 128),
    mixed_batches=(1, 2),
    rounds=2,
    prompts_per_round=2,
    newcomers_per_round=2,
    steady_steps=8,
    max_context=2048,
)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_virtual_clock(monkeypatch)


async def measured(
    client: VirtualEngine, plan: MeasurementPlan, said: list[str] | None = None
) -> StepMeasurements:
    async with client:
        progress = None if said is None else said.append
        measurer = Measurer(client, PromptMaker(UNKNOWN_VOCABULARY), plan, progress)  # type: ignore[arg-type]
        return await measurer.measure()


def shapes(found: StepMeasurements) -> list[tuple[str, int, int, int]]:
    return [
        (point.kind, point.prefill_tokens, point.prefix_tokens, point.num_decodes)
        for point in found.points
    ]


def assert_true(found: StepMeasurements, model: StepTimeModel) -> None:
    """Contexts are told in whole tokens, which is less than 1e-4 of a step here."""
    assert found.points
    for point in found.points:
        assert point.measured_ms == pytest.approx(point_ms(model, point), rel=1e-4), point
        assert point.is_outside_included is (point.num_decodes == 0)


@in_virtual_time
async def test_every_point_takes_what_its_step_takes() -> None:
    said: list[str] = []
    found = await measured(VirtualEngine(SPEC, MODEL, page=own_page), PLAN, said)
    assert_true(found, MODEL)
    assert shapes(found) == [
        *(("prefill", length, 0, 0) for length in (16, 64, 256)),
        ("cached prefill", 16, 256, 0),
        ("cached prefill", 64, 512, 0),
        *(("decode", 0, 0, batch) for _ in (32, 100) for batch in (1, 3)),
        *(("mixed", length, 0, batch) for batch in (1, 2) for length in (16, 128)),
    ]
    by_kind = {point.kind: point for point in found.points}
    assert by_kind["prefill"].num_samples == 2 * 2  # rounds and prompts in each
    assert by_kind["mixed"].num_samples == 2 * 2  # rounds and newcomers in each
    assert by_kind["prefill"].spread < 1e-9
    decodes = [point for point in found.points if point.kind == "decode"]
    # Behind the prompt: half of the first settling and the steady tokens.
    contexts = [point.context_tokens / point.num_decodes for point in decodes]
    assert all(32 < context < 32 + 15 for context in contexts[:2])
    assert all(100 < context < 100 + 15 for context in contexts[2:])
    assert found.engine["block_size"] == "16"
    assert (found.num_rounds, found.notes) == (2, [])
    assert [line.split(",")[0] for line in said] == ["round 1 of 2", "round 2 of 2"]


@in_virtual_time
async def test_an_engine_that_tells_nothing_is_measured_all_the_same() -> None:
    """Its prefixes must be multiples of 1024, and are found by how little they take."""
    plan = replace(PLAN, cached=((1024, 16), (1030, 64), (500, 16)))
    found = await measured(VirtualEngine(SPEC, MODEL), plan)
    assert_true(found, MODEL)
    cached = [shape for shape in shapes(found) if shape[0] == "cached prefill"]
    assert cached == [("cached prefill", 16, 1024, 0), ("cached prefill", 64, 1024, 0)]
    assert found.engine == {}


@pytest.mark.parametrize(
    ("tells", "note"),
    [(True, "prefix caching is off"), (False, "the engine does not find it")],
)
@in_virtual_time
async def test_prefixes_are_left_out_where_none_are_kept(tells: bool, note: str) -> None:
    spec = replace(SPEC, enable_prefix_caching=False)
    plan = replace(PLAN, cached=((1024, 16),), mixed_batches=(), contexts=(32,))
    found = await measured(VirtualEngine(spec, MODEL, page=own_page if tells else None), plan)
    assert_true(found, MODEL)
    assert "cached prefill" not in {point.kind for point in found.points}
    assert found.notes == [f"left out: prompts with a cached prefix: {note}"]


@pytest.mark.parametrize("budget", [128, 512])
@in_virtual_time
async def test_the_budget_of_a_step_is_found_and_no_prompt_exceeds_it(budget: int) -> None:
    """Longer prompts come in several steps: their times would stand for none."""
    spec = replace(SPEC, max_num_batched_tokens=budget)
    plan = replace(PLAN, prompt_lengths=(16, 64, 1024), mixed_prompts=(16, 100, 800),
                   cached=((256, 16), (256, 200)))  # fmt: skip
    found = await measured(VirtualEngine(spec, MODEL, page=own_page), plan)
    assert found.engine["max_num_batched_tokens"] == str(budget)
    assert_true(found, MODEL)
    lengths = {kind: [s[1] for s in shapes(found) if s[0] == kind] for kind in ("prefill", "mixed")}
    assert lengths["prefill"] == [16, 64, budget]
    assert lengths["mixed"] == [16, 100, budget - 1, 16, 100, budget - 2]  # beside 1 and 2 decodes
    cached = [shape[1] for shape in shapes(found) if shape[0] == "cached prefill"]
    assert cached == ([16] if budget == 128 else [16, 200])


@in_virtual_time
async def test_no_budget_is_told_where_the_shortest_prompt_holds_up_nobody() -> None:
    """As on a machine so busy that a request's way in and out takes longer than its step."""
    spec = replace(SPEC, max_num_batched_tokens=12)
    found = await measured(VirtualEngine(spec, MODEL, page=own_page), replace(PLAN, cached=()))
    assert "max_num_batched_tokens" not in found.engine
    assert {"prefill", "decode", "mixed"} == {point.kind for point in found.points}


@in_virtual_time
async def test_beside_more_decodes_than_the_budget_leaves_room_for_nobody_comes() -> None:
    spec = replace(SPEC, max_num_batched_tokens=18, max_num_seqs=32)
    plan = replace(PLAN, cached=(), mixed_batches=(1, 20), batch_sizes=(1,))
    found = await measured(VirtualEngine(spec, MODEL, page=own_page), plan)
    assert 17 <= int(found.engine["max_num_batched_tokens"]) <= 20
    assert {shape[3] for shape in shapes(found) if shape[0] == "mixed"} == {1}


@in_virtual_time
async def test_batches_end_where_the_engine_decodes_no_more_side_by_side() -> None:
    spec = replace(SPEC, max_num_seqs=4)
    plan = replace(PLAN, batch_sizes=(1, 4, 8, 16), mixed_batches=(1, 3, 4, 8))
    found = await measured(VirtualEngine(spec, MODEL, page=own_page), plan)
    assert_true(found, MODEL)
    assert [shape[3] for shape in shapes(found) if shape[0] == "decode"] == [1, 4, 1, 4]
    # In a full batch a newcomer would have to wait.
    assert sorted({shape[3] for shape in shapes(found) if shape[0] == "mixed"}) == [1, 3]
    assert found.notes == ["left out: batches of 8 and more: the engine does not decode so many"]


@in_virtual_time
async def test_what_does_not_fit_or_takes_too_long_is_left_out_and_said() -> None:
    slow = LinearModel(
        base_ms=1.0, per_prefill_token_ms=10.0, per_decode_ms=0.5, per_context_token_ms=0.0
    )
    plan = replace(PLAN, prompt_lengths=(16, 60, 128), contexts=(32, 100), batch_sizes=(1, 2),
                   cached=((256, 16),), mixed_prompts=(16, 128), mixed_batches=(1,),
                   max_context=128, max_point_s=0.5)  # fmt: skip
    found = await measured(VirtualEngine(SPEC, slow), plan)
    assert_true(found, slow)
    assert [shape for shape in shapes(found) if shape[0] != "decode"] == [
        ("prefill", 16, 0, 0), ("prefill", 60, 0, 0), ("mixed", 16, 0, 1),
    ]  # fmt: skip
    assert found.notes == [
        "left out: 2 decoding at 32: their prompts would take 1 s",
        "left out: 1 decoding at 100: their prompts would take 1 s",
        "left out: 2 decoding at 100: their prompts would take 2 s",
    ]


@pytest.mark.parametrize(("budget_s", "num_rounds"), [(0.0, MIN_ROUNDS), (1e9, 4)])
@in_virtual_time
async def test_no_round_is_begun_that_would_end_too_late(budget_s: float, num_rounds: int) -> None:
    plan = replace(PLAN, cached=(), mixed_batches=(), rounds=4, budget_s=budget_s)
    found = await measured(VirtualEngine(SPEC, MODEL), plan)
    assert found.num_rounds == num_rounds


@in_virtual_time
async def test_an_engine_that_serves_others_is_waited_for_and_then_refused() -> None:
    busy = "# TYPE vllm:prefix_cache_queries counter\nvllm:prefix_cache_queries_total 1.0\n" \
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"  # fmt: skip
    client = VirtualEngine(SPEC, MODEL, page=lambda _: busy)
    plan = replace(PLAN, prompt_lengths=(16,), cached=())
    with pytest.raises(LiveError, match="serves other requests too"):
        await measured(client, plan)
    assert 5.0 < now_s() < 7.0  # IDLE_PATIENCE_S behind the first prompts


@in_virtual_time
async def test_tokens_that_come_all_at_once_make_no_sense() -> None:
    """Something between holds all back that come between the first and the last."""

    class Buffered(VirtualEngine):
        async def complete(self, *args: Any, **kwargs: Any) -> TimedAnswer:
            answer = await super().complete(*args, **kwargs)
            times = answer.token_ms
            if len(times) > 2:
                middle = [(times[0] + times[-1]) / 2] * (len(times) - 2)
                answer.token_ms = array("d", [times[0], *middle, times[-1]])
            return answer

    with pytest.raises(LiveError, match="tokens come all at once"):
        await measured(Buffered(SPEC, MODEL), replace(PLAN, cached=()))


@in_virtual_time
async def test_long_prompts_that_take_less_than_short_ones_make_no_sense() -> None:
    class Falling(StepTimeModel):
        def step_ms(self, step: StepShape) -> float:
            return max(1.0, 30 - step.prefill_tokens / 10)

    with pytest.raises(LiveError, match="256 prompt tokens take less time than 16; is it a real"):
        await measured(VirtualEngine(SPEC, Falling()), replace(PLAN, cached=(), mixed_batches=()))


@in_virtual_time
async def test_an_answer_that_fails_ends_the_measurement_with_its_reason() -> None:
    spec = replace(SPEC, max_model_len=300)  # shorter than the plan takes it to be
    with pytest.raises(LiveError, match=r"a request of 1024 \+ 16 tokens: HTTP 400"):
        await measured(VirtualEngine(spec, MODEL), PLAN)
