"""Clusters whose engines have a host tier: routing is the same however it is simulated."""

import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
from clusters import equal_workers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from same_runs import assert_close, assert_same
from strategies import random_routing, random_spec, random_timing, random_trace
from test_retention_laws import with_retention

from dynosim.cluster import RunOptions, simulate
from dynosim.engine.spec import HostCacheSpec
from dynosim.indexer.make import DEVICE_INDEXES
from dynosim.memory.tiers import TierSpec, TiersSpec
from dynosim.records import OnboardLog, RunResult
from dynosim.router.spec import DelaySpec

SEEDS = st.integers(0, 2**32 - 1)


def run(
    seed: int,
    *,
    exact: bool = False,
    has_delays: bool = False,
    says_worth: bool = False,
    weight: float | None = None,
    shared: float | None = None,
    **changes: Any,
) -> RunResult:
    """Three workers under pressure, each with a host tier a few times the size of its device.

    `shared`: how much the router makes of a store that they share; None: there is none.
    """
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = replace(random_spec(rng, trace), enable_prefix_caching=True)
    needed = -(-spec.max_model_len // spec.block_size)
    spec = replace(spec, num_gpu_blocks=needed + rng.choice([1, needed]))
    num_blocks = rng.choice([needed, 4 * needed, 20 * needed])
    timing = random_timing(rng, spec)
    routing = random_routing(rng, spec)
    drawn = rng.choice([0.75, 0.0, 1.0, 1.5])
    cost = replace(
        routing.settings.cost,
        host_cache_hit_weight=drawn if weight is None else weight,
        shared_cache_multiplier=shared or 0.0,
    )
    routing = replace(
        routing, has_slower_tiers=True, settings=replace(routing.settings, mode="kv", cost=cost)
    )
    if not has_delays:
        routing = replace(routing, events=DelaySpec(), frontends=1, sync_delay_ms=None)
    cluster = equal_workers(
        replace(spec, host_cache=HostCacheSpec(num_chunks=num_blocks)),
        timing,
        num_workers=3,
        routing=replace(routing, **changes),
    )
    rate = rng.choice([0.01, 1.0])
    host = TierSpec(name="host", num_blocks=num_blocks, read_gb_s=rate, write_gb_s=2 * rate)
    tiers = [host]
    if rng.random() < 0.5:
        tiers.append(replace(host, name="disk", num_blocks=10 * num_blocks, latency_ms=0.1))
    if shared is not None:
        size = (seed % 3 + 1) * num_blocks
        tiers.append(replace(host, name="remote", num_blocks=size, scope="cluster"))
        tiers = tiers[seed // 3 % 2 :]  # with and without those of their own
    tiers_spec = TiersSpec(
        tiers=tuple(tiers), block_bytes=spec.block_size * 1000, writes_evicted=rng.random() < 0.5
    )
    cluster = replace(
        cluster, pools=tuple(replace(pool, tiers=tiers_spec) for pool in cluster.pools)
    )
    if says_worth:
        trace = with_retention(rng, trace)
    return simulate(trace, cluster, RunOptions(exact_stepping=exact))


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([None, 0.125, 0.5]))
def test_every_exact_index_routes_alike_over_tiers(seed: int, shared: float | None) -> None:
    first = run(seed, shared=shared, index="extents", use_kv_events=True, predicted_ttl_ms=None)
    for kind in DEVICE_INDEXES:
        other = run(seed, shared=shared, index=kind, use_kv_events=True, predicted_ttl_ms=None)
        np.testing.assert_array_equal(first.requests.worker_id, other.requests.worker_id, kind)
        times = first.requests.finish_ms, other.requests.finish_ms
        np.testing.assert_allclose(*times, rtol=0, atol=1e-6, err_msg=kind)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.booleans(), st.booleans(), st.sampled_from([None, 0.125, 0.5]))
# A store ends with the step in flight when a run begins.
@example(3821577044, False, False, None)
# What is being stored for nobody is worth little, and goes.
@example(151779407, False, True, None)
def test_bulk_routes_over_tiers_as_single_steps_do(
    seed: int, has_delays: bool, says_worth: bool, shared: float | None
) -> None:
    ones, others = (
        run(seed, has_delays=has_delays, says_worth=says_worth, shared=shared, exact=exact)
        for exact in (False, True)
    )
    loads, other_loads = (result.requests.onboards for result in (ones, others))
    assert loads is not None and other_loads is not None
    for column in fields(OnboardLog):
        pair = (getattr(log, column.name) for log in (loads, other_loads))
        assert_close(*pair, column.name)
    bare = [
        replace(result, requests=replace(result.requests, onboards=None))
        for result in (ones, others)
    ]
    assert_same(*bare)


def test_hosts_are_hit_and_their_weight_matters() -> None:
    """What the tests above draw is not empty."""
    num_hits = num_moved = 0
    for seed in range(30):
        heavy, light = run(seed, weight=1.0), run(seed, weight=0.0)
        loads = heavy.requests.onboards
        assert loads is not None
        num_hits += int(np.isfinite(loads.start_ms).sum())
        num_moved += int((heavy.requests.worker_id != light.requests.worker_id).sum())
    assert num_hits > 20 and num_moved > 4, (num_hits, num_moved)


def test_what_all_share_is_seen_and_moves_requests() -> None:
    num_moved = 0
    for seed in range(30):
        seen, unseen = run(seed, shared=0.5), run(seed, shared=0.0)
        num_moved += int((seen.requests.worker_id != unseen.requests.worker_id).sum())
    assert num_moved > 5, num_moved
