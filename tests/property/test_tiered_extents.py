"""Extents in slower tiers: as sets of blocks, as hash indexes see them, and as routers use them."""

import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_spec, random_trace

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import SLOWER, Tier
from dynosim.cluster.block_names import ExtentNames, HashNames, PromptNames
from dynosim.cluster.frontends import FrontendRouter, extent_frontend, hash_frontend
from dynosim.engine.sequence import Sequence
from dynosim.engine.vllm import VllmScheduler
from dynosim.indexer.make import DEVICE_INDEXES, make_indexer
from dynosim.indexer.tiered_extents import TieredExtents
from dynosim.records import Trace
from dynosim.router.decision import Decision
from dynosim.router.knobs import CostSpec, RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.recorder import RouterLog
from dynosim.router.log.replay import replay_entry
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard
from dynosim.testing.index import check_shape
from dynosim.workload.extents import PrefixExtents, prefix_extents

SEEDS = st.integers(0, 2**32 - 1)
SIZES = [2, 3, 1, 4]
NUM_WORKERS = 3
Block = tuple[Tier, int, int, int]  # tier, worker, extent, place


# ---- sets of blocks ------------------------------------------------------------------------------


def tier_event(draw: random.Random) -> KvEvent:
    tier = draw.choice([Tier.DEVICE, *Tier])
    content = draw.choice([-1, *range(len(SIZES)), *range(len(SIZES))])
    if content < 0:
        return KvEvent(draw.random() < 0.7, content, 0, draw.randint(1, 4), None, tier)
    first = draw.choice([0, draw.randrange(SIZES[content])])
    num_blocks = draw.choice([SIZES[content] - first, draw.randint(1, SIZES[content] - first)])
    return KvEvent(draw.random() < 0.65, content, first, num_blocks, None, tier)


class NaiveTiers:
    """All blocks that are held, one by one. On a device a block needs the one before it."""

    def __init__(self) -> None:
        self.held: set[Block] = set()
        self.private = dict.fromkeys(range(NUM_WORKERS), 0)
        self.num_unknown = 0

    def apply(self, worker: int, event: KvEvent) -> None:
        tier, content, first = event.tier, event.content, event.first_block
        if content < 0:
            self.private[worker] += event.num_blocks if event.is_stored else -event.num_blocks
            return
        blocks = {
            (tier, worker, content, place) for place in range(first, first + event.num_blocks)
        }
        if not event.is_stored:
            self.num_unknown += len(blocks - self.held)
            self.held -= blocks
        elif tier or not first or (tier, worker, content, first - 1) in self.held:
            self.held |= blocks

    def depths(self, worker: int, path: list[int]) -> list[int]:
        """Leading blocks on the device, then further ones by tier."""
        places = [(content, place) for content in path for place in range(SIZES[content])]
        depths: list[int] = []
        reached = 0
        for tier in Tier:
            start = reached
            while reached < len(places) and (tier, worker, *places[reached]) in self.held:
                reached += 1
            depths.append(reached - start)
        return depths

    def leave(self, worker: int) -> None:
        self.held = {block for block in self.held if block[1] != worker}
        self.private[worker] = 0


@settings(max_examples=120, deadline=None)
@given(SEEDS)
def test_tiers_of_extents_are_sets_of_blocks(seed: int) -> None:
    draw = random.Random(seed)
    index, naive = TieredExtents(SIZES), NaiveTiers()
    for _ in range(draw.randint(1, 40)):
        worker = draw.randrange(NUM_WORKERS)
        if draw.random() < 0.03:
            index.remove_worker(worker)
            naive.leave(worker)
        events = [tier_event(draw) for _ in range(draw.randint(1, 3))]
        if draw.random() < 0.5:
            index.apply_all(worker, events)
        else:
            for event in events:
                index.apply(worker, event)
        for event in events:
            naive.apply(worker, event)
        path = draw.sample(range(len(SIZES)), draw.randint(0, len(SIZES)))
        found = index.find_tier_matches(path)
        for overlaps in found[1:]:
            check_shape(overlaps)
        for worker in range(NUM_WORKERS):
            assert [part.depth_of(worker) for part in found] == naive.depths(worker, path)
        assert index.find_matches(path).by_worker() == found.device.by_worker()
        assert index.size == len(naive.held) + sum(naive.private.values())
        assert index.counters.unknown_blocks == naive.num_unknown
    for worker in range(NUM_WORKERS):
        index.remove_worker(worker)
    assert index.size == 0


