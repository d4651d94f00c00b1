"""What the indexes promise beyond agreeing with each other."""

from typing import Any

import pytest

from dynosim.blocks.hashing import sequence_hashes
from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import Tier
from dynosim.errors import ConfigError
from dynosim.indexer.answers import Overlaps
from dynosim.indexer.approximate import ApproximateIndex, PredictedIndex, merge_overlaps
from dynosim.indexer.base import Removed, Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.make import INDEXES, IndexSpec, make_indexer
from dynosim.indexer.naive import InvertedIndex, NaiveIndex
from dynosim.indexer.positional import PositionalIndex
from dynosim.indexer.radix import RadixIndex
from dynosim.indexer.stream import Dump, EventBuffer, Events, EventStream, TooNew
from dynosim.indexer.tiers import TieredIndex

CONFLATING = ("naive", "inverted")


def stored(*blocks: int, parent: int | None = None) -> Stored:
    return Stored(parent, sequence_hashes(blocks), list(blocks))


@pytest.mark.parametrize("kind", INDEXES)
def test_only_the_baselines_take_an_equal_chunk_for_an_equal_block(kind: str) -> None:
    """A worker holds A B C; a prompt that starts with C A has no block in common with it."""
    index = make_indexer(kind)
    index.apply(0, stored(1, 2, 3))
    index.apply(1, stored(3, 1))
    found = index.find_matches([3, 1, 2]).by_worker()
    if kind in CONFLATING:
        assert found == {0: 3, 1: 2}
    else:
        assert found == {1: 2}


@pytest.mark.parametrize("kind", INDEXES)
def test_what_is_counted(kind: str) -> None:
    index = make_indexer(kind)
    index.apply(0, stored(1, 2, 3))
    index.apply(0, stored(1, 2, 4))
    index.apply(0, Removed([sequence_hashes([1, 2, 3])[-1], 12345]))
    counters = index.counters
    assert (counters.stored_blocks, counters.duplicate_blocks) == (4, 2)
    assert (counters.removed_blocks, counters.unknown_blocks) == (1, 1)
    if kind not in CONFLATING:
        index.apply(0, stored(8, parent=999))
        assert counters.unknown_parents == 1
        assert index.find_matches([8]).classes == []
    assert index.size == 3
    index.remove_worker(0)
    assert index.size == 0


def test_an_unknown_kind_names_the_known_ones() -> None:
    for make in (make_indexer, lambda kind: IndexSpec(kind).make()):
        with pytest.raises(ConfigError, match=r"router\.index: unknown kind 'btree'.*compressed"):
            make("btree")


def device_part(index: Any) -> Any:
    """What follows the devices; the exact indexes know tiers besides."""
    return index.device if isinstance(index, TieredIndex) else index


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("naive", NaiveIndex),
        ("inverted", InvertedIndex),
        ("radix", RadixIndex),
        ("compressed", CompressedRadixIndex),
        ("positional", PositionalIndex),
        ("positional-binary", PositionalIndex),
    ],
)
def test_every_kind_has_its_name(kind: str, made: type) -> None:
    one, other = device_part(make_indexer(kind)), device_part(IndexSpec(kind).make())
    assert type(one) is type(other) is made
    if made is PositionalIndex:
        assert one._is_binary == (kind == "positional-binary")
    assert kind in INDEXES and len(INDEXES) == 6


def test_a_specification_makes_what_it_says() -> None:
    extents = IndexSpec("extents", [2, 3]).make()
    assert isinstance(extents, ExtentIndex)
    extents.apply(0, KvEvent(True, 0, 0, 2, None))
    extents.apply(0, KvEvent(True, 1, 0, 1, 0))
    assert extents.find_matches([0, 1]).by_worker() == {0: 3}
    timed = IndexSpec("approximate", ttl_ms=5.0).make()
    bounded = IndexSpec("approximate", ttl_ms=5.0, capacity_blocks=2).make()
    beside = IndexSpec("radix", ttl_ms=9.0, predicted_ttl_ms=5.0).make()
    assert isinstance(beside, PredictedIndex) and isinstance(
        device_part(beside.primary), RadixIndex
    )
    for index, early, late in ((timed, 3, 0), (bounded, 2, 2), (beside, 3, 0)):
        assert isinstance(index, ApproximateIndex | PredictedIndex)
        index.note_routed(0, "a", [1, 2, 3], 0.0)
        index.note_end("a", 1.0)
        found = []
        for at_ms in (4.9, 5.0):
            index.expire(at_ms)
            found.append(index.find_matches([1, 2, 3]).depth_of(0))
        assert found == [early, late]
    assert IndexSpec("approximate").ttl_ms == 120_000.0


