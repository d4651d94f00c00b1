"""Baselines and extents, each against sets of blocks; the exact indexes keep `IndexContract`."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import Tier
from dynosim.indexer.answers import Overlaps
from dynosim.indexer.base import Removed, Stored
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.make import make_indexer
from dynosim.testing.block_events import NUM_WORKERS, random_prompt, random_stream, tier_event
from dynosim.testing.index import check_shape, follow
from dynosim.testing.index_model import Chain

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from(["naive", "inverted"]))
def test_the_baselines_look_at_content_alone(seed: int, kind: str) -> None:
    """Whatever comes before a block: a chunk held anywhere counts."""
    draw = random.Random(seed)
    index, copy = make_indexer(kind), make_indexer(kind)
    content: dict[tuple[int, int], int] = {}  # (worker, name) -> content
    counts = [0, 0, 0, 0]  # stored, stored again, removed, unknown
    for worker, event in random_stream(draw):
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


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(["naive", "inverted"]))
def test_slower_tiers_are_nothing_to_the_baselines(seed: int, kind: str) -> None:
    """What is stored on a host is no device hit, and what goes there leaves the device's copy."""
    draw = random.Random(seed)
    index, spared = make_indexer(kind), make_indexer(kind)
    known: list[Chain] = []
    for _ in range(draw.randint(1, 30)):
        worker, event = draw.randrange(NUM_WORKERS), tier_event(draw, known)
        index.apply(worker, event)
        if event.tier in (None, Tier.DEVICE):
            spared.apply(worker, event)
        prompt = list(draw.choice(known)[:12])
        assert index.find_matches(prompt).classes == spared.find_matches(prompt).classes
    assert index.size == spared.size and index.counters == spared.counters


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
