"""AIConfigurator's closed form: its rules by hand, its inverse, and what it was seen to print."""

import pytest

from dynosim.compare.mean_field import (
    EqualLoad,
    aggregated,
    disaggregated,
    mixed_steps,
    queue_factor,
    steps_of,
)

LOAD = EqualLoad(isl=4000, osl=500)


def test_prompts_of_a_batch_take_whole_steps() -> None:
    assert mixed_steps(LOAD, 14, 4000) == 14
    assert mixed_steps(LOAD, 15, 8000) == 8
    assert mixed_steps(LOAD, 3, 4096) == 3


@pytest.mark.parametrize(
    ("steps", "factor"), [(1, 1.9), (3, 2.0), (14, 2.55), (43, 4.0), (99, 4.0)]
)
def test_the_wait_grows_with_the_steps_up_to_four_prompts(steps: int, factor: float) -> None:
    assert queue_factor(steps) == pytest.approx(factor)


def test_an_engine_by_hand() -> None:
    load = EqualLoad(isl=100, osl=11)
    got = aggregated(load, batch=4, step_tokens=50, mixed_ms=30.0, decode_ms=10.0)
    assert got.ttft_ms == pytest.approx(30 * 2 * 2.25)  # two steps a prompt, eight in all
    assert got.tpot_ms == pytest.approx((5 * 30 + 3 * 10) / 8)  # five of the eight count
    assert got.tokens_per_s == pytest.approx(1e3 * 4 * 10 / (8 * 30 + 3 * 10))
    assert got.latency_ms(load) == pytest.approx(got.ttft_ms + 10 * got.tpot_ms)


def test_few_mixed_steps_count_at_least_once() -> None:
    got = aggregated(LOAD, batch=2, step_tokens=4000, mixed_ms=100.0, decode_ms=10.0)
    assert got.tpot_ms == pytest.approx((100 + 498 * 10) / 499)


@pytest.mark.parametrize("step_tokens", [1000, 4000, 8192])
def test_two_figures_give_the_steps_back(step_tokens: int) -> None:
    made = aggregated(LOAD, batch=14, step_tokens=step_tokens, mixed_ms=232.6, decode_ms=17.75)
    steps = steps_of(
        LOAD,
        batch=14,
        step_tokens=step_tokens,
        ttft_ms=made.ttft_ms,
        tokens_per_s=made.tokens_per_s,
    )
    assert steps == pytest.approx((232.6, 17.75))


def test_prompts_that_fill_every_step_are_refused() -> None:
    with pytest.raises(ValueError, match="500 mixed steps do not go into an answer of 500 tokens"):
        aggregated(LOAD, batch=500, step_tokens=4000, mixed_ms=1.0, decode_ms=1.0)


def test_the_slower_pool_gives_the_rate() -> None:
    load = EqualLoad(isl=100, osl=11)
    by_prompts = disaggregated(
        load, prefill_workers=2, prefill_ms=100.0, in_decode=1000, decode_ms=10.0
    )
    assert by_prompts.tokens_per_s == pytest.approx(11 * 0.9 * 2 * 10)
    assert (by_prompts.ttft_ms, by_prompts.tpot_ms) == (pytest.approx(180.0), 10.0)
    by_answers = disaggregated(
        load, prefill_workers=2, prefill_ms=100.0, in_decode=1, decode_ms=10.0
    )
    assert by_answers.tokens_per_s == pytest.approx(11 * 0.92 * 10)


@pytest.mark.parametrize(
    ("batch", "mixed_ms", "decode_ms", "tensor_parallel", "printed"),
    [
        (32, 158.527, 15.594, 4, (546.917, 23.934, 322.695)),
        (14, 232.588, 17.751, 2, (593.1, 22.506, 293.941)),
        (40, 119.632, 15.565, 8, (460.585, 23.312, 208.87)),
    ],
)
def test_release_0_6_prints_it(
    batch: int,
    mixed_ms: float,
    decode_ms: float,
    tensor_parallel: int,
    printed: tuple[float, float, float],
) -> None:
    """TTFT, TPOT and tok/s/gpu of that release's own aggregated estimate."""
    got = aggregated(LOAD, batch=batch, step_tokens=4000, mixed_ms=mixed_ms, decode_ms=decode_ms)
    assert (got.ttft_ms, got.tpot_ms, got.tokens_per_s / tensor_parallel) == pytest.approx(
        printed, rel=5e-5
    )
