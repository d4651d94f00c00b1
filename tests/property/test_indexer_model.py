"""Tiers, extents, baselines and counters of the indexes, each against sets of blocks."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_caches import Chain, ToldCaches
from test_indexers_agree import NUM_WORKERS, Stream, exact_indexes, follow, random_prompt
from test_indexers_agree import random_stream as device_stream

from dynosim.blocks.hashing import sequence_hashes
from dynosim.indexer.base import BlockEvent, Cleared, Overlaps, Removed, Stored, Tier, members
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.make import make_indexer
from dynosim.indexer.naive import InvertedIndex, NaiveIndex
from dynosim.indexer.positional import PositionalIndex
from dynosim.indexer.radix import RadixIndex
from dynosim.indexer.tiers import TieredIndex
from dynosim.records import KvEvent

SEEDS = st.integers(0, 2**32 - 1)
KINDS = ("radix", "compressed", "positional", "positional-binary")


def check_shape(overlaps: Overlaps) -> None:
    """Disjoint sets of workers, depths from 1 on and increasing; questions answered alike."""
    depths = [depth for _, depth in overlaps.classes]
    assert depths == sorted(set(depths)) and all(depth >= 1 for depth in depths)
    everybody = [worker for mask, _ in overlaps.classes for worker in members(mask)]
    assert len(everybody) == len(set(everybody)) and all(mask for mask, _ in overlaps.classes)
    by_worker = overlaps.by_worker()
    assert sorted(by_worker) == sorted(everybody)
    assert [overlaps.depth_of(w) for w in range(70)] == [by_worker.get(w, 0) for w in range(70)]
    assert overlaps.best_depth == max(by_worker.values(), default=0)


# ---- counters ------------------------------------------------------------------------------------


class Counted:
    """What happens to the blocks of a stream, counted one by one."""

    def __init__(self) -> None:
        self.held: set[tuple[int, int]] = set()
        self.stored = self.duplicates = self.removed = self.unknown = self.orphans = 0

    def apply(self, worker: int, event: BlockEvent | None) -> None:
        if isinstance(event, Stored):
            if event.parent is not None and (worker, event.parent) not in self.held:
                self.orphans += 1
                return
            for name in event.block_hashes:
                is_known = (worker, name) in self.held
                self.duplicates += is_known
                self.stored += not is_known
                self.held.add((worker, name))
        elif isinstance(event, Removed):
            for name in event.block_hashes:
                is_known = (worker, name) in self.held
                self.removed += is_known
                self.unknown += not is_known
                self.held.discard((worker, name))
        else:
            self.held = {pair for pair in self.held if pair[0] != worker}


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_every_block_that_comes_and_goes_is_counted(seed: int) -> None:
    draw = random.Random(seed)
    stream: Stream = device_stream(draw)
    indexes, counted = exact_indexes(), Counted()
    num_asked = 0
    for number, (worker, event) in enumerate(stream):
        counted.apply(worker, event)
        prompt = list(random_prompt(draw))
        num_asked += len(prompt)
        for index in indexes:
            follow(index, worker, event)
            check_shape(index.find_matches(prompt))
            found = index.counters
            assert (found.stored_blocks, found.duplicate_blocks, found.removed_blocks) == (
                counted.stored, counted.duplicates, counted.removed,
            )  # fmt: skip
            assert (found.unknown_blocks, found.unknown_parents) == (
                counted.unknown, counted.orphans,
            )  # fmt: skip
            assert (found.queries, found.query_blocks) == (number + 1, num_asked)
            assert index.size == len(counted.held)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from(["naive", "inverted"]))
def test_the_baselines_look_at_content_alone(seed: int, kind: str) -> None:
    """Whatever comes before a block: a chunk held anywhere counts."""
    draw = random.Random(seed)
    index, copy = make_indexer(kind), make_indexer(kind)
    content: dict[tuple[int, int], int] = {}  # (worker, name) -> content
    counts = [0, 0, 0, 0]  # stored, told again, removed, unknown
    for worker, event in device_stream(draw):
        follow(index, worker, event)
        if isinstance(event, Stored):
            for name, local in zip(event.block_hashes, event.local_hashes, strict=True):
                counts[(worker, name) in content] += 1
                content[worker, name] = local
        elif isinstance(event, Removed):
            names = set(event.block_hashes) if kind == "naive" else event.block_hashes
            for name in names:
                counts[2 if content.pop((worker, name), None) is not None else 3] += 1
        else:
            content = {key: local for key, local in content.items() if key[0] != worker}
        prompt = random_prompt(draw)
        check_content(index, content, prompt)
    found = index.counters
    assert counts == [
        found.stored_blocks, found.duplicate_blocks, found.removed_blocks, found.unknown_blocks,
    ]  # fmt: skip
    assert index.size == len(content)
    for worker in range(NUM_WORKERS):
        for event in index.dump(worker):  # type: ignore[attr-defined]
            copy.apply(worker, event)
    check_content(copy, content, random_prompt(draw))
    copy.remove_worker(0)
    rest = {key: local for key, local in content.items() if key[0]}
    assert copy.size == len(rest)
    check_content(copy, rest, random_prompt(draw))


def check_content(index: Any, content: dict[tuple[int, int], int], prompt: Chain) -> None:
    overlaps = index.find_matches(list(prompt))
    check_shape(overlaps)
    for worker in range(NUM_WORKERS):
        own = {local for (who, _), local in content.items() if who == worker}
        missing = [place for place, local in enumerate(prompt) if local not in own]
        assert overlaps.depth_of(worker) == (missing[0] if missing else len(prompt))


# ---- tiers ---------------------------------------------------------------------------------------


def tier_event(draw: random.Random, known: list[Chain]) -> BlockEvent:
    """Of any tier: blocks with and without what comes before them, evictions, a tier emptied."""
    tier, point = draw.choice([Tier.DEVICE, *Tier]), draw.random()
    if point < 0.65 or not known:
        chain = random_prompt(draw)
        if known and draw.random() < 0.7:
            chain = draw.choice(known) + chain
        first = draw.randrange(len(chain)) if draw.random() < 0.7 else 0
        names = sequence_hashes(chain)
        known += [chain[: end + 1] for end in range(len(chain))]
        return Stored(names[first - 1] if first else None, names[first:], chain[first:], tier)
    if point < 0.95:
        return Removed([sequence_hashes(c)[-1] for c in draw.choices(known, k=3)], tier)
    return Cleared(draw.choice([None, tier]))


def check_tiers(index: TieredIndex, naive: ToldCaches, prompt: Chain) -> None:
    found = index.find_tier_matches(list(prompt))
    assert index.find_matches(list(prompt)).by_worker() == found.device.by_worker()
    for overlaps in found:
        check_shape(overlaps)
    for worker in range(NUM_WORKERS):
        depths = tuple(overlaps.depth_of(worker) for overlaps in found)
        assert depths == naive.depths(worker, prompt)


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.sampled_from(KINDS))
def test_tiers_continue_each_other(seed: int, kind: str) -> None:
    draw = random.Random(seed)
    index, naive = make_indexer(kind), ToldCaches()
    assert isinstance(index, TieredIndex)
    known: list[Chain] = []
    for _ in range(draw.randint(1, 30)):
        worker = draw.randrange(NUM_WORKERS)
        if draw.random() < 0.04:
            index.remove_worker(worker)
            naive.leave(worker)
        event = tier_event(draw, known)
        index.apply(worker, event)
        naive.apply(worker, event)
        check_tiers(index, naive, draw.choice(known)[:12])
    told = [pair for worker in naive.told.values() for pair in worker.values()]
    slower = sum(tier in tiers for _, tiers in told for tier in (Tier.HOST, Tier.DISK))
    assert index.size == sum(map(len, naive.device.values())) + slower
    restored = TieredIndex(index.device)
    for worker in range(NUM_WORKERS):
        restored.restore_tiers(worker, index.dump_tiers(worker))
    check_tiers(restored, naive, draw.choice(known))
    last = tier_event(draw, known)
    for one in (restored, naive):
        one.apply(0, last)
    check_tiers(restored, naive, draw.choice(known))
    for worker in range(NUM_WORKERS):
        restored.remove_worker(worker)
    assert restored.size == 0 and not any(restored._holders.values())


PLAIN: dict[str, Callable[[], Any]] = {
    "naive": NaiveIndex,
    "inverted": InvertedIndex,
    "radix": RadixIndex,
    "compressed": CompressedRadixIndex,
    "positional": PositionalIndex,
}


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(list(PLAIN)))
def test_slower_tiers_are_nothing_to_an_index_of_devices(seed: int, kind: str) -> None:
    """What is stored on a host is no device hit, and what goes there leaves the device's copy."""
    draw = random.Random(seed)
    told, spared = PLAIN[kind](), PLAIN[kind]()
    known: list[Chain] = []
    for _ in range(draw.randint(1, 30)):
        worker, event = draw.randrange(NUM_WORKERS), tier_event(draw, known)
        told.apply(worker, event)
        if event.tier in (None, Tier.DEVICE):
            spared.apply(worker, event)
        prompt = list(draw.choice(known)[:12])
        assert told.find_matches(prompt).classes == spared.find_matches(prompt).classes
    assert told.size == spared.size and told.counters == spared.counters


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_on_the_host_is_one_of_its_own(kind: str) -> None:
    index, names = make_indexer(kind), sequence_hashes([1, 2, 3])
    assert isinstance(index, TieredIndex)
    index.apply(0, Stored(None, names, [1, 2, 3]))
    index.apply(0, Stored(names[0], names[1:], [2, 3], Tier.HOST))
    index.apply(0, Removed(names[1:], Tier.HOST))
    assert index.find_matches([1, 2, 3]).by_worker() == {0: 3} and not index.has_slower
    index.apply(0, Stored(names[0], names[1:], [2, 3], Tier.HOST))
    index.apply(0, Removed(names[1:]))
    found = index.find_tier_matches([1, 2, 3])
    assert (found.device.by_worker(), found.host.by_worker()) == ({0: 1}, {0: 2})