def test_a_stride_must_be_a_step() -> None:
    with pytest.raises(ConfigError, match="stride: 0 blocks to jump"):
        PositionalIndex(stride=0)
    assert PositionalIndex(stride=1).find_matches([1]).classes == []


def test_a_long_stream_leaves_nothing_behind() -> None:
    radix, compressed = RadixIndex(), CompressedRadixIndex()
    for index in (radix, compressed):
        for round_ in range(200):
            blocks = [1, 2, *range(100 * round_, 100 * round_ + 20)]
            index.apply(round_ % 3, stored(*blocks))
            index.apply(round_ % 3, Removed(sequence_hashes(blocks)[::-1]))
        assert index.size == 0
    assert not radix._root.children
    assert not compressed._root.children


def test_look_ups_grow_as_documented() -> None:
    """Depth 1024, 10 workers: naive W x D, inverted D, jump search about D / J."""
    blocks = list(range(1024))
    lookups = {}
    indexes = {kind: make_indexer(kind) for kind in ("naive", "inverted", "radix")}
    indexes["jump"] = PositionalIndex(stride=64)
    for kind, index in indexes.items():
        for worker in range(10):
            index.apply(worker, stored(*blocks))
        assert index.find_matches(blocks).by_worker() == dict.fromkeys(range(10), 1024)
        lookups[kind] = index.counters.lookups
    assert lookups == {"naive": 10_240, "inverted": 1024, "radix": 1024, "jump": 17}


def test_jump_search_is_linear_where_everybody_drops_out_at_another_block() -> None:
    blocks = list(range(256))
    scan, halve = PositionalIndex(stride=64), PositionalIndex(stride=64, is_binary=True)
    for index in (scan, halve):
        for worker in range(256):
            index.apply(worker, stored(*blocks[: worker + 1]))
        found = index.find_matches(blocks).by_worker()
        assert found == {worker: worker + 1 for worker in range(256)}
        assert 256 <= index.counters.lookups <= 512


def test_one_drop_out_costs_a_scan_or_a_few_halvings() -> None:
    blocks = list(range(1024))
    lookups = []
    for is_binary in (False, True):
        index = PositionalIndex(stride=64, is_binary=is_binary)
        index.apply(0, stored(*blocks))
        index.apply(1, stored(*blocks[:700]))
        assert index.find_matches(blocks).by_worker() == {0: 1024, 1: 700}
        lookups.append(index.counters.lookups)
    assert lookups[1] <= 17 + 6 < lookups[0]


def test_jump_search_is_not_fooled_by_an_evicted_front() -> None:
    """Worker 1 holds the checkpoint but not the blocks before: counting alone would accept it."""
    blocks = list(range(100))
    index = PositionalIndex(stride=32)
    for worker in (0, 1):
        index.apply(worker, stored(*blocks))
    index.apply(1, Removed(sequence_hashes(blocks)[5:9]))
    assert index.find_matches(blocks).by_worker() == {0: 100, 1: 5}


# ---- guesses -----------------------------------------------------------------------------------


def test_a_guess_expires_and_is_refreshed() -> None:
    index = ApproximateIndex(ttl_ms=100.0)
    index.note_routed(0, "a", [1, 2, 3], 0.0)
    index.note_routed(0, "b", [1, 2], 60.0)
    index.expire(100.0)
    assert index.find_matches([1, 2, 3]).by_worker() == {0: 2}
    index.expire(160.0)
    assert (index.find_matches([1]).classes, index.size) == ([], 0)


def test_too_many_guesses_are_pruned_by_expiry() -> None:
    index = ApproximateIndex(ttl_ms=1e9, max_blocks=100)
    for number in range(11):
        index.note_routed(number % 2, number, range(100 * number, 100 * number + 10), float(number))
    assert index.size == 80
    assert index.find_matches(range(0, 10)).classes == []
    assert index.find_matches(range(1000, 1010)).by_worker() == {0: 10}


