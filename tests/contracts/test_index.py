"""Every exact index keeps the contract, and leaves nothing inside; broken ones do not."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.blocks.tier import Tier
from dynosim.indexer.answers import Overlaps
from dynosim.indexer.base import BlockEvent, Removed
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.make import DEVICE_INDEXES, make_indexer
from dynosim.indexer.positional import PositionalIndex
from dynosim.indexer.radix import RadixIndex
from dynosim.indexer.tiers import TieredIndex
from dynosim.testing.block_events import NUM_WORKERS, confused, random_stream
from dynosim.testing.index import IndexContract, TierIndexContract, empty, follow
from dynosim.testing.index_model import PlainIndex

BARE: list[Any] = [
    RadixIndex,
    CompressedRadixIndex,
    lambda: PositionalIndex(stride=2),
    lambda: PositionalIndex(stride=5, is_binary=True),
]
BARE_IDS = ["radix", "compressed", "stride-2", "binary-5"]
SEEDS = st.integers(0, 2**32 - 1)


class TestDeviceIndexes(IndexContract):
    @pytest.fixture(scope="class", params=BARE, ids=BARE_IDS)
    @classmethod
    def make_index(cls, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestTierIndexes(TierIndexContract):
    @pytest.fixture(scope="class", params=DEVICE_INDEXES)
    @classmethod
    def make_index(cls, request: pytest.FixtureRequest) -> Any:
        return lambda: make_indexer(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def make_restored(cls) -> Any:
        return lambda index: TieredIndex(index.device)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_dump_rebuilds_what_can_be_matched(seed: int) -> None:
    stream = random_stream(random.Random(seed))
    model = PlainIndex()
    for worker, event in stream:
        follow(model, worker, event)
    everything = {chain for held in model.device.values() for chain in held.values()}
    for kind in (RadixIndex, CompressedRadixIndex):
        index, copy = kind(), kind()
        for worker, event in stream:
            follow(index, worker, event)
        for worker in range(NUM_WORKERS):
            for stored in index.dump(worker):
                copy.apply(worker, stored)
        assert copy.counters.unknown_parents == 0
        for chain in everything:
            assert copy.find_matches(chain).by_worker() == index.find_matches(chain).by_worker()


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_an_emptied_index_keeps_nothing_inside(seed: int, by_removal: bool) -> None:
    draw = random.Random(seed)
    stream = random_stream(draw)
    if draw.random() < 0.3:
        stream = confused(draw, stream)
    indexes: list[Any] = [make() for make in BARE]
    for index in indexes:
        empty(index, stream, draw, by_removal=by_removal)
    radix, compressed, *positional = indexes
    assert not radix._root.children and not compressed._root.children
    for index in positional:
        assert not any(index._positions) and not index._with_holes


# ---- broken ones -------------------------------------------------------------------------------


class AnswersTooMuch(RadixIndex):
    def find_matches(self, blocks: Any) -> Overlaps:
        found = super().find_matches(blocks)
        return Overlaps([(mask, depth + 1) for mask, depth in found.classes])


class NeverEvicts(CompressedRadixIndex):
    def apply(self, worker: Any, event: BlockEvent) -> None:
        if not isinstance(event, Removed):
            super().apply(worker, event)


class KeepsTheGone(CompressedRadixIndex):
    def remove_worker(self, worker: Any) -> None:
        """Its slot may be another's soon."""


class TakesAllForDevices(RadixIndex):
    def apply(self, worker: Any, event: BlockEvent) -> None:
        super().apply(worker, event._replace(tier=Tier.DEVICE))


class OneMemory(TieredIndex):
    """Evicting a copy on the host evicts the device's too."""

    def apply(self, worker: Any, event: BlockEvent) -> None:
        super().apply(worker, event)
        if isinstance(event, Removed) and event.tier is Tier.HOST:
            super().apply(worker, event._replace(tier=Tier.DEVICE))


@pytest.mark.parametrize(
    ("broken", "noticed_by"),
    [
        (AnswersTooMuch, "test_it_answers_as_brute_force_does"),
        (NeverEvicts, "test_every_block_that_comes_and_goes_is_counted"),
        (KeepsTheGone, "test_an_emptied_index_holds_nothing"),
        (
            TakesAllForDevices,
            "test_what_is_in_slower_memory_is_no_device_hit_and_leaves_the_devices_copy",
        ),
    ],
)
def test_a_broken_index_fails(broken: Any, noticed_by: str) -> None:
    with pytest.raises(AssertionError):
        getattr(IndexContract(), noticed_by)(make_index=broken)


def test_an_index_that_mixes_up_tiers_fails() -> None:
    def make() -> OneMemory:
        return OneMemory(RadixIndex())

    with pytest.raises(AssertionError):
        TierIndexContract().test_tiers_continue_each_other(  # type: ignore[call-arg]
            make_index=make, make_restored=lambda index: TieredIndex(index.device)
        )
    with pytest.raises(AssertionError):
        TierIndexContract().test_a_copy_in_slower_memory_is_one_of_its_own(make, Tier.HOST)
