"""What every exact index of block events must answer, and what one that knows tiers must."""

import random
from collections.abc import Callable, Iterable
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.blocks.hashing import sequence_hashes
from dynosim.blocks.tier import SLOWER, Tier
from dynosim.indexer.answers import Overlaps, members
from dynosim.indexer.base import BlockEvent, Index, Removed, Stored
from dynosim.indexer.tiers import TierOverlaps
from dynosim.testing import law
from dynosim.testing.block_events import (
    NUM_WORKERS,
    EventStream,
    confused,
    random_prompt,
    random_stream,
    tier_event,
)
from dynosim.testing.index_model import Chain, PlainIndex
from dynosim.workers.ids import Slot

SEEDS = st.integers(0, 2**32 - 1)
MakeIndex = Callable[[], Index[BlockEvent]]


class TierIndex(Index[BlockEvent], Protocol):
    """An index that knows what is in slower memory, and can be saved."""

    @property
    def has_slower(self) -> bool:
        """Whether anybody holds anything but on its device."""
        ...

    def find_tier_matches(self, blocks: list[int]) -> TierOverlaps:
        """Leading blocks on the device, then further ones in each slower tier."""
        ...

    def dump_tiers(self, worker: Slot) -> list[tuple[int, int, int]]:
        """What is to be given to `restore_tiers` of an index with the same device index."""
        ...

    def restore_tiers(self, worker: Slot, blocks: Iterable[tuple[int, int, int]]) -> None:
        """Let a worker of which nothing is known hold that."""
        ...


class IndexContract:
    """The tests of an exact `Index[BlockEvent]`: it answers as a set of blocks would.

    The heir supplies `make_index`, a fixture of class scope: a function that makes an empty index.

    A router calls `apply` once per event, in the order in which a worker published them, and
    `find_matches` for every request that it places; `remove_worker` when a worker is gone, whose
    slot may then be another's. An index must not look at a clock, hold on to an event's lists, or
    raise for what an engine may publish: blocks whose parent is unknown, removals of what is not
    there, equal names of different blocks, other tiers.
    """

    @law(60)
    @given(seed=SEEDS, is_confused=st.booleans())
    def test_it_answers_as_brute_force_does(
        self, make_index: MakeIndex, seed: int, is_confused: bool
    ) -> None:
        draw = random.Random(seed)
        stream = random_stream(draw)
        if is_confused:
            stream = confused(draw, stream)
        prompts = [list(random_prompt(draw)) for _ in range(4)]
        model, index = PlainIndex(), make_index()
        for worker, event in stream:
            follow(model, worker, event)
            follow(index, worker, event)
            check_answers(index, model, prompts)
        everything = {chain for held in model.device.values() for chain in held.values()}
        check_answers(index, model, map(list, everything))
        assert index.size == model.size

    @law(40)
    @given(seed=SEEDS)
    def test_every_block_that_comes_and_goes_is_counted(
        self, make_index: MakeIndex, seed: int
    ) -> None:
        draw = random.Random(seed)
        model, index = PlainIndex(), make_index()
        wanted, found = model.counters, index.counters
        for worker, event in random_stream(draw):
            follow(model, worker, event)
            follow(index, worker, event)
            prompt = random_prompt(draw)
            index.find_matches(list(prompt))
            wanted.queries += 1
            wanted.query_blocks += len(prompt)
            wanted.lookups = found.lookups  # an index's own business
            assert found == wanted
            assert index.size == model.size

    @law(30)
    @given(seed=SEEDS, is_confused=st.booleans(), by_removal=st.booleans())
    def test_an_emptied_index_holds_nothing(
        self, make_index: MakeIndex, seed: int, is_confused: bool, by_removal: bool
    ) -> None:
        draw = random.Random(seed)
        stream = random_stream(draw)
        if is_confused:
            stream = confused(draw, stream)
        index = make_index()
        empty(index, stream, draw, by_removal=by_removal)
        assert index.size == 0
        assert index.find_matches(list(random_prompt(draw))).classes == []

    @law(40)
    @given(seed=SEEDS)
    def test_what_is_in_slower_memory_is_no_device_hit_and_leaves_the_devices_copy(
        self, make_index: MakeIndex, seed: int
    ) -> None:
        draw = random.Random(seed)
        index, spared = make_index(), make_index()
        known: list[Chain] = []
        for _ in range(draw.randint(1, 30)):
            worker, event = Slot(draw.randrange(NUM_WORKERS)), tier_event(draw, known)
            index.apply(worker, event)
            if event.tier in (None, Tier.DEVICE):
                spared.apply(worker, event)
            prompt = list(draw.choice(known)[:12])
            assert index.find_matches(prompt).classes == spared.find_matches(prompt).classes


