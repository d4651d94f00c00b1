"""Workers followed one after the other do what they do side by side."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import equal_workers, run_twin
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_close, assert_same_requests, assert_same_workers
from strategies import random_spec, random_timing, random_trace

from dynosim.cluster import RunOptions, apart, simulate
from dynosim.cluster.control import ControlPlane
from dynosim.records import NO_REQUEST, RunResult, StepLog, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.modes import BLIND_MODES, LOAD_MODES
from dynosim.router.spec import RoutingSpec
from dynosim.workload.load import LoadDriver

SEEDS = st.integers(0, 2**32 - 1)


def idle(control: ControlPlane) -> Iterator[Any]:
    """A process that does nothing; for all that is known beforehand, it might launch workers."""
    yield control.env.timeout(1.0)


def rows_of(steps: StepLog, worker_id: int) -> list[np.ndarray]:
    mine = steps.worker_id == worker_id
    return [getattr(steps, name)[mine] for name in StepLog.__slots__]


def assert_same_run(ours: RunResult, theirs: RunResult) -> None:
    assert_same_requests(ours.requests, theirs.requests)
    assert_same_workers(ours.workers, theirs.workers)
    assert_close(ours.end_ms, theirs.end_ms, "end_ms")
    assert_close(np.sort(ours.stalled_gaps_ms), np.sort(theirs.stalled_gaps_ms), "stalled gaps")
    assert ours.num_scheduling_events == theirs.num_scheduling_events
    assert ours.num_preemptions == theirs.num_preemptions
    for worker_id in range(len(ours.workers)):
        for one, other in zip(
            rows_of(ours.steps, worker_id), rows_of(theirs.steps, worker_id), strict=True
        ):
            assert_close(one, other, "step rows")


@pytest.mark.parametrize("mode", BLIND_MODES)
@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_workers_live_alike_apart_and_side_by_side(mode: str, seed: int) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng)
    engine = replace(random_spec(rng, trace), async_scheduling=rng.random() < 0.5)
    if rng.random() < 0.3:  # some prompts are too long, and take nobody's turn
        longest = int(np.median(trace.input_tokens)) + 2
        engine = replace(engine, max_model_len=min(engine.max_model_len, longest))
    given_alike: dict[str, Any] = {
        "engine": engine,
        "timing": random_timing(rng, engine),
        "num_workers": rng.randint(2, 5),
        "cpu_workers": rng.randint(0, 1),
        "routing": RoutingSpec(RouterSpec(engine.block_size, mode=mode)),
        "exact_stepping": rng.random() < 0.3,
        "until_ms": rng.choice([None, rng.uniform(1, 3000)]),
    }
    one_by_one = run_twin(trace, **given_alike)
    side_by_side = run_twin(trace, processes=(idle,), **given_alike)
    assert_same_run(one_by_one, side_by_side)
    if given_alike["until_ms"] is None:  # else the last rows are written when all is over
        assert (np.diff(one_by_one.steps.worker_id) >= 0).all()


def can_go_apart(
    trace: Trace, mode: str, *, num_workers: int = 2, concurrency: int | None = None
) -> bool:
    rng = random.Random(1)
    engine = random_spec(rng, trace)
    cluster = equal_workers(engine, random_timing(rng, engine), num_workers=num_workers)
    routing = RoutingSpec(RouterSpec(engine.block_size, mode=mode))
    load = LoadDriver(trace, concurrency=concurrency)
    return apart.can_go_apart(cluster, routing, RunOptions(concurrency=concurrency), load)


@pytest.mark.parametrize("mode", LOAD_MODES)
def test_only_who_does_not_look_at_loads_lets_workers_go_apart(mode: str) -> None:
    trace = random_trace(random.Random(1))
    assert can_go_apart(trace, mode) == (mode in BLIND_MODES)
    assert not can_go_apart(trace, mode, num_workers=1)


def test_ends_that_bring_about_arrivals_keep_workers_together() -> None:
    trace = random_trace(random.Random(1))
    turns = np.full(len(trace), NO_REQUEST)
    turns[1] = 0
    assert not can_go_apart(replace(trace, previous_turn=turns), "round-robin")
    assert not can_go_apart(trace, "round-robin", concurrency=3)


def test_progress_counts_over_all_workers() -> None:
    trace = random_trace(random.Random(2))
    engine = random_spec(random.Random(2), trace)
    told: list[tuple[int, int]] = []
    cluster = equal_workers(engine, random_timing(random.Random(3), engine), num_workers=3)
    simulate(trace, cluster, progress=lambda ended, of: told.append((ended, of)))
    ended = [number for number, _ in told]
    assert ended == sorted(ended) and told[-1] == (len(trace), len(trace))