# ---- extents -------------------------------------------------------------------------------------

SIZES = [2, 3, 1, 4]


class NaiveExtents:
    """(worker, extent, block) of all that is held; private blocks by number only."""

    def __init__(self) -> None:
        self.held: set[tuple[int, int, int]] = set()
        self.private = [0] * NUM_WORKERS
        self.counts = dict.fromkeys(("stored", "duplicate", "removed", "unknown", "orphans"), 0)

    def apply(self, worker: int, event: KvEvent) -> None:
        is_stored, content, first = event.is_stored, event.content, event.first_block
        num_blocks, parent = event.num_blocks, event.parent
        counts = self.counts
        if content < 0:
            self.private[worker] += num_blocks if is_stored else -num_blocks
            counts["stored" if is_stored else "removed"] += num_blocks
            return
        before = (worker, content, first - 1) if first else None
        if not first and parent is not None:
            before = (worker, parent, SIZES[parent] - 1)
        if is_stored and before is not None and before not in self.held:
            counts["orphans"] += 1
            return
        for block in range(first, first + num_blocks):
            pair = (worker, content, block)
            if is_stored:
                counts["duplicate" if pair in self.held else "stored"] += 1
                self.held.add(pair)
            else:
                counts["removed" if pair in self.held else "unknown"] += 1
                self.held.discard(pair)

    def depth(self, worker: int, path: list[int]) -> int:
        blocks = [(worker, content, block) for content in path for block in range(SIZES[content])]
        missing = [place for place, block in enumerate(blocks) if block not in self.held]
        return missing[0] if missing else len(blocks)