# ---- engines with slower tiers -------------------------------------------------------------------


@dataclass
class Offload:
    """Slower tiers of one engine, which copy what they please, whenever they please."""

    draw: random.Random
    parents: dict[int, int | None] = field(default_factory=dict)  # extent -> the one before it
    held: dict[Tier, set[tuple[int, int]]] = field(
        default_factory=lambda: {tier: set() for tier in SLOWER}
    )

    def after(self, event: KvEvent) -> list[KvEvent]:
        """What the slower tiers do on an event of the device."""
        if event.is_stored:
            self.parents[event.content] = event.parent
        events: list[KvEvent] = []
        first = self.draw.randrange(event.num_blocks)
        count = self.draw.randint(1, event.num_blocks - first)
        kind = self.draw.random()
        if kind < 0.4:
            events += self._store(Tier.HOST, event.content, event.first_block + first, count)
        elif kind < 0.6:  # block by block from the end, as evictions go
            for place in reversed(range(first, first + count)):
                events += self._store(Tier.HOST, event.content, event.first_block + place, 1)
        for tier in SLOWER:
            if self.draw.random() < 0.5:
                events += self._move_on(tier)
        return events

    def _move_on(self, tier: Tier) -> list[KvEvent]:
        """A tier lets go of a block, to the next one or for good."""
        if not self.held[tier]:
            return []
        content, place = self.draw.choice(sorted(self.held[tier]))
        self.held[tier].remove((content, place))
        events = [KvEvent(False, content, place, 1, None, tier)]
        if tier is not Tier.REMOTE and self.draw.random() < 0.8:
            events += self._store(Tier(tier + 1), content, place, 1)
        return events

    def _store(self, tier: Tier, content: int, first: int, count: int) -> list[KvEvent]:
        blocks = {(content, place) for place in range(first, first + count)}
        if content < 0 and blocks & self.held[tier]:
            return []  # of those an index knows only the number
        self.held[tier] |= blocks
        return [KvEvent(True, content, first, count, self.parents[content], tier)]


class Engines:
    """Two schedulers with slower tiers that serve a trace, in some order."""

    def __init__(self, rng: random.Random, trace: Trace) -> None:
        self.rng = rng
        self.trace = trace
        spec = replace(random_spec(rng, trace), enable_prefix_caching=True, async_scheduling=False)
        needed = -(-spec.max_model_len // spec.block_size)
        spec = self.spec = replace(spec, num_gpu_blocks=needed + rng.choice([1, needed]))
        is_capped = spec.long_prefill_token_threshold > 0
        self.extents = prefix_extents(trace, spec.block_size, single_blocks=is_capped)
        self.sizes: list[int] = self.extents.extent_blocks.tolist()
        self._schedulers = [
            VllmScheduler(spec, self.sizes, keep_rows=True, publish_events=True) for _ in range(2)
        ]
        self._offloads = [Offload(rng), Offload(rng)]

    def add(self, worker: int, index: int) -> None:
        """Give a request to one of them."""
        tokens = int(self.trace.input_tokens[index])
        room = self.spec.max_model_len - tokens
        if room > 0:
            path = path_of(self.extents, index)
            output = min(int(self.trace.output_tokens[index]), room)
            blocks = int(self.extents.path_blocks[index]) if path else 0
            self._schedulers[worker].add(Sequence(index, tokens, output, path, blocks))

    def step(self) -> tuple[int, list[KvEvent]]:
        """Let one of them do something; returns who, and what it publishes."""
        worker = self.rng.randrange(2)
        scheduler = self._schedulers[worker]
        if scheduler.has_work:
            scheduler.finish_step(scheduler.plan_step())
        events: list[KvEvent] = []
        for event in scheduler.take_events():
            events += [event, *self._offloads[worker].after(event)]
        return worker, events


def path_of(extents: PrefixExtents, index: int) -> list[int]:
    path = extents.path[extents.path_offsets[index] : extents.path_offsets[index + 1]]
    found: list[int] = path.tolist()
    return found


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(list(DEVICE_INDEXES)))
def test_extents_and_blocks_tell_the_same_of_every_tier(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng)
    engines = Engines(rng, trace)
    names = HashNames(trace, engines.extents, engines.spec.block_size)
    by_extent = TieredExtents(engines.sizes)
    by_block: Any = make_indexer(kind, expects_slower=True)
    waiting = list(range(len(trace)))
    for _ in range(200):
        if waiting and rng.random() < 0.3:
            engines.add(rng.randrange(2), waiting.pop())
        worker, events = engines.step()
        by_extent.apply_all(worker, events)
        for event in events:
            by_block.apply(worker, names.event(event))
        asked = rng.randrange(len(trace))
        ones = by_extent.find_tier_matches(path_of(engines.extents, asked))
        others = by_block.find_tier_matches(names.of(asked)[0])
        assert [part.by_worker() for part in ones] == [part.by_worker() for part in others]
    if by_block.counters.unknown_parents == 0:  # else a block index misses private blocks, too
        assert by_extent.size == by_block.size