def test_a_bounded_guess_forgets_what_was_released_first_deepest_first() -> None:
    index = ApproximateIndex(capacity_blocks=6)
    index.note_routed(0, "a", [1, 2, 3], 0.0)
    index.note_routed(0, "b", [7, 8], 1.0)
    index.note_end("a", 2.0)
    index.note_routed(0, "c", [20, 21, 22], 3.0)  # 8 blocks: two of a's must go
    assert index.find_matches([1, 2, 3]).by_worker() == {0: 1}
    assert index.find_matches([7, 8]).by_worker() == {0: 2}
    assert index.size == 6
    index.remove_worker(0)
    index.note_end("b", 4.0)
    assert index.size == 0


def test_a_prediction_counts_where_it_sees_more_than_the_events() -> None:
    index = PredictedIndex(CompressedRadixIndex(), ApproximateIndex(ttl_ms=50.0))
    index.apply(0, stored(1))
    index.note_routed(1, "a", [1, 2, 3], 0.0)
    assert index.find_matches([1, 2, 3]).by_worker() == {0: 1, 1: 3}
    index.expire(50.0)
    assert index.find_matches([1, 2, 3]).by_worker() == {0: 1}


def test_merging_takes_the_larger_depth_of_each_worker() -> None:
    one, other = Overlaps([(0b011, 1), (0b100, 5)]), Overlaps([(0b110, 3)])
    assert merge_overlaps(one, other).by_worker() == {0: 1, 1: 3, 2: 5}
    assert merge_overlaps(one, Overlaps([])) is one


# ---- tiers -------------------------------------------------------------------------------------


def test_slower_tiers_continue_the_chain() -> None:
    index = TieredIndex(CompressedRadixIndex())
    chain = sequence_hashes(range(6))
    index.apply(0, Stored(None, chain[:2], [0, 1]))
    index.apply(0, Stored(chain[1], chain[2:4], [2, 3], Tier.HOST))
    index.apply(0, Stored(chain[3], chain[4:5], [4], Tier.DISK))
    index.apply(1, Stored(None, chain[:1], [0], Tier.HOST))
    found = index.find_tier_matches(list(range(6)))
    assert found.device.by_worker() == {0: 2}
    assert found.host.by_worker() == {0: 2, 1: 1}
    assert found.disk.by_worker() == {0: 1}
    index.apply(0, Removed([chain[1]]))  # now the chain breaks on the device
    found = index.find_tier_matches(list(range(6)))
    assert (found.device.by_worker(), found.host.by_worker()) == ({0: 1}, {1: 1})
    index.remove_worker(0)
    assert index.size == 1


# ---- streams -----------------------------------------------------------------------------------


def test_a_gap_is_noticed_and_filled_from_the_buffer() -> None:
    buffer, stream = EventBuffer(10), EventStream()
    events = [stored(number) for number in range(4)]
    for event in events:
        buffer.append(event)
    assert stream.receive(0, events[0]) == [events[0]]
    assert stream.receive(2, events[2]) == []
    assert stream.missing == 1
    assert stream.receive(0, events[0]) == []
    assert stream.num_repeats == 1
    answer = buffer.replay(1)
    assert isinstance(answer, Events)
    assert stream.resync(answer) == events[1:]
    assert (stream.missing, stream.next_id, stream.num_gaps) == (None, 4, 1)


def test_a_gap_too_old_for_the_buffer_is_answered_with_everything() -> None:
    buffer, stream = EventBuffer(1), EventStream()
    for number in range(5):
        buffer.append(stored(number))
    stream.receive(4, stored(4))
    answer = buffer.replay(0)
    assert isinstance(answer, Dump) and answer.last_id == 4
    ready = stream.resync(answer)
    assert len(ready) == 6 and stream.next_id == 5 and stream.num_dumps == 1


def test_a_worker_that_started_anew_voids_what_was_known() -> None:
    stream = EventStream()
    for number in range(3):
        stream.receive(number, stored(number))
    answer = EventBuffer(5).replay(3)
    assert answer == TooNew(0)
    assert stream.resync(answer) != [] and stream.next_id == 0


def test_the_naive_index_needs_no_parent() -> None:
    index = NaiveIndex()
    index.apply(0, stored(5, parent=77))
    assert index.find_matches([5]).by_worker() == {0: 1}
