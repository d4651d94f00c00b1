"""What caches of any size have of a trace is what a cache kept block by block has."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from clusters import equal_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_prefix_cache import (
    NaiveArc,
    NaiveLru,
    NaiveTier,
    Visit,
    best_hits,
    foreseen_hits,
    hits_by_tier,
    hits_of,
    visits_of,
)
from shared_data import shared_path
from strategies import random_routing, random_spec, random_timing, random_trace

from dynosim.cluster import RunOptions, simulate
from dynosim.engine.spec import EvictionPolicy
from dynosim.memory.reuse import LruReuse, OptimalReuse, tier_hits
from dynosim.metrics.reuse import cache_visits, most_blocks, reuse_bound
from dynosim.records import RequestStatus, RunResult, Trace, WorkerLog
from dynosim.workload.inspect import engine_cached_tokens, shared_prefixes
from dynosim.workload.readers import read_trace

SEEDS = st.integers(0, 2**32 - 1)
BLOCK_SIZES = st.sampled_from([4, 8, 16, 24, 48])
OPTIONS = RunOptions()
NAIVE: dict[EvictionPolicy, type[NaiveTier]] = {"lru": NaiveLru, "arc": NaiveArc}


def naive_tier(policy: EvictionPolicy, capacity: int) -> NaiveTier:
    tier: NaiveTier = NAIVE[policy](capacity)  # type: ignore[call-arg]
    return tier


@settings(max_examples=60, deadline=None)
@given(SEEDS, BLOCK_SIZES, st.booleans())
def test_lru_hits_at_every_capacity_what_a_list_of_blocks_does(
    seed: int, block_size: int, with_answers: bool
) -> None:
    trace = random_trace(random.Random(seed))
    naive = visits_of(trace, block_size, with_answers=with_answers)
    lru = LruReuse(cache_visits(trace, block_size, with_answers=with_answers))
    for capacity in (1, 2, 3, 5, 8, 13, 40, 100, 1000):
        hits = hits_of(naive, NaiveLru(capacity))
        assert lru.hits_of_requests(capacity).tolist() == hits
        assert lru.hits(capacity) == sum(hits)


@settings(max_examples=60, deadline=None)
@given(SEEDS, BLOCK_SIZES, st.sampled_from(["lru", "arc"]), st.integers(1, 120))
def test_a_tier_hits_what_a_list_of_blocks_does(
    seed: int, block_size: int, policy: EvictionPolicy, capacity: int
) -> None:
    trace = random_trace(random.Random(seed))
    visits = cache_visits(trace, block_size, single_blocks=True)
    naive = hits_of(visits_of(trace, block_size), naive_tier(policy, capacity))
    assert tier_hits(visits, capacity, policy).tolist() == naive


@settings(max_examples=60, deadline=None)
@given(SEEDS, BLOCK_SIZES, st.sampled_from(["lru", "arc"]), st.integers(1, 60), st.integers(1, 200))
def test_a_host_tier_hits_what_the_device_has_lost(
    seed: int, block_size: int, policy: EvictionPolicy, device_blocks: int, host_blocks: int
) -> None:
    trace = random_trace(random.Random(seed))
    visits = cache_visits(trace, block_size, single_blocks=True)
    on_device = LruReuse(visits).hits_of_requests(device_blocks)
    on_host = tier_hits(visits, host_blocks, policy, on_device)
    naive = hits_by_tier(
        visits_of(trace, block_size), NaiveLru(device_blocks), naive_tier(policy, host_blocks)
    )
    assert (on_device.tolist(), on_host.tolist()) == naive


@settings(max_examples=60, deadline=None)
@given(SEEDS, BLOCK_SIZES)
def test_the_optimum_hits_what_a_cache_does_that_looks_ahead(seed: int, block_size: int) -> None:
    trace = random_trace(random.Random(seed))
    naive = visits_of(trace, block_size)
    visits = cache_visits(trace, block_size)
    optimum, lru = OptimalReuse(visits), LruReuse(visits)
    for capacity in (0, 1, 2, 3, 5, 8, 13, 40, 100, 1000):
        hits = optimum.hits(capacity)
        assert hits == foreseen_hits(naive, capacity)
        assert hits >= lru.hits(capacity)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 3),
)
def test_no_cache_hits_more_than_the_optimum_whatever_it_keeps(
    prompts: list[tuple[list[str], int]], capacity: int
) -> None:
    """All choices are tried. Prompts are as long as their blocks, or longer by some tokens."""
    visits = [
        Visit(
            [tuple(names[: end + 1]) for end in range(len(names))],
            len(names) if tokens_behind else len(names) - 1,
            [],
        )
        for names, tokens_behind in prompts
    ]
    trace = trace_of_names(prompts)
    assert OptimalReuse(cache_visits(trace, 4)).hits(capacity) == best_hits(visits, capacity)


def trace_of_names(prompts: Sequence[tuple[list[str], int]]) -> Trace:
    """Prompts of blocks of 4 tokens, and some tokens of their own behind them."""
    rows = [
        [*map(ord, names), *([1000 + row] if behind else [])]
        for row, (names, behind) in enumerate(prompts)
    ]
    return Trace(
        arrival_ms=np.zeros(len(rows)),
        input_tokens=np.array([4 * len(names) + behind for names, behind in prompts]),
        output_tokens=np.ones(len(rows), np.int64),
        hash_ids=np.array([value for row in rows for value in row], np.int64),
        hash_offsets=np.cumsum([0, *map(len, rows)]),
        trace_block_size=4,
    )


@settings(max_examples=60, deadline=None)
@given(SEEDS, BLOCK_SIZES)
def test_with_room_for_all_every_policy_hits_what_earlier_prompts_had(
    seed: int, block_size: int
) -> None:
    trace = random_trace(random.Random(seed))
    cached = engine_cached_tokens(shared_prefixes(trace)[1], trace.input_tokens, block_size)
    visits = cache_visits(trace, block_size)
    lru = LruReuse(visits)
    room = lru.working_set_blocks
    assert (lru.hits_of_requests(room) * block_size).tolist() == cached.tolist()
    assert OptimalReuse(visits).hits(room) == lru.hits(room)
    if room:
        assert lru.hits(room - 1) < lru.hits(room)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.01, 1.0))
def test_the_capacity_for_some_hits_is_the_smallest(seed: int, share: float) -> None:
    visits = cache_visits(random_trace(random.Random(seed)), 8)
    lru, optimum = LruReuse(visits), OptimalReuse(visits)
    wanted = int(share * lru.hits(lru.working_set_blocks))
    at_most = lru.capacity_for(wanted)
    for capacity, hits in (
        (at_most, lru.hits),
        (optimum.capacity_for(wanted, at_most=at_most), optimum.hits),
    ):
        assert hits(capacity) >= wanted
        assert capacity == 0 or hits(capacity - 1) < wanted


def mooncake(rows: int) -> Trace:
    return read_trace(shared_path("traces/mooncake_conversation.jsonl.gz"), limit=rows)


@pytest.mark.parametrize("block_size", [512, 768])
def test_of_a_recorded_trace_as_well_at_every_size_and_policy(block_size: int) -> None:
    trace = mooncake(1500)
    naive = visits_of(trace, block_size)
    visits = cache_visits(trace, block_size)
    single = cache_visits(trace, block_size, single_blocks=True)
    lru, optimum = LruReuse(visits), OptimalReuse(visits)
    for capacity in (100, 1000, 5000):
        hits = sum(hits_of(naive, NaiveLru(capacity)))
        assert 0 < hits == lru.hits(capacity) == tier_hits(single, capacity, "lru").sum()
        assert hits <= optimum.hits(capacity)
    on_device = lru.hits_of_requests(1000)
    for policy, capacity in (("lru", 4000), ("arc", 4000), ("arc", 1500)):
        expected = hits_by_tier(naive, NaiveLru(1000), naive_tier(policy, capacity))
        found = tier_hits(single, capacity, policy, on_device)
        assert (on_device.tolist(), found.tolist()) == expected


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_requests_that_come_alone_find_what_the_model_says(seed: int) -> None:
    """But for two blocks, which hold what a request has beyond full ones, and second copies: of the
    blocks that end a prompt, which are computed again."""
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = replace(random_spec(rng, trace), enable_prefix_caching=True)
    alone = trace.at(np.arange(len(trace)) * 1e9)
    result = simulate(alone, equal_workers(spec, random_timing(rng, spec), num_workers=1), OPTIONS)
    lru = LruReuse(cache_visits(trace, spec.block_size))
    found = int(result.requests.cached_tokens.sum()) // spec.block_size
    room = int(result.workers.usable_blocks[0])
    copies = int((trace.input_tokens % spec.block_size == 0).sum())
    assert lru.hits(max(room - 2 - copies, 0)) <= found <= lru.hits(room)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_no_run_finds_more_than_foresight_would(seed: int) -> None:
    """Whatever places requests, preempts and rejects them, and whoever is cut off."""
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = random_spec(rng, trace)
    timing = random_timing(rng, spec)
    cluster = equal_workers(
        spec, timing, num_workers=rng.randint(1, 3), routing=random_routing(rng, spec)
    )
    result = simulate(trace, cluster, RunOptions(until_ms=rng.choice([None, None, 1200.0])))
    completed = result.requests.status == RequestStatus.COMPLETED
    tokens = int(result.requests.input_tokens[completed].sum())
    bound = reuse_bound(result, trace)
    assert bound["capacity_blocks"] == result.workers.usable_blocks.sum()
    if not tokens:
        assert (bound["lru"], bound["optimal"], bound["endless"]) == (None, None, None)
        return
    reused = int(result.requests.cached_tokens[completed].sum()) / tokens
    assert reused <= bound["optimal"] + 1e-12
    assert bound["lru"] <= bound["optimal"] <= bound["endless"]


def test_a_cache_is_as_large_as_all_workers_at_one_time() -> None:
    workers = replace(
        WorkerLog.equal(3, usable_blocks=10),
        usable_blocks=np.array([10, 20, 40]),
        launched_ms=np.array([0.0, 0.0, 50.0]),
        ended_ms=np.array([np.nan, 50.0, 80.0]),
    )
    assert most_blocks(workers) == 50


def run_of(trace: Trace) -> RunResult:
    """One worker with room for all, in blocks of 4 tokens."""
    spec = replace(random_spec(random.Random(0), trace), block_size=4, num_gpu_blocks=100)
    timing = random_timing(random.Random(0), spec)
    return simulate(trace, equal_workers(spec, timing, num_workers=1), OPTIONS)


def test_of_one_step_the_shorter_prompt_is_scheduled_first() -> None:
    """Whatever the order of rows; so the longer one finds all of it, and no run finds more."""
    rows = [(["a", "b", "a"], 1), (["a", "b"], 0)]
    for prompts in (rows, rows[::-1]):
        trace = trace_of_names(prompts)
        result = run_of(trace)
        log = replace(result.requests, scheduled_ms=np.zeros(2))
        assert reuse_bound(replace(result, requests=log), trace)["endless"] == 8 / 21


def test_who_is_not_completed_has_no_hits_and_leaves_blocks_to_others() -> None:
    trace = trace_of_names([(["a"], 1), (["a", "b"], 1), (["a", "b"], 2)])
    result = run_of(trace)
    status = np.array([RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.COMPLETED])
    log = replace(result.requests, scheduled_ms=np.array([0.0, 9.0, 9.0]), status=status)
    assert reuse_bound(replace(result, requests=log), trace)["endless"] == 8 / (5 + 10)


def test_prompts_of_which_nothing_is_known_share_nothing() -> None:
    trace = replace(
        trace_of_names([(["a"], 0), (["a"], 0)]),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(3, np.int64),
    )
    bound = reuse_bound(run_of(trace), trace)
    assert (bound["lru"], bound["optimal"], bound["endless"]) == (0, 0, 0)
