"""Replays on both clocks, and schedules held for derivatives."""

from dataclasses import replace

import numpy as np
import pytest
from recorded_runs import TRUE, engines, workload

from dynosim.engine.rank_balance import BalancingRule
from dynosim.engine.ranks import RankSpec
from dynosim.fit.replay import Engines, replay, step_times
from dynosim.fit.schedule import held_schedule
from dynosim.records import Trace
from dynosim.timing.fitted import Fit, FittedModel

MODEL = FittedModel(Fit(parameters=TRUE, knee=2.5))


def _two(gap_ms: float) -> Trace:
    return replace(workload(2), arrival_ms=np.array([0.0, gap_ms]))


def test_engine_takes_a_request_at_the_end_of_the_step_that_runs() -> None:
    trace = _two(5.0)
    engine = replay(trace, engines(), MODEL, "engine")
    clients = replay(trace, engines(), MODEL, "clients")
    first_step_ms = float(engine.result.steps.duration_ms[0])
    assert first_step_ms > 5.0
    waited = clients.ttft_ms - engine.ttft_ms
    assert waited == pytest.approx([0.0, first_step_ms - 5.0])
    np.testing.assert_allclose(engine.decode_ms, clients.decode_ms)


def test_idle_engine_takes_a_request_at_once() -> None:
    run = replay(_two(60_000.0), engines(), MODEL, "engine")
    steps = run.result.steps
    late = steps.start_ms >= 60_000.0
    with_prompts = late & (steps.num_prefills > 0)
    assert with_prompts.sum() == 1
    assert run.ttft_ms[1] == pytest.approx(float(steps.duration_ms[with_prompts].sum()), abs=1e-6)
    assert run.decode_ms[1] == pytest.approx(
        float(steps.duration_ms[late & ~with_prompts].sum()), abs=1e-6
    )
    assert run.result.requests.scheduled_ms[1] == 60_000.0


def test_a_replay_tells_times_on_the_clock_that_it_is_asked_for() -> None:
    late = FittedModel(Fit(parameters=replace(TRUE, ingress_ms=4.0, egress_ms=1.0), knee=2.5))
    clients = replay(_two(60_000.0), engines(), late, "clients")
    engine = replay(_two(60_000.0), engines(), late, "engine")
    plain = replay(_two(60_000.0), engines(), MODEL, "engine")
    # Alone on the engine, a request takes its steps, the way in and the way out.
    assert clients.ttft_ms - plain.ttft_ms == pytest.approx([5.0, 5.0])
    assert engine.ttft_ms - plain.ttft_ms == pytest.approx([1.0, 1.0])
    assert clients.decode_ms == pytest.approx(plain.decode_ms)
    assert clients.latency_ms == pytest.approx(clients.ttft_ms + clients.decode_ms)


def test_arrivals_may_be_replaced() -> None:
    trace = _two(60_000.0)
    moved = replay(trace, engines(), MODEL, "clients", arrival_ms=np.array([0.0, 5.0]))
    together = replay(_two(5.0), engines(), MODEL, "clients")
    assert moved.ttft_ms.tolist() == together.ttft_ms.tolist()
    assert trace.arrival_ms.tolist() == [0.0, 60_000.0]


@pytest.mark.parametrize("is_async", [False, True])
def test_single_steps_end_where_their_rows_do(is_async: bool) -> None:
    steps = replay(workload(40), engines(is_async=is_async), MODEL, "engine").result.steps
    starts_ms, ends_ms = step_times(steps, MODEL)
    last = np.cumsum(steps.num_steps) - 1
    np.testing.assert_allclose(ends_ms[last], steps.start_ms + steps.duration_ms, atol=1e-6)
    assert (np.diff(starts_ms) >= -1e-6).all()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("clock", ["engine", "clients"])
def test_sums_over_a_held_schedule_are_the_replayed_times(is_async: bool, clock: str) -> None:
    kind = "engine" if clock == "engine" else "clients"
    parameters = replace(TRUE, ingress_ms=4.0) if clock == "clients" else TRUE
    model = FittedModel(Fit(parameters=parameters, knee=2.5))
    trace = workload(60)
    run = replay(trace, engines(is_async=is_async), model, kind)
    held = held_schedule(run, model, kind, len(trace))
    first, decode = held.sums(held.durations(model))
    np.testing.assert_allclose(decode, run.decode_ms, atol=1e-5)
    # First tokens may also hold a moment of idling between two steps, and nothing else.
    idle_ms = run.ttft_ms - (first + parameters.ingress_ms)
    assert (idle_ms > -1e-5).all()
    assert (idle_ms < 1e-5).mean() > 0.9


@pytest.mark.parametrize("is_async", [False, True])
def test_ranks_in_lock_step_share_the_requests_and_the_steps(is_async: bool) -> None:
    one = engines(is_async=is_async)
    trace = workload(60)
    rule = BalancingRule(counts_in_flight=False, rotates=False)
    ranks = RankSpec(number=2, in_lock_step=True, rule=rule)
    run = replay(trace, Engines(one.engine, ranks), MODEL, "engine")
    assert np.bincount(run.result.requests.worker_id).min() > 20
    held = held_schedule(run, MODEL, "engine", len(trace))
    first, decode = held.sums(held.durations(MODEL))
    np.testing.assert_allclose(decode, run.decode_ms, atol=1e-5)
    assert (np.abs(first - run.ttft_ms) < 1e-5).mean() > 0.9
    steps = run.result.steps
    assert len(np.unique(steps.start_ms)) == len(held.compositions) < len(steps.start_ms)


@pytest.mark.parametrize("is_async", [False, True])
def test_two_engines_share_the_requests_each_with_steps_of_its_own(is_async: bool) -> None:
    one = engines(is_async=is_async)
    trace = workload(60)
    rule = BalancingRule(counts_in_flight=False, rotates=False)
    run = replay(trace, Engines(one.engine, RankSpec(number=2, rule=rule)), MODEL, "engine")
    alone = replay(trace, one, MODEL, "engine")
    served = np.bincount(run.result.requests.worker_id)
    assert len(served) == 2 and served.min() > 20
    assert run.decode_ms.mean() < alone.decode_ms.mean()
    held = held_schedule(run, MODEL, "engine", len(trace))
    first, decode = held.sums(held.durations(MODEL))
    np.testing.assert_allclose(decode, run.decode_ms, atol=1e-5)
    assert (np.abs(first - run.ttft_ms) < 1e-5).mean() > 0.9
