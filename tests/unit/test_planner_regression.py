"""Step times learned from steps: the fit, who is heard, and which samples stay."""

from planner_support import report
from pytest import approx

from dynosim.planner.observation import Pass
from dynosim.planner.regression import PassSamples
from dynosim.timing.step import StepShape


def _samples(role: str = "prefill", **knobs: float) -> PassSamples:
    given = {"max_samples": 64, "num_cells": 16, "min_samples": 5, "warmup_ms": 0.0}
    return PassSamples(role, **{**given, **knobs})  # type: ignore[arg-type]


def _prefill(tokens: int, wall_ms: float) -> Pass:
    return Pass(wall_ms, 1, tokens, 0, 0)


def _decode(num: int, kv: int, wall_ms: float) -> Pass:
    return Pass(wall_ms, 0, 0, num, kv)


def test_a_line_is_found_again() -> None:
    samples = _samples()
    samples.take(report(0, passes=[_prefill(n, 5 + 0.1 * n) for n in (10, 50, 90, 20, 70)]), 0.0)
    fit = samples.fitted()
    assert fit is not None
    assert fit.step_ms(StepShape.of_prompts(1, 200)) == approx(25.0, rel=1e-9)


def test_decodes_by_sequences_and_kv() -> None:
    passes = [_decode(b, kv, 8 + 0.5 * b + 0.001 * kv) for b, kv in _POINTS]
    samples = _samples("decode")
    samples.take(report(0, passes=passes), 0.0)
    fit = samples.fitted()
    assert fit is not None
    assert fit.step_ms(StepShape.of_decodes(10, 5000)) == approx(18.0, rel=1e-9)


_POINTS = [(1, 900), (2, 700), (4, 3000), (8, 2000), (3, 4000), (6, 100)]


def test_time_that_shrinks_with_sequences_is_put_down_to_kv_alone() -> None:
    passes = [_decode(b, kv, 8 - 0.01 * b + 0.001 * kv) for b, kv in _POINTS]
    samples = _samples("decode")
    samples.take(report(0, passes=passes), 0.0)
    fit = samples.fitted()
    assert fit is not None
    assert fit.per_decode_ms == 0.0
    assert fit.per_kv_token_ms == approx(0.001, rel=0.05)


def test_time_that_shrinks_with_work_is_no_fit() -> None:
    samples = _samples()
    samples.take(report(0, passes=[_prefill(n, 50 - 0.1 * n) for n in (10, 50, 90, 20, 70)]), 0.0)
    assert samples.fitted() is None


def test_too_few_steps_or_all_alike_are_no_fit() -> None:
    few, alike = _samples(), _samples()
    few.take(report(0, passes=[_prefill(n, 5 + 0.1 * n) for n in (10, 50, 90, 20)]), 0.0)
    alike.take(report(0, passes=[_prefill(50, 10.0)] * 9), 0.0)
    assert few.fitted() is alike.fitted() is None


def test_heartbeats_and_steps_of_other_work_are_no_samples() -> None:
    samples = _samples()
    samples.take(report(0, passes=[_prefill(50, 0.0), _decode(3, 100, 9.0)]), 0.0)
    assert samples.num_samples == 0


def test_a_report_counts_once() -> None:
    samples = _samples()
    for _ in range(3):
        samples.take(report(0, at_ms=7.0, passes=[_prefill(50, 10.0)]), 0.0)
    assert samples.num_samples == 1


def test_steps_of_a_young_worker_are_left_out_and_do_not_move_the_fit() -> None:
    """Ready at 1000, warm from 31,000 on: a report is let in if the one before came after that."""
    samples = _samples(warmup_ms=30_000.0)
    old = [_prefill(n, 5 + 0.1 * n) for n in (10, 50, 90, 20, 70)]
    samples.take(report(0, at_ms=0.0), -60_000.0)
    samples.take(report(0, at_ms=500.0, passes=old), -60_000.0)
    slow = [_prefill(60, 2000.0)]
    for at_ms in (2_000.0, 30_000.0, 32_000.0):
        samples.take(report(1, at_ms=at_ms, passes=slow), 1_000.0)
    assert (samples.num_samples, samples.num_young) == (5, 3)
    fit = samples.fitted()
    assert fit is not None
    assert fit.step_ms(StepShape.of_prompts(1, 60)) == approx(11.0)
    samples.take(report(1, at_ms=33_000.0, passes=slow), 1_000.0)
    assert samples.num_samples == 6


def test_one_too_many_pushes_the_oldest_out_of_the_fullest_cell() -> None:
    """Of 20 short steps one long one, the oldest of all, stays: it alone says what length costs."""
    samples = _samples(max_samples=8)
    samples.take(report(0, passes=[_prefill(1000, 305.0)]), 0.0)
    short = [_prefill(10 + n % 3, 6.0 + 0.1 * (n % 3)) for n in range(20)]
    samples.take(report(0, at_ms=1.0, passes=short), 0.0)
    assert samples.num_samples == 8
    fit = samples.fitted()
    assert fit is not None
    assert fit.step_ms(StepShape.of_prompts(1, 1000)) == approx(305.0, rel=0.01)