# ---- routers -------------------------------------------------------------------------------------


def routed(frontend: FrontendRouter, names: PromptNames, engines: Engines) -> list[Decision]:
    """All requests of the trace, placed while the engines are at work."""
    trace, block_size = engines.trace, engines.spec.block_size
    for worker_id in range(2):
        frontend.router.add_worker(WorkerCard(worker_id, block_size))
    decisions: list[Decision] = []
    for index in range(len(trace)):
        for _ in range(4):
            worker_id, events = engines.step()
            frontend.feed(worker_id, events, float(index))
        blocks, keys = names.of(index)
        tokens = int(trace.input_tokens[index])
        request = RoutingRequest(index, tokens, tokens // block_size, blocks, keys)
        decision = frontend.submit(request, float(index))
        assert decision is not None
        decisions.append(decision)
        engines.add(decision.worker_id, index)
        if index >= 3:
            frontend.free(index - 3, float(index))
    return decisions


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([CostSpec(), CostSpec(host_cache_hit_weight=2.0)]))
def test_extents_and_blocks_route_alike_over_tiers(seed: int, cost: CostSpec) -> None:
    """By plain costs, and where a weight above 1 could drive prefill below 0; logs say the same."""
    trace = random_trace(random.Random(seed))

    def engines() -> Engines:
        return Engines(random.Random(seed), trace)

    made = engines()
    spec = RouterSpec(made.spec.block_size, mode="kv", cost=cost, seed=3)
    extent_names = ExtentNames(made.extents)
    hash_names = HashNames(trace, made.extents, made.spec.block_size)
    by_extent = KvRouter(spec, TieredExtents(made.sizes), key_blocks=extent_names.key_blocks)
    by_block = KvRouter(spec, make_indexer("compressed", expects_slower=True))
    entries: list[Any] = []
    logged = RouterLog(
        KvRouter(spec, TieredExtents(made.sizes), key_blocks=extent_names.key_blocks),
        entries.append,
    )
    ones = routed(extent_frontend(by_extent), extent_names, engines())
    others = routed(hash_frontend(by_block, hash_names), hash_names, engines())
    assert ones == others
    assert routed(extent_frontend(logged), extent_names, engines()) == ones
    again = KvRouter(spec, TieredExtents(made.sizes), key_blocks=extent_names.key_blocks)
    for worker_id in range(2):
        again.add_worker(WorkerCard(worker_id, made.spec.block_size))
    answers = [replay_entry(again, entry) for entry in entries if entry[0] != "join"]
    assert all(logged == derived for logged, derived in answers)
    assert sum(logged is not None for logged, _ in answers) == len(trace)


def test_a_cheap_seed_meets_all_tiers() -> None:
    """What the tests above draw is not empty."""
    seen = np.zeros(len(Tier), int)
    for seed in range(12):
        rng = random.Random(seed)
        trace = random_trace(rng)
        engines = Engines(rng, trace)
        index = TieredExtents(engines.sizes)
        for number in range(200):
            if number % 3 == 0 and number // 3 < len(trace):
                engines.add(rng.randrange(2), number // 3)
            index.apply_all(*engines.step())
            asked = path_of(engines.extents, rng.randrange(len(trace)))
            seen += [bool(part.classes) for part in index.find_tier_matches(asked)]
    assert (seen > 5).all(), seen
