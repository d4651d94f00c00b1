"""Laws of the load in whole runs: timestamps, think times, and closed loops that stay full."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import run_twin
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bounded_spec, random_trace, with_sessions

from dynosim.engine.spec import EngineSpec
from dynosim.records import NO_REQUEST, FloatArray, RequestStatus, RunResult, Trace
from dynosim.router.busy import BusyThresholds
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel, LinearModel
from dynosim.timing.model import StepTimeModel

SEEDS = st.integers(0, 2**32 - 1)
INGRESS_MS, EGRESS_MS = 3.25, 1.5
# Times are sums of a few floats below 1e5, each rounded to 1e-11.
TOLERANCE_MS = 1e-8


class Outside(LinearModel):
    """A linear law; requests spend time before and behind the engine, too."""

    ingress_ms = INGRESS_MS
    egress_ms = EGRESS_MS


def some_timing(rng: random.Random) -> StepTimeModel:
    kind = rng.choice([LinearModel, Outside])
    return kind(
        base_ms=4.0, per_prefill_token_ms=0.03, per_decode_ms=0.2, per_context_token_ms=0.001
    )


def some_run(seed: int, concurrency: int | None) -> tuple[Trace, StepTimeModel, RunResult]:
    """Sessions, single requests, prompts that are too long, clients that are turned away."""
    rng = random.Random(seed)
    trace = random_trace(rng)
    if rng.random() < 0.8:
        trace = with_sessions(rng, trace)
    spec = bounded_spec(rng, trace)
    timing = some_timing(rng)
    busy = BusyThresholds(active_prefill_tokens_threshold=rng.choice([None, None, 100]))
    routing = RoutingSpec(RouterSpec(spec.block_size, mode="least-loaded", busy=busy))
    result = run_twin(
        trace,
        engine=spec,
        timing=timing,
        num_workers=rng.choice([1, 2, 3]),
        routing=routing,
        concurrency=concurrency,
    )
    assert not (result.requests.status == RequestStatus.UNFINISHED).any()
    return trace, timing, result


def ends_ms(result: RunResult, timing: StepTimeModel) -> FloatArray:
    """When each client knew the end of its request: the last token, or being turned away."""
    log = result.requests
    refused_ms = log.arrival_ms + (timing.ingress_ms + timing.egress_ms)
    return np.where(log.status == RequestStatus.REJECTED, refused_ms, log.finish_ms)


def previous_of(trace: Trace) -> Any:
    if trace.previous_turn is None:
        return np.full(len(trace), NO_REQUEST)
    return trace.previous_turn


def assert_close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE_MS)


def check_later_turns(trace: Trace, timing: StepTimeModel, result: RunResult) -> None:
    """A later turn comes when the one before has ended at its client, plus the think time."""
    previous = previous_of(trace)
    later = np.flatnonzero(previous != NO_REQUEST)
    if len(later):
        assert trace.delay_ms is not None
        wanted = ends_ms(result, timing)[previous[later]] + trace.delay_ms[later]
        assert_close(result.requests.arrival_ms[later], wanted)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_first_turns_come_by_the_clock_and_later_ones_after_the_one_before(seed: int) -> None:
    trace, timing, result = some_run(seed, None)
    log = result.requests
    first = previous_of(trace) == NO_REQUEST
    np.testing.assert_array_equal(log.arrival_ms[first], trace.arrival_ms[first])
    check_later_turns(trace, timing, result)
    np.testing.assert_array_equal(log.is_timed, first)


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 3, 5, 50]))
def test_a_closed_loop_keeps_so_many_sessions_in_progress(seed: int, concurrency: int) -> None:
    trace, timing, result = some_run(seed, concurrency)
    check_later_turns(trace, timing, result)
    previous = previous_of(trace)
    first = np.flatnonzero(previous == NO_REQUEST)
    starts_ms = result.requests.arrival_ms[first]
    assert (np.diff(starts_ms) >= -TOLERANCE_MS).all()  # in the order of the file
    at_once = min(concurrency, len(first))
    assert (starts_ms[:at_once] == 0).all()
    # Each further session starts the moment one ends: the k-th with the k-th end of any.
    has_next = np.isin(np.arange(len(trace)), previous)
    session_ends_ms = np.sort(ends_ms(result, timing)[~has_next])
    assert len(session_ends_ms) == len(first)
    assert_close(starts_ms[at_once:], session_ends_ms[: len(first) - at_once])
    assert result.requests.is_timed is not None and not result.requests.is_timed.any()


# ---- by hand ---------------------------------------------------------------------------------

SPEC = EngineSpec(num_gpu_blocks=1000, max_model_len=100, block_size=4)


class FixedOutside(FixedModel):
    ingress_ms = INGRESS_MS
    egress_ms = EGRESS_MS


def one_by_one(previous: list[int], delays_ms: list[float], prompts: list[int]) -> Trace:
    """Requests of 3 tokens that all state time 0."""
    count = len(prompts)
    return Trace(
        arrival_ms=np.zeros(count),
        input_tokens=np.array(prompts),
        output_tokens=np.full(count, 3, np.int64),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
        previous_turn=np.array(previous),
        delay_ms=np.array(delays_ms),
    )


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_a_turn_is_paid_for_with_its_way_its_prefill_its_steps_and_its_thought(
    exact: bool, is_async: bool
) -> None:
    """10 ms of prefill and two steps of 5 ms: 20 ms in the engine, 4.75 ms outside."""
    trace = one_by_one([NO_REQUEST, 0, 1], [0.0, 30.0, 0.5], [8, 8, 8])
    log = run_twin(
        trace,
        engine=replace(SPEC, async_scheduling=is_async),
        timing=FixedOutside(10.0, 5.0),
        num_workers=1,
        exact_stepping=exact,
    ).requests
    arrivals = [0.0, 24.75 + 30.0, 2 * 24.75 + 30.5]
    assert_close(log.arrival_ms, arrivals)
    assert_close(log.scheduled_ms - log.arrival_ms, 3.25)
    assert_close(log.first_token_ms - log.arrival_ms, 3.25 + 10.0 + 1.5)
    assert_close(log.second_token_ms - log.arrival_ms, 3.25 + 15.0 + 1.5)
    assert_close(log.finish_ms - log.arrival_ms, 24.75)


@pytest.mark.parametrize("concurrency", [None, 1])
def test_a_turn_that_is_turned_away_lets_its_session_and_the_loop_go_on(
    concurrency: int | None,
) -> None:
    """The prompt of the second turn fills the context: an error at once, then the third turn."""
    previous = [NO_REQUEST, 0, 1, NO_REQUEST]
    trace = one_by_one(previous, [0.0, 30.0, 7.0, 0.0], [8, 100, 8, 8])
    result = run_twin(
        trace, engine=SPEC, timing=FixedOutside(10.0, 5.0), num_workers=1, concurrency=concurrency
    )
    log = result.requests
    assert log.status.tolist() == [0, 1, 0, 0]
    assert log.errors == {1: "prompt of 100 tokens >= max_model_len 100"}
    end = log.finish_ms[0]
    assert_close(log.arrival_ms[1], end + 30.0)
    assert_close(log.arrival_ms[2], end + 30.0 + 4.75 + 7.0)
    assert_close(log.finish_ms[2], log.arrival_ms[2] + 24.75)
    assert log.arrival_ms[3] == (0.0 if concurrency is None else pytest.approx(log.finish_ms[2]))


def test_clients_that_are_all_turned_away_come_one_after_the_other() -> None:
    trace = one_by_one([NO_REQUEST] * 5, [0.0] * 5, [100] * 5)
    log = run_twin(
        trace, engine=SPEC, timing=FixedOutside(10.0, 5.0), num_workers=2, concurrency=2
    ).requests
    assert (log.status == RequestStatus.REJECTED).all()
    assert_close(log.arrival_ms, [0.0, 0.0, 4.75, 4.75, 9.5])


def test_refusals_of_requests_that_waited_in_the_router_let_the_loop_go_on() -> None:
    """Whether it is turned away at once or later, the next client comes."""
    from dynosim.router.classes import PolicyClass

    waits = PolicyClass(prefill_busy_threshold=0, request_queue_limit_per_worker=1)
    routing = RoutingSpec(RouterSpec(SPEC.block_size, mode="kv", classes=(waits,)))
    trace = one_by_one([NO_REQUEST] * 9, [0.0] * 9, [8] * 9)
    log = run_twin(
        trace,
        engine=SPEC,
        timing=FixedOutside(10.0, 5.0),
        num_workers=1,
        routing=routing,
        concurrency=3,
    ).requests
    assert set(log.status.tolist()) == {RequestStatus.COMPLETED, RequestStatus.REJECTED}
    assert not np.isnan(log.arrival_ms).any()
    ended_ms = np.where(log.status == RequestStatus.REJECTED, log.arrival_ms + 4.75, log.finish_ms)
    assert_close(log.arrival_ms[3:], np.sort(ended_ms)[:6])