class TierIndexContract(IndexContract):
    """The tests of an index that knows tiers: a slower one goes on where the faster one ends.

    As `IndexContract`; `make_index` makes a `TierIndex`. The heir supplies besides, of class scope,
    `make_restored`: a function of an index that makes one with the same device index, in whose
    slower tiers nothing is known.
    """

    @law(60)
    @given(seed=SEEDS)
    def test_tiers_continue_each_other(
        self,
        make_index: Callable[[], TierIndex],
        make_restored: Callable[[TierIndex], TierIndex],
        seed: int,
    ) -> None:
        draw = random.Random(seed)
        index, model = make_index(), PlainIndex()
        known: list[Chain] = []
        for _ in range(draw.randint(1, 30)):
            worker = Slot(draw.randrange(NUM_WORKERS))
            if draw.random() < 0.04:
                index.remove_worker(worker)
                model.remove_worker(worker)
            event = tier_event(draw, known)
            index.apply(worker, event)
            model.apply(worker, event)
            check_tiers(index, model, draw.choice(known)[:12])
        assert index.size == model.size + model.slower_size
        restored = make_restored(index)
        for worker in map(Slot, range(NUM_WORKERS)):
            restored.restore_tiers(worker, index.dump_tiers(worker))
        check_tiers(restored, model, draw.choice(known))
        last = tier_event(draw, known)
        restored.apply(Slot(0), last)
        model.apply(0, last)
        check_tiers(restored, model, draw.choice(known))
        for worker in map(Slot, range(NUM_WORKERS)):
            restored.remove_worker(worker)
        assert restored.size == 0 and not restored.has_slower

    @pytest.mark.parametrize("tier", SLOWER)
    def test_a_copy_in_slower_memory_is_one_of_its_own(
        self, make_index: Callable[[], TierIndex], tier: Tier
    ) -> None:
        index, names, worker = make_index(), sequence_hashes([1, 2, 3]), Slot(0)
        index.apply(worker, Stored(None, names, [1, 2, 3]))
        index.apply(worker, Stored(names[0], names[1:], [2, 3], tier))
        index.apply(worker, Removed(names[1:], tier))
        assert index.find_matches([1, 2, 3]).by_worker() == {0: 3} and not index.has_slower
        index.apply(worker, Stored(names[0], names[1:], [2, 3], tier))
        index.apply(worker, Removed(names[1:]))
        found = index.find_tier_matches([1, 2, 3])
        assert (found.device.by_worker(), found[tier].by_worker()) == ({0: 1}, {0: 2})


def follow(index: Index[BlockEvent] | PlainIndex, worker: int, event: BlockEvent | None) -> None:
    """Let a worker publish an event, or leave."""
    if event is None:
        index.remove_worker(Slot(worker))
    else:
        index.apply(Slot(worker), event)


def empty(
    index: Index[BlockEvent], stream: EventStream, draw: random.Random, *, by_removal: bool
) -> None:
    """Let a stream happen, and then every block go or every worker leave."""
    model = PlainIndex()
    for worker, event in stream:
        follow(model, worker, event)
        follow(index, worker, event)
    for worker in range(NUM_WORKERS):
        names = list(model.device.get(worker, {}))
        draw.shuffle(names)
        follow(index, worker, Removed(names) if by_removal else None)


def check_answers(
    index: Index[BlockEvent], model: PlainIndex, prompts: Iterable[list[int]]
) -> None:
    """Answers are those of brute force, in the shape of `Overlaps`."""
    for prompt in prompts:
        overlaps = index.find_matches(prompt)
        assert overlaps.by_worker() == model.find_matches(prompt)
        check_shape(overlaps)


def check_tiers(index: TierIndex, model: PlainIndex, prompt: Chain) -> None:
    """The same of each tier."""
    found = index.find_tier_matches(list(prompt))
    assert index.find_matches(list(prompt)).by_worker() == found.device.by_worker()
    for overlaps in found:
        check_shape(overlaps)
    for worker in range(NUM_WORKERS):
        depths = tuple(overlaps.depth_of(worker) for overlaps in found)
        assert depths == model.depths(worker, prompt)


def check_shape(overlaps: Overlaps) -> None:
    """Disjoint sets of workers, depths from 1 on and increasing; questions answered alike."""
    depths = [depth for _, depth in overlaps.classes]
    assert depths == sorted(set(depths)) and all(depth >= 1 for depth in depths)
    everybody = [worker for mask, _ in overlaps.classes for worker in members(mask)]
    assert len(everybody) == len(set(everybody)) and all(mask for mask, _ in overlaps.classes)
    by_worker = overlaps.by_worker()
    assert sorted(by_worker) == sorted(everybody)
    asked = range(70)
    assert [overlaps.depth_of(w) for w in asked] == [by_worker.get(Slot(w), 0) for w in asked]
    assert overlaps.best_depth == max(by_worker.values(), default=0)
