"""Laws of caches that heed what requests say of their blocks."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
from clusters import run_twin
from hypothesis import example, given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from strategies import bounded_spec, random_routing, random_timing, random_trace, with_sessions
from test_disagg_laws import clusters, traces
from test_ranks import drawn, with_ranks

from dynosim.blocks.retention import block_claims, claims_of
from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.engine.kv_cache import KvCache
from dynosim.engine.ranks import ONE_RANK
from dynosim.engine.retaining_pool import RetainingPool
from dynosim.engine.sequence import Sequence
from dynosim.metrics import check_conservation
from dynosim.records import Retention, RetentionRange, Trace
from dynosim.workload.extents import prefix_extents

SEEDS = st.integers(0, 2**32 - 1)
BLOCK = 4


def random_retention(rng: random.Random, tokens: int) -> Retention | None:
    """Any kind of directive, for a request of about so many tokens; often none."""
    if rng.random() < 0.3:
        return None
    ranges: list[RetentionRange] = []
    start = rng.choice([0, 0, rng.randint(0, tokens)])
    while rng.random() < 0.6:
        end = None if rng.random() < 0.2 else start + rng.randint(1, tokens)
        duration_ms = rng.choice([None, None, rng.uniform(1, 300), rng.uniform(1, 3000)])
        ranges.append(RetentionRange(start, end, rng.choice([0, 1, 35, 80, 100]), duration_ms))
        if end is None:
            break
        start = end + rng.choice([0, 0, rng.randint(0, 20)])
    pin_ttl_ms = rng.uniform(1, 2000) if rng.random() < 0.15 else None
    ends = pin_ttl_ms is not None and int(pin_ttl_ms) % 2 == 0
    return Retention(
        tuple(ranges),
        pin_ttl_ms,
        is_ephemeral=rng.random() < 0.15,
        pin_ends_with_session=ends,
    )


def with_retention(rng: random.Random, trace: Trace) -> Trace:
    return replace(
        trace,
        retention=tuple(random_retention(rng, int(tokens)) for tokens in trace.input_tokens),
    )


# ---- one pool against the plain way of keeping it ------------------------------------------------


@dataclass(eq=False)
class NaiveBlock:
    """A cached block: who uses it, what was claimed of it, and since when it is idle, as it is."""

    chain: tuple[int, ...]
    users: int = 1
    claims: list[tuple[int, float, int]] = field(default_factory=list)  # (level, until, session)
    level: int = 35
    stamp: tuple[int, int] = (0, 0)

    def level_at(self, now_ms: float) -> int:
        """A claim counts until its time is over, and as the default from then on."""
        return max(level if now_ms < until_ms else 35 for level, until_ms, _ in self.claims)


class NaiveCache:
    """Blocks one by one, and a search through all of them for every block to evict."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.blocks: list[NaiveBlock] = []  # of several of one content the oldest is found
        self.private_blocks = 0  # of requests, never cached
        self.count = 0
        self.now_ms = 0.0
        self.of_sessions: dict[int, list[NaiveBlock]] = {}

    def hits(self, chain: tuple[int, ...]) -> list[NaiveBlock]:
        found: list[NaiveBlock] = []
        for depth in range(len(chain)):
            here = [block for block in self.blocks if block.chain == chain[: depth + 1]]
            if not here:
                break
            found.append(here[0])
        return found

    def is_stranded(self, chain: tuple[int, ...]) -> bool:
        """Whether some of a prompt is cached behind what is not."""
        here = sum(
            any(b.chain == chain[:end] for b in self.blocks) for end in range(1, len(chain) + 1)
        )
        return here > len(self.hits(chain))

    def admit(self, chain: tuple[int, ...], tail_blocks: int) -> list[NaiveBlock]:
        held = self.hits(chain)
        for block in held:
            block.users += 1
        for _ in range(len(chain) - len(held) + tail_blocks):
            if len(self.blocks) + self.private_blocks == self.num_blocks:
                idle = [block for block in self.blocks if block.users == 0]
                self.blocks.remove(min(idle, key=lambda block: (block.level, block.stamp)))
            self.private_blocks += 1
        for depth in range(len(held), len(chain)):
            self.private_blocks -= 1
            block = NaiveBlock(chain[: depth + 1])
            # An extent's blocks share what was claimed, also those that were gone for a while.
            if depth and chain[depth] // 10 == chain[depth - 1] // 10:
                block.claims = list(held[-1].claims)
            held.append(block)
            self.blocks.append(block)
        return held

    def release(
        self,
        held: list[NaiveBlock],
        tail_blocks: int,
        retention: Retention | None,
        session: int,
        now_ms: float,
    ) -> None:
        self.private_blocks -= tail_blocks
        self.count += 1
        said = retention or Retention()
        if said.is_ephemeral or said.pin_ends_with_session:
            self.of_sessions[session] = self.of_sessions.get(session, []) + held
        for depth, block in enumerate(held):
            block.users -= 1
            level, duration_ms = (-1 if said.is_ephemeral else 35), inf
            for span in said.ranges:
                if span.start <= depth * BLOCK < (inf if span.end is None else span.end):
                    level = span.priority
                    duration_ms = inf if span.duration_ms is None else span.duration_ms
            block.claims.append((level, now_ms + duration_ms, -1))
            if said.pin_ttl_ms is not None:
                until = session if said.pin_ends_with_session else -1
                block.claims.append((101, now_ms + said.pin_ttl_ms, until))
            if block.users == 0:
                block.level = block.level_at(now_ms)
                block.stamp = (self.count, -depth)

    def at(self, now_ms: float) -> None:
        """Levels fall at their times, one after the other; who falls is the last of its level."""
        idle = [block for block in self.blocks if block.users == 0]
        ends = {until_ms for block in idle for _, until_ms, _ in block.claims}
        for until_ms in sorted(end for end in ends if self.now_ms < end <= now_ms):
            due = [block for block in idle if block.level != block.level_at(until_ms)]
            for stamp in sorted({block.stamp[0] for block in due}):
                self.count += 1
                for block in due:
                    if block.stamp[0] == stamp:
                        block.level = block.level_at(until_ms)
                        block.stamp = (self.count, block.stamp[1])
        self.now_ms = now_ms

    def end_session(self, session: int) -> None:
        """Its pins are as if they had never been, unless their time is over already."""
        blocks = self.of_sessions.pop(session, [])
        extents = list(dict.fromkeys(block.chain[-1] // 10 for block in reversed(blocks)))
        shared = [block for block in self.blocks if block.chain[-1] // 10 in extents]
        shared.sort(key=lambda one: (extents.index(one.chain[-1] // 10), -one.chain[-1]))
        for block in shared:
            left = [one for one in block.claims if one[2] != session or one[1] <= self.now_ms]
            has_ended, block.claims = len(left) < len(block.claims), left
            if has_ended and block.users == 0:
                self.count += 1
                block.level = block.level_at(self.now_ms)
                block.stamp = (self.count, block.stamp[1])
        for block in blocks:
            if block in self.blocks and block.users == 0 and block.level == -1:
                self.blocks.remove(block)


class Tree:
    """Prompts as chains of extents; a content is an extent, named by the contents above it."""

    def __init__(self, rng: random.Random) -> None:
        self.has_long_extents = rng.random() < 0.6
        self.sizes: list[int] = []
        self.below: dict[int, list[int]] = {}
        self._grow(rng, -1, 3)

    def _grow(self, rng: random.Random, content: int, levels: int) -> None:
        for _ in range(rng.randint(1, 3) if levels else 0):
            child = len(self.sizes)
            self.sizes.append(rng.randint(1, 3) if self.has_long_extents else 1)
            self.below.setdefault(content, []).append(child)
            self._grow(rng, child, levels - 1)

    def path(self, rng: random.Random) -> list[int]:
        path: list[int] = []
        at = -1
        while self.below.get(at) and (not path or rng.random() < 0.8):
            at = rng.choice(self.below[at])
            path.append(at)
        return path


def cached(pool: RetainingPool) -> dict[int, int]:
    return {content: blocks for content, blocks in pool.resident_blocks.items() if blocks}


def naive_cached(naive: NaiveCache) -> dict[int, int]:
    counts = Counter(chain[-1] // 10 for chain in {block.chain for block in naive.blocks})
    return dict(counts)


def directives(rng: random.Random, tree: Tree, path: list[int]) -> Retention | None:
    """Ranges that begin and end where extents do, as the twin's extents are cut."""
    ends = [0]
    for content in path:
        ends.append(ends[-1] + tree.sizes[content] * BLOCK)
    said = random_retention(rng, ends[-1])
    if said is None:
        return None
    cuts = sorted(rng.sample(ends, rng.randint(0, len(ends))))
    ranges = tuple(
        RetentionRange(start, end, rng.choice([0, 1, 35, 80, 100]), rng.choice([None, 3.0, 40.0]))
        for start, end in pairwise(cuts)
    )
    return replace(said, ranges=ranges)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_pool_evicts_what_a_search_through_all_blocks_finds(seed: int) -> None:
    rng = random.Random(seed)
    tree = Tree(rng)
    num_blocks = rng.randint(14, 40)
    pool = RetainingPool(num_blocks, tree.sizes, publish_events=True)
    cache = KvCache(pool, BLOCK, has_prefix_caching=True)
    naive = NaiveCache(num_blocks)
    held: list[tuple[Sequence, list[NaiveBlock], int, Retention | None]] = []
    now_ms, stored = 0.0, 0
    for number in range(60):
        now_ms += rng.choice([0.0, rng.uniform(0, 30), 3.0])
        pool.at(now_ms)
        naive.at(now_ms)
        if held and rng.random() < 0.5:
            sequence, blocks, tail, said = held.pop(rng.randrange(len(held)))
            session = rng.randint(0, 2)
            sequence.claims = said and block_claims(
                said,
                [tree.sizes[content] for content in sequence.path],
                BLOCK,
                sequence.prompt_tokens,
                session=session,
            )
            cache.release(sequence)
            naive.release(blocks, tail, said, session, now_ms)
            if rng.random() < 0.2:
                pool.end_session(session)
                naive.end_session(session)
        else:
            path = tree.path(rng)
            names = [content * 10 + i for content in path for i in range(tree.sizes[content])]
            chain, tail = tuple(names), 1
            sequence = Sequence(number, len(chain) * BLOCK + 1, 1, path, len(chain))
            hit = cache.lookup(sequence)
            assert hit.path_blocks == len(naive.hits(chain))
            if tree.has_long_extents and naive.is_stranded(chain):
                continue  # copies of a part are single blocks' business
            if hit.idle_blocks + len(chain) + tail - hit.path_blocks > pool.free_blocks:
                continue
            cache.take_hit(sequence, hit)
            pool.allocate(len(chain) + tail - hit.path_blocks)
            sequence.num_computed = sequence.prompt_tokens
            cache.register(sequence, sequence.prompt_tokens)
            blocks = naive.admit(chain, tail)
            held.append((sequence, blocks, tail, directives(rng, tree, path)))
        assert cached(pool) == naive_cached(naive)
        for event in pool.take_events():
            stored += event.num_blocks if event.is_stored else -event.num_blocks
        assert stored == len(naive.blocks)
        idle = sum(block.users == 0 for block in naive.blocks)
        assert pool.idle_blocks == idle
        assert pool.blank_blocks == num_blocks - len(naive.blocks) - naive.private_blocks
        pinned = [b for b in naive.blocks if b.users == 0 and b.level == 101]
        assert pool.pinned_blocks == len(pinned) <= pool.peak_pinned_blocks


# ---- whole runs ----------------------------------------------------------------------------------


def some_run(seed: int) -> tuple[Trace, dict[str, Any]]:
    rng = random.Random(seed)
    trace = random_trace(rng)
    if rng.random() < 0.3:
        trace = with_sessions(rng, trace)
    spec = bounded_spec(rng, trace)
    if rng.random() < 0.2:
        spec = replace(spec, reuse_granularity_tokens=spec.block_size * rng.randint(1, 4))
    timing = random_timing(rng, spec)
    return with_retention(rng, trace), {
        "engine": spec,
        "timing": timing,
        "num_workers": rng.choice([1, 1, 2]),
        "routing": random_routing(rng, spec),
        "client_timeout_ms": rng.choice([None, None, rng.uniform(50, 2000)]),
    }


@given(SEEDS)
@example(514)  # the beginning of what the head of the queue hits is evicted, and it fits
@example(632)
@settings(max_examples=60, deadline=None)
def test_bulk_stepping_equals_single_steps_with_directives(seed: int) -> None:
    trace, options = some_run(seed)
    bulk = run_twin(trace, **options)
    single = run_twin(trace, **options, exact_stepping=True)
    assert_same(bulk, single)
    assert bulk.retention == single.retention
    check_conservation(bulk, trace)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_extents_end_where_directives_and_reuse_part_them(seed: int) -> None:
    rng = random.Random(seed)
    trace = with_retention(rng, random_trace(rng))
    size, reuse_blocks = rng.choice([4, 16, 24]), rng.choice([1, 2, 3])
    extents = prefix_extents(trace, size, reuse_blocks=reuse_blocks)
    plain = prefix_extents(replace(trace, retention=None), size)
    np.testing.assert_array_equal(extents.path_blocks, plain.path_blocks)
    assert extents.extent_blocks.sum() == plain.extent_blocks.sum()
    for row, said in enumerate(trace.retention or ()):
        path = extents.path[extents.path_offsets[row] : extents.path_offsets[row + 1]]
        ends = np.concatenate([[0], np.cumsum(extents.extent_blocks[path])])
        assert ends[-1] == extents.path_blocks[row]
        assert reuse_blocks == 1 or set(range(0, int(ends[-1]), reuse_blocks)) <= set(ends.tolist())
        for first, end in zip(ends.tolist(), ends[1:].tolist(), strict=False):
            claims = {claims_of(said or Retention(), b * size, is_pinned=False)
                      for b in range(first, end)}  # fmt: skip
            assert len(claims) == 1


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_directives_that_ask_for_the_default_change_nothing(seed: int) -> None:
    trace, options = some_run(seed)
    plain = run_twin(replace(trace, retention=None), **options)
    said = Retention((RetentionRange(0, None, 35, 10.0),))
    said_trace = replace(trace, retention=(said,) * len(trace))
    same = run_twin(said_trace, **options, exact_stepping=True)
    assert_same(plain, same)
    assert same.retention is not None
    assert (same.retention.peak_pinned_blocks, same.retention.broken_blocks) == (0, 0)


@given(traces(), clusters(), SEEDS)
@settings(max_examples=25, deadline=None)
def test_pools_that_hand_over_go_in_bulk_as_singly_with_directives(
    trace: Trace, cluster: ClusterSpec, seed: int
) -> None:
    said = with_retention(random.Random(seed), trace)
    bulk = simulate(said, cluster)
    single = simulate(said, cluster, RunOptions(exact_stepping=True))
    assert_same(bulk, single)
    assert bulk.retention == single.retention
    check_conservation(bulk, said)


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_one_rank_in_lock_step_is_a_plain_engine_with_directives(seed: int) -> None:
    trace, cluster = drawn(seed, in_lock_step=True, number=1)
    said = with_retention(random.Random(seed), trace)
    plain = with_ranks(cluster, ONE_RANK)
    ours = simulate(said, cluster)
    theirs = simulate(said, plain, RunOptions(exact_stepping=True))
    np.testing.assert_array_equal(ours.requests.cached_tokens, theirs.requests.cached_tokens)
    assert ours.retention == theirs.retention
