"""Tiers below the devices under random loads, sizes, links and losses: no block is lost, none is
counted twice, and runs in bulk are those of single steps."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
from clusters import equal_workers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from strategies import pressed_spec, pressing_trace, random_routing, random_timing
from test_lives_in_runs import acting
from test_retention_laws import with_retention

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.engine.spec import EngineSpec, HostCacheSpec, TierPolicy
from dynosim.memory.tiers import Scope, TierName, TierSpec, TiersSpec
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult, Trace

SEEDS = st.integers(0, 2**32 - 1)
LONG_MS = 200_000.0  # where prompts take each other's blocks for ever
POLICIES: tuple[TierPolicy, ...] = ("lru", "arc", "priority", "priority")


def random_tiers(rng: random.Random, spec: EngineSpec) -> TiersSpec:
    """One to four tiers, as large as a part of the device or many times it."""

    def tier(name: TierName, scopes: tuple[Scope, ...]) -> TierSpec:
        scope = rng.choice(scopes)
        return TierSpec(
            name=name,
            num_blocks=max(1, int(spec.usable_blocks * rng.choice([0.2, 1.0, 5.0]))),
            read_gb_s=rng.choice([0.0001, 0.01, 1.0]),
            write_gb_s=rng.choice([0.0001, 0.01, 1.0]),
            latency_ms=rng.choice([0.0, 3.0]),
            scope=scope,
            policy=rng.choice(POLICIES),
            store_threshold=rng.choice([0, 0, 2]),
            prompt_only=rng.random() < 0.3,
            total_read_gb_s=0.01 if scope != "worker" and rng.random() < 0.5 else None,
        )

    tiers: list[TierSpec] = []
    if rng.random() < 0.8:
        tiers.append(tier("host", ("worker", "worker", "node")))
        if not tiers[0].is_shared and rng.random() < 0.3:
            tiers.append(TierSpec(name="peers", num_blocks=0, read_gb_s=0.01, write_gb_s=1.0))
    if rng.random() < 0.4:
        tiers.append(tier("disk", ("worker", "node")))
    if not tiers or rng.random() < 0.4:
        tiers.append(tier("remote", ("cluster",)))
    return TiersSpec(
        tiers=tuple(tiers),
        block_bytes=1000,
        writes_evicted=rng.random() < 0.3,
        is_choosy=rng.random() < 0.3,
        granularity_blocks=rng.choice([1, 3]),
    )


def with_tiers(cluster: ClusterSpec, tiers: TiersSpec) -> ClusterSpec:
    """The same with tiers below each device, two workers a node."""
    nearest = tiers.tiers[0]
    host = HostCacheSpec(
        num_chunks=nearest.num_blocks,
        policy=nearest.policy,
        store_threshold=nearest.store_threshold,
        prompt_only=nearest.prompt_only,
    )
    return replace(
        cluster,
        pools=tuple(
            replace(
                pool,
                engine=replace(pool.engine, host_cache=host),
                tiers=tiers,
                topology={"node": ("a", "b")},
            )
            for pool in cluster.pools
        ),
    )


def with_fitting_pins(trace: Trace, tiers: TiersSpec, block_size: int) -> Trace:
    """The same without pins that a tier could never hold: they are refused."""
    assert trace.retention is not None
    least = min([tier.num_blocks for tier in tiers.tiers if tier.policy == "priority"], default=999)
    kept = tuple(
        said and (said if tokens // block_size <= least else replace(said, pin_ttl_ms=None))
        for said, tokens in zip(trace.retention, trace.input_tokens.tolist(), strict=True)
    )
    return replace(trace, retention=kept)


def with_coarse_reuse(cluster: ClusterSpec, tokens: int) -> ClusterSpec:
    """The same with prefixes reused in multiples of so many tokens."""
    pools = tuple(
        replace(pool, engine=replace(pool.engine, reuse_granularity_tokens=tokens))
        for pool in cluster.pools
    )
    return replace(cluster, pools=pools)


def with_prefetches(rng: random.Random, trace: Trace) -> Trace:
    """The same, and some of its prompts later once more, first as prefetches and then most of them
    as requests."""
    rows = [(float(at_ms), row, False) for row, at_ms in enumerate(trace.arrival_ms)]
    for row in rng.choices(range(len(trace)), k=max(1, len(trace) // 2)):
        at_ms = float(trace.arrival_ms[row]) + rng.uniform(0, 1500)
        rows.append((at_ms, row, True))
        if rng.random() < 0.8:
            rows.append((at_ms + rng.choice([0.0, 5.0, 50.0, 400.0]), row, False))
    rows.sort()
    is_prefetch = np.array([is_one for _, _, is_one in rows])
    more = trace.take(np.array([row for _, row, _ in rows]))
    return replace(
        more,
        arrival_ms=np.array([at_ms for at_ms, _, _ in rows]),
        output_tokens=np.where(is_prefetch, 1, more.output_tokens),
        is_speculative=is_prefetch,
        is_prefetch=is_prefetch,
    )


def run(
    seed: int, *, exact: bool, has_faults: bool, prefetches: bool = False
) -> tuple[Trace, RunResult]:
    rng = random.Random(seed)
    trace = pressing_trace(rng)
    spec = replace(pressed_spec(rng, trace), enable_prefix_caching=True)
    timing = random_timing(rng, spec)
    routing = random_routing(rng, spec)
    cluster = equal_workers(spec, timing, num_workers=rng.randint(1, 3), routing=routing)
    tiers = random_tiers(rng, spec)
    cluster = with_tiers(cluster, tiers)
    if rng.random() < 0.6:
        trace = with_fitting_pins(with_retention(rng, trace), tiers, spec.block_size)
    if prefetches:
        trace = with_prefetches(random.Random(seed + 1), trace)
    if rng.random() < 0.2:
        cluster = with_coarse_reuse(cluster, spec.block_size * rng.randint(2, 3))
    # A router hears with a step what ended in it; a run that is cut off may not come to that.
    ends_early = not routing.needs_router and rng.random() < 0.3
    options: dict[str, Any] = {"until_ms": 1200.0 if ends_early else LONG_MS}
    processes = [acting(rng.getrandbits(32))] if has_faults else []
    return trace, simulate(
        trace, cluster, RunOptions(**options, exact_stepping=exact), processes=processes
    )


@settings(max_examples=120, deadline=None)
@given(SEEDS, st.booleans())
@example(2756, False)  # a tier's events that reach an index of devices are taken for theirs
def test_bulk_does_as_single_steps_do(seed: int, has_faults: bool) -> None:
    bulk, single = [run(seed, exact=exact, has_faults=has_faults)[1] for exact in (False, True)]
    assert_same(bulk, single)
    assert bulk.tiers == single.tiers
    assert has_faults or bulk.retention == single.retention  # else with what was planned when lost


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.booleans())
def test_no_block_is_lost_and_none_counted_twice(seed: int, exact: bool) -> None:
    trace, result = run(seed, exact=exact, has_faults=True)
    check_conservation(result, trace)
    completed = result.requests.status == RequestStatus.COMPLETED
    np.testing.assert_array_equal(
        result.requests.output_tokens[completed], trace.output_tokens[completed]
    )


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_tiers_take_nothing_from_what_devices_hold(seed: int) -> None:
    """Requests that come alone find no less with tiers than without."""
    rng = random.Random(seed)
    trace = pressing_trace(rng)
    trace = trace.at(np.arange(len(trace)) * 1e7)
    spec = replace(pressed_spec(rng, trace), enable_prefix_caching=True)
    plain = equal_workers(spec, random_timing(rng, spec), num_workers=1)
    tiered = with_tiers(plain, random_tiers(rng, spec))
    without, with_them = [
        simulate(trace, cluster, RunOptions()).requests.cached_tokens for cluster in (plain, tiered)
    ]
    assert (with_them >= without).all()