def extent_event(draw: random.Random) -> KvEvent:
    content = draw.choice([-1, *range(len(SIZES)), *range(len(SIZES))])
    if content < 0:
        return KvEvent(draw.random() < 0.7, content, 0, draw.randint(1, 4), None)
    first = draw.choice([0, 0, draw.randrange(SIZES[content])])
    num_blocks = draw.choice([SIZES[content] - first, draw.randint(1, SIZES[content] - first)])
    is_stored = draw.random() < 0.65
    parent = draw.choice([None, content - 1]) if content and is_stored else None
    return KvEvent(is_stored, content, first, num_blocks, parent)


@settings(max_examples=120, deadline=None)
@given(SEEDS)
def test_extents_are_sets_of_blocks(seed: int) -> None:
    draw = random.Random(seed)
    index, naive = ExtentIndex(SIZES), NaiveExtents()
    for _ in range(draw.randint(1, 40)):
        worker = draw.randrange(NUM_WORKERS)
        if draw.random() < 0.03:
            index.remove_worker(worker)
            naive.held = {pair for pair in naive.held if pair[0] != worker}
            naive.private[worker] = 0
        events = [extent_event(draw) for _ in range(draw.randint(1, 3))]
        if draw.random() < 0.5:
            index.apply_all(worker, events)
        else:
            for event in events:
                index.apply(worker, event)
        for event in events:
            naive.apply(worker, event)
        path = draw.sample(range(len(SIZES)), draw.randint(0, len(SIZES)))
        overlaps = index.find_matches(path)
        check_extents(index, naive, overlaps, path)
    for worker in range(NUM_WORKERS):
        index.remove_worker(worker)
    assert index.size == 0 and index.find_matches([0, 1]).classes == []


def check_extents(
    index: ExtentIndex, naive: NaiveExtents, overlaps: Overlaps, path: list[int]
) -> None:
    depths = {worker: naive.depth(worker, path) for worker in range(NUM_WORKERS)}
    found = {worker: 0 for worker in depths} | overlaps.by_worker()
    assert found == depths
    assert index.size == len(naive.held) + sum(naive.private)
    counters = index.counters
    assert [
        counters.stored_blocks, counters.duplicate_blocks, counters.removed_blocks,
        counters.unknown_blocks, counters.unknown_parents,
    ] == list(naive.counts.values())  # fmt: skip
