"""Workers that come, drain and fail in the middle of runs: nothing is lost, bulk or single."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
from clusters import equal_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from startup_support import GB
from strategies import random_routing, random_spec, random_timing, random_trace, with_rarer_routing

from dynosim.cluster import RunOptions, simulate
from dynosim.cluster.control import ControlPlane, Process, ProcessGenerator
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.workers.lifecycle import Phase
from dynosim.workers.startup import Duration, ReadSpec, StartupSpec, WeightsSpec

SEEDS = st.integers(0, 2**32 - 1)
ACTIONS = ("launch", "launch", "drain", "fail", "fail", "hold")


def acting(seed: int) -> Process:
    """A process that does something to the cluster now and then, the same for the same seed."""

    def act(control: ControlPlane) -> ProcessGenerator:
        rng = random.Random(seed)
        while True:
            yield control.env.timeout(rng.uniform(5.0, 900.0))
            alive = [w for w in control.workers if w.phase in (Phase.READY, Phase.DRAINING)]
            what = rng.choice(ACTIONS)
            if what == "hold":
                control.hold_load()
                yield control.env.timeout(rng.uniform(1.0, 300.0))
                control.release_load()
            elif what == "launch" or not alive:
                control.launch()
            elif what == "drain":
                control.drain(rng.choice(alive).worker_id)
            else:
                control.fail(rng.choice(alive).worker_id)
            if len(control.workers) > 8:
                return

    return act


def run(seed: int, *, exact: bool, startup: StartupSpec | None = None) -> tuple[Trace, RunResult]:
    """With a `startup` the first workers start cold."""
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = random_spec(rng, trace)
    timing = random_timing(rng, spec)
    routing = random_routing(rng, spec)
    if rng.random() < 0.5:
        routing = with_rarer_routing(routing, timing, spec)
    cluster = equal_workers(spec, timing, num_workers=rng.randint(1, 3), routing=routing)
    if startup is not None:
        pool = replace(cluster.pools[0], startup=startup, start_cold=True)
        cluster = replace(cluster, pools=(pool,))
    options: dict[str, Any] = {"until_ms": rng.choice([None, None, 1200.0])}
    return trace, simulate(
        trace,
        cluster,
        RunOptions(**options, exact_stepping=exact),
        processes=[acting(rng.getrandbits(32))],
    )


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_bulk_does_as_single_steps_do_where_workers_come_and_go(seed: int) -> None:
    assert_same(run(seed, exact=False)[1], run(seed, exact=True)[1])


STARTUP = StartupSpec(
    boot=Duration(100.0, 200.0),
    weights=WeightsSpec(
        num_bytes=GB,
        storage=ReadSpec(node_gb_s=5.0, total_gb_s=8.0),
        peer_gb_s=20.0,
        receivers_per_source=1,
    ),
    probe=Duration.between(0.0, 100.0),
)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_bulk_does_as_single_steps_do_where_they_start_cold(seed: int) -> None:
    trace, bulk = run(seed, exact=False, startup=STARTUP)
    check_conservation(bulk, trace)
    single = run(seed, exact=True, startup=STARTUP)[1]
    assert_same(bulk, single)
    assert repr(bulk.startups) == repr(single.startups)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_nothing_is_lost_where_workers_come_and_go(seed: int, exact: bool) -> None:
    trace, result = run(seed, exact=exact)
    check_conservation(result, trace)
    log = result.requests
    completed = log.status == RequestStatus.COMPLETED
    np.testing.assert_array_equal(log.output_tokens[completed], trace.output_tokens[completed])
    for row in np.flatnonzero(log.status == RequestStatus.FAILED):
        assert int(row) in log.errors and log.output_tokens[row] < trace.output_tokens[row]


def test_the_seeds_see_every_kind_of_end() -> None:
    results = [run(seed, exact=False)[1] for seed in range(40)]
    statuses = {int(status) for result in results for status in result.requests.status}
    assert {RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.REJECTED} <= statuses
    assert sum(int(result.requests.migrations.sum()) for result in results) > 40
    assert any(len(result.stalled_gaps_ms) and result.num_preemptions == 0 for result in results)
