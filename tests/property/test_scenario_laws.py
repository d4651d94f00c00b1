"""Whatever a script does to a cluster: nothing is lost, and runs in bulk are exact."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from controllers import assert_same_looks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from scripts import World, aggregated, disaggregated

from dynosim.metrics import check_conservation
from dynosim.records import RequestLog, RequestStatus

SEEDS = st.integers(0, 2**32 - 1)


def check_world(world: World) -> None:
    """The laws, of a world that is made anew for each run."""
    bulk, seen = world.run(exact=False)
    single, seen_singly = world.run(exact=True)
    assert_same(bulk, single)
    assert bulk.tiers == single.tiers
    assert_same_looks(seen, seen_singly)
    check_conservation(bulk, world.trace)
    completed = bulk.requests.status == RequestStatus.COMPLETED
    produced, wanted = bulk.requests.output_tokens, world.trace.output_tokens
    assert (produced[completed] == wanted[completed]).all()
    assert (produced <= wanted).all()


@settings(max_examples=70, deadline=None)
@given(SEEDS)
@example(3862)  # blocks of a request that was preempted, then lost with its frontend
@example(1019)  # stores that end amid a run
@example(1491)  # chunks that come to a farther tier amid a run
@example(1265)  # what device and tier tell in one step
def test_aggregated_clusters_under_scripts(seed: int) -> None:
    check_world(aggregated(seed))


@settings(max_examples=70, deadline=None)
@given(SEEDS)
@example(3866)  # a run that a request cuts off at the very end of another's
def test_disaggregated_clusters_under_scripts(seed: int) -> None:
    check_world(disaggregated(seed))


@pytest.mark.parametrize("make", [aggregated, disaggregated])
def test_the_same_script_does_the_same_again(make: "type[World]") -> None:
    for seed in range(4):
        first, again = [make(seed).run(exact=False)[0] for _ in range(2)]
        for column in fields(RequestLog):
            ours, theirs = [getattr(one.requests, column.name) for one in (first, again)]
            if isinstance(ours, np.ndarray):
                np.testing.assert_array_equal(ours, theirs)
        assert repr(first.workers) == repr(again.workers)


def test_the_seeds_see_everything_that_can_happen() -> None:
    worlds = [make(seed) for make in (aggregated, disaggregated) for seed in range(60)]
    kinds = Counter(type(event).__name__ for world in worlds for event in world.events)
    assert min(kinds.values()) >= 3 and len(kinds) == 10, kinds
    assert any(world.cluster.ranks.number > 1 for world in worlds)
    tiered = [world for world in worlds if any(pool.tiers for pool in world.cluster.pools)]
    assert {world.cluster.disagg is None for world in tiered} == {True, False}
    assert any(world.scaling_seed is not None for world in worlds)
    lossy = [world for world in worlds if _loses_events(world)]
    assert {world.cluster.disagg is None for world in lossy} == {True, False}


def _loses_events(world: World) -> bool:
    routing = world.cluster.routing
    return routing is not None and routing.follows_caches and routing.events.loss > 0
