"""Prefetches under random loads, tiers and losses: in bulk as step by step, nothing lost, and what
the device has is not loaded."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from clusters import equal_workers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from scripts import World, aggregated, disaggregated
from strategies import pressed_spec, pressing_trace, random_timing
from test_tier_laws import (
    SEEDS,
    random_tiers,
    run,
    with_prefetches,
    with_tiers,
)

from dynosim.cluster import RunOptions, simulate
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
@example(
    495, True
)  # a store ended with a settled step of a run that the worker did not live to end
def test_bulk_does_as_single_steps_do(seed: int, has_faults: bool) -> None:
    bulk, single = [
        run(seed, exact=exact, has_faults=has_faults, prefetches=True)[1] for exact in (False, True)
    ]
    assert_same(bulk, single)
    assert bulk.tiers == single.tiers
    assert bulk.prefetches == single.prefetches


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
@example(423, True)  # who lost its seat amid a prompt found the rest of it loaded ahead
def test_no_block_is_lost_and_none_of_use_twice(seed: int, exact: bool) -> None:
    trace, result = run(seed, exact=exact, has_faults=True, prefetches=True)
    check_conservation(result, trace)
    assert trace.is_prefetch is not None
    ended = result.requests.status[trace.is_prefetch]
    assert not (ended == RequestStatus.COMPLETED).any()


def tiered(make: Callable[[int], World], seed: int) -> World:
    """The next world with tiers, with prefetches."""
    while True:
        world = make(seed)
        if any(pool.tiers for pool in world.cluster.pools):
            trace = with_prefetches(random.Random(seed + 1), world.trace)
            return replace(world, trace=trace)
        seed += 1


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([aggregated, disaggregated]))
@example(980, disaggregated)  # what was no load any more let requests go that wait in a router
def test_under_scripts_too_nothing_is_lost_and_bulk_does_as_single_steps_do(
    seed: int, make: Callable[[int], World]
) -> None:
    """Of all that can happen to a cluster, with prefill and decode workers or without."""
    world = tiered(make, seed)
    bulk, single = [world.run(exact=exact)[0] for exact in (False, True)]
    check_conservation(bulk, world.trace)
    assert_same(bulk, single)
    assert bulk.tiers == single.tiers
    assert bulk.prefetches == single.prefetches


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_in_a_device_with_room_for_all_nothing_is_loaded_ahead(seed: int) -> None:
    """And requests are served to the instant as if nobody had asked for it."""
    rng = random.Random(seed)
    trace = with_prefetches(rng, pressing_trace(rng))
    spec = replace(pressed_spec(rng, trace), enable_prefix_caching=True, num_gpu_blocks=100_000)
    workers = equal_workers(spec, random_timing(rng, spec), num_workers=1)
    cluster = with_tiers(workers, random_tiers(rng, spec))
    result = simulate(trace, cluster, RunOptions())
    check_conservation(result, trace)
    assert trace.is_prefetch is not None
    assert result.prefetches is not None and result.prefetches.loaded_blocks == 0
    rows = np.flatnonzero(~trace.is_prefetch)
    without = simulate(trace.take(rows), cluster, RunOptions())
    np.testing.assert_allclose(result.requests.finish_ms[rows], without.requests.finish_ms)
