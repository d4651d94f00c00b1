"""Controllers in the loop: what they see and do is the same in bulk and singly, nothing is lost."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
from clusters import equal_workers
from controllers import Script, assert_same_looks
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from strategies import (
    random_routing,
    random_spec,
    random_timing,
    random_trace,
    with_lossy_events,
    with_sessions,
)
from test_disagg_laws import clusters, traces

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec
from dynosim.metrics import check_conservation
from dynosim.planner.look import Look
from dynosim.records import RequestStatus, RunResult, Trace

SEEDS = st.integers(0, 2**32 - 1)


def random_script(rng: random.Random, num_pools: int) -> tuple[Script, ScalingSpec]:
    """Looks at round times and at others; from no workers to four, in the end one in each pool."""
    times_ms = {rng.choice([rng.uniform(0, 900), 50.0 * rng.randint(0, 18)]) for _ in range(9)}
    targets = [rng.choice([0, 1, 1, 2, 3, 4]) for _ in range(num_pools * len(times_ms))]
    targets += [1] * num_pools
    spec = ScalingSpec(
        scrape_interval_ms=rng.choice([10.0, 25.0, 33.3]),
        metric_lag_ms=rng.choice([0.0, 0.0, 40.0]),
        outages=rng.choice([(), ((100.0, 300.0),)]),
        actuation_delay_ms=rng.choice([0.0, 0.0, 60.0]),
        max_passes=rng.choice([3, 16, 64]),
    )
    return Script([*times_ms, 1e5], targets), spec


def run(
    trace: Trace, cluster: ClusterSpec, seed: int, options: RunOptions
) -> tuple[RunResult, list[Look]]:
    script, spec = random_script(random.Random(f"{seed}/script"), len(cluster.pools))
    process = ScalingProcess(script, spec)
    return simulate(trace, cluster, options, processes=[process]), process.looks


def aggregated(seed: int) -> tuple[Trace, ClusterSpec, RunOptions]:
    rng = random.Random(seed)
    trace = random_trace(rng)
    if rng.random() < 0.3:
        trace = with_sessions(rng, trace)
    spec = random_spec(rng, trace)
    timing = random_timing(rng, spec)
    routing = with_lossy_events(random.Random(f"{seed}/lossy"), random_routing(rng, spec))
    cluster = equal_workers(spec, timing, num_workers=rng.randint(1, 3), routing=routing)
    startup_ms = rng.choice([0.0, 35.0, 200.0])
    cluster = replace(cluster, pools=(replace(cluster.pools[0], startup_ms=startup_ms),))
    options: dict[str, Any] = {
        "waits_for_workers": rng.random() < 0.7,
        "client_timeout_ms": rng.choice([None, None, 300.0]),
    }
    return trace, cluster, RunOptions(**options)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_a_controller_sees_and_does_the_same_in_bulk_and_singly(seed: int) -> None:
    trace, cluster, options = aggregated(seed)
    bulk, seen = run(trace, cluster, seed, options)
    single, seen_singly = run(trace, cluster, seed, replace(options, exact_stepping=True))
    assert_same(bulk, single)
    assert_same_looks(seen, seen_singly)
    check_conservation(bulk, trace)
    if options.waits_for_workers and options.client_timeout_ms is None:
        statuses = set(bulk.requests.status.tolist())
        refusals = [why for why in bulk.requests.errors.values() if "no worker" in why]
        assert RequestStatus.UNFINISHED not in statuses and not refusals


@settings(max_examples=60, deadline=None)
@given(traces(), clusters(), SEEDS, st.booleans(), st.sampled_from([None, 60.0, 400.0]))
def test_the_same_of_prefill_and_decode_pools(
    trace: Trace, cluster: ClusterSpec, seed: int, waits: bool, timeout_ms: float | None
) -> None:
    options = RunOptions(waits_for_workers=waits, client_timeout_ms=timeout_ms)
    bulk, seen = run(trace, cluster, seed, options)
    single, seen_singly = run(trace, cluster, seed, replace(options, exact_stepping=True))
    assert_same(bulk, single)
    assert_same_looks(seen, seen_singly)
    check_conservation(bulk, trace)
    if waits and timeout_ms is None:
        assert (bulk.requests.status != RequestStatus.UNFINISHED).all()
        assert not [why for why in bulk.requests.errors.values() if "no worker" in why]


def test_the_seeds_see_every_kind_of_change() -> None:
    """Scaling to nothing and back, requests that wait for it, and changes that cut across."""
    results = [run(*aggregated(seed)[:2], seed, aggregated(seed)[2])[0] for seed in range(40)]
    logs = [result.scaling for result in results if result.scaling is not None]
    assert len(logs) == len(results)
    changes = [pair for log in logs for pair in zip(log.before, log.after, strict=True)]
    assert {0} < {int(after) for _, after in changes}
    assert any(after > before for before, after in changes)
    assert any(before == 0 for before, _ in changes)
    dispatched = [result.requests.dispatch_ms - result.requests.arrival_ms for result in results]
    assert max(float(np.nanmax(waited_ms, initial=0.0)) for waited_ms in dispatched) > 100.0
