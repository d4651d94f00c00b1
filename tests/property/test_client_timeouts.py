"""Clients that give up: nothing is lost, bulk equals single steps, and blocks come back."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import run_twin
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from strategies import bounded_spec, random_routing
from test_twin import some_run, tied_trace

from dynosim.cluster.control import ControlPlane
from dynosim.engine.spec import EngineSpec
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.timing.formulas import LinearModel

SEEDS = st.integers(0, 2**32 - 1)
TOLERANCE_MS = 1e-6


def impatient_run(seed: int) -> tuple[Trace, dict[str, Any]]:
    """A random run in which some clients, or all, do not wait to the end."""
    trace, given_all = some_run(seed)
    rng = random.Random(f"{seed}/patience")
    engine = replace(given_all["engine"], async_scheduling=rng.random() < 0.5)
    timeout_ms = rng.choice([rng.uniform(1, 100), rng.uniform(100, 3000), 1e7])
    return trace, {**given_all, "engine": engine, "client_timeout_ms": timeout_ms}


def tied_run(seed: int, *, exact: bool) -> RunResult:
    """Time-outs, arrivals and steps at equal times."""
    rng = random.Random(seed)
    step_ms = rng.choice([0.1, 1 / 3, 0.7, 5.0, 6.6])
    trace = tied_trace(rng, step_ms)
    spec = replace(bounded_spec(rng, trace), async_scheduling=rng.random() < 0.5)
    return run_twin(
        trace,
        engine=replace(spec, num_gpu_blocks=spec.num_gpu_blocks * rng.choice([1, 8])),
        timing=LinearModel(
            base_ms=step_ms,
            per_prefill_token_ms=0.0,
            per_decode_ms=rng.choice([0.0, step_ms]),
            per_context_token_ms=0.0,
        ),
        num_workers=rng.choice([1, 2, 3]),
        routing=random_routing(rng, spec),
        concurrency=rng.choice([None, 2, 5]),
        exact_stepping=exact,
        client_timeout_ms=step_ms * rng.randint(1, 40),
    )


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_clients_give_up_the_same_in_bulk_and_in_single_steps(seed: int) -> None:
    trace, given_all = impatient_run(seed)
    assert_same(run_twin(trace, **given_all), run_twin(trace, **given_all, exact_stepping=True))


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_clients_give_up_the_same_where_everything_happens_at_once(seed: int) -> None:
    assert_same(tied_run(seed, exact=False), tied_run(seed, exact=True))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.booleans())
def test_every_request_ends_in_one_way_and_none_after_its_client_gave_up(
    seed: int, exact: bool
) -> None:
    trace, given_all = impatient_run(seed)
    result = run_twin(trace, **given_all, exact_stepping=exact)
    check_conservation(result, trace)
    log, timeout_ms = result.requests, given_all["client_timeout_ms"]
    counts = np.bincount(log.status, minlength=len(RequestStatus))
    assert counts.sum() == len(trace)
    done = log.status == RequestStatus.COMPLETED
    timed_out = log.status == RequestStatus.TIMED_OUT
    assert (log.finish_ms - log.arrival_ms)[done].max(initial=0.0) <= timeout_ms + TOLERANCE_MS
    if timed_out.any():
        assert log.gave_up_ms is not None
        waited_ms = (log.gave_up_ms - log.arrival_ms)[timed_out]
        outside_ms = given_all["timing"].ingress_ms + given_all["timing"].egress_ms
        assert waited_ms.min() >= timeout_ms - TOLERANCE_MS
        assert waited_ms.max() <= max(timeout_ms, outside_ms) + TOLERANCE_MS
    if given_all["until_ms"] is None:
        assert not counts[RequestStatus.UNFINISHED]


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_nobody_who_is_served_in_time_notices_a_time_out(seed: int) -> None:
    trace, given_all = impatient_run(seed)
    given_all["client_timeout_ms"] = None
    patient = run_twin(trace, **given_all)
    given_all["client_timeout_ms"] = 1e9
    assert_same(patient, run_twin(trace, **given_all, exact_stepping=True))


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_workers_that_fail_and_drain_take_nothing_back_that_was_given_up(seed: int) -> None:
    trace, given_all = impatient_run(seed)
    given_all |= {"num_workers": 3, "cpu_workers": 0}
    rng = random.Random(f"{seed}/faults")
    fail_ms, drain_ms = rng.uniform(0, 500), rng.uniform(0, 500)

    def faults(control: ControlPlane) -> Iterator[Any]:
        first_ms, second_ms = sorted((fail_ms, drain_ms))
        yield control.env.timeout(first_ms)
        (control.fail if first_ms == fail_ms else control.drain)(0)
        yield control.env.timeout(second_ms - first_ms)
        (control.fail if second_ms == fail_ms else control.drain)(1)

    result = run_twin(trace, **given_all, processes=(faults,))
    check_conservation(result, trace)
    assert (result.requests.migrations >= 0).all()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_closed_loop_sends_the_next_when_a_client_gives_up(is_async: bool) -> None:
    result = run_twin(
        requests_of(4), engine=engine_of(is_async), timing=STEPS, concurrency=1,
        client_timeout_ms=25.0,
    )  # fmt: skip
    log = result.requests
    assert (log.status == RequestStatus.TIMED_OUT).all()
    assert log.arrival_ms.tolist() == [0.0, 25.0, 50.0, 75.0]


@pytest.mark.parametrize("is_async", [False, True])
def test_the_steps_of_a_request_end_with_the_one_in_which_its_client_gives_up(
    is_async: bool,
) -> None:
    """Synchronously with the third of 10 ms; if one is planned ahead, that one is computed too."""
    result = run_twin(
        requests_of(1), engine=engine_of(is_async), timing=STEPS, client_timeout_ms=25.0
    )
    num_steps = int(result.steps.num_steps.sum())
    assert num_steps == result.requests.output_tokens[0] == (4 if is_async else 3)
    assert np.isnan(result.requests.finish_ms[0]) and result.requests.first_token_ms[0] == 10.0


def test_a_session_ends_with_the_turn_that_its_client_gives_up() -> None:
    turns = replace(requests_of(4), previous_turn=np.array([-1, 0, 1, -1]), delay_ms=np.zeros(4))
    log = run_twin(turns, engine=engine_of(False), timing=STEPS, client_timeout_ms=25.0).requests
    timed_out, unsent = RequestStatus.TIMED_OUT, RequestStatus.NOT_SENT
    assert log.status.tolist() == [timed_out, unsent, unsent, timed_out]
    assert np.isnan(log.arrival_ms[1:3]).all()


def test_who_waits_in_the_queue_is_given_up_there_and_makes_room() -> None:
    """One seat: the second waits behind the first, the third finds the seat free."""
    trace = replace(requests_of(3), arrival_ms=np.array([0.0, 0.0, 45.0]))
    engine = replace(engine_of(False), max_num_seqs=1)
    log = run_twin(trace, engine=engine, timing=STEPS, client_timeout_ms=40.0).requests
    assert (log.status == RequestStatus.TIMED_OUT).all()
    assert np.isnan(log.scheduled_ms[1]) and log.scheduled_ms[2] == 45.0


def requests_of(count: int) -> Trace:
    """Prompts of one block, answers of 9 tokens, all at once."""
    return Trace(
        arrival_ms=np.zeros(count),
        input_tokens=np.full(count, 16),
        output_tokens=np.full(count, 9),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
    )


def engine_of(is_async: bool) -> EngineSpec:
    return EngineSpec(num_gpu_blocks=100, max_model_len=100, async_scheduling=is_async)


STEPS = LinearModel(
    base_ms=10.0, per_prefill_token_ms=0.0, per_decode_ms=0.0, per_context_token_ms=0.0
)
