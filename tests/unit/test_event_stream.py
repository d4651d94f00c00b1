"""Both ends of a worker's event stream: gaps, answers, dumps."""

import pytest

from dynosim.blocks.tier import Tier
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.stream import (
    MAX_EARLY,
    MIN_PLACES,
    PRUNED_SHARE,
    Dump,
    EventBuffer,
    Events,
    EventStream,
    TooNew,
)
from dynosim.indexer.tiers import TieredIndex


def stored(*chain: int, parent: int | None = None, tier: Tier = Tier.DEVICE) -> Stored:
    """Blocks whose name is their content."""
    return Stored(parent, list(chain), list(chain), tier)


def tell(buffer: EventBuffer, *events: BlockEvent) -> None:
    for event in events:
        buffer.append(event)


def test_events_in_order_go_straight_through() -> None:
    stream = EventStream()
    assert [stream.receive(number, stored(number)) for number in range(3)] == [
        [stored(number)] for number in range(3)
    ]
    assert (stream.missing, stream.num_gaps, stream.num_lost) == (None, 0, 0)


def test_disorder_heals_by_itself_and_counts_one_gap() -> None:
    stream = EventStream()
    assert stream.receive(2, stored(2)) == []
    assert stream.receive(1, stored(1)) == []
    assert stream.missing == 0
    assert stream.receive(0, stored(0)) == [stored(0), stored(1), stored(2)]
    assert (stream.missing, stream.num_gaps, stream.num_lost) == (None, 1, 0)


@pytest.mark.parametrize("number", [0, 2])
def test_a_repeated_event_is_ignored_applied_or_waiting(number: int) -> None:
    stream = EventStream()
    stream.receive(0, stored(0))
    stream.receive(2, stored(2))
    assert stream.receive(number, stored(number)) == []
    assert (stream.num_repeats, stream.next_id) == (1, 1)


def test_a_router_that_joins_late_asks_from_the_start_and_gets_everything() -> None:
    buffer, stream = EventBuffer(2), EventStream()
    tell(buffer, stored(1, 2), stored(3, parent=2), Removed([3]), stored(4))
    assert stream.receive(3, stored(4)) == []
    assert stream.missing == 0
    first, *rest = stream.resync(buffer.replay(0))
    assert first == Cleared()
    assert sorted(rest, key=repr) == [stored(1, 2), stored(4)]
    assert (stream.missing, stream.next_id, stream.num_lost) == (None, 4, 3)


def test_events_beyond_a_dump_follow_it() -> None:
    buffer, stream = EventBuffer(0), EventStream()
    tell(buffer, stored(1), stored(2))
    answer = buffer.dump()
    stream.receive(2, stored(3))
    ready = stream.resync(answer)
    assert ready[0] == Cleared() and ready[-1] == stored(3)
    assert stream.next_id == 3


def test_a_dump_older_than_what_is_known_changes_nothing() -> None:
    buffer, stream = EventBuffer(0), EventStream()
    tell(buffer, stored(0))
    answer = buffer.dump()
    for number in range(3):
        stream.receive(number, stored(number))
    assert stream.resync(answer) == []
    assert stream.next_id == 3


def test_an_answer_that_overlaps_what_is_known_gives_only_the_rest() -> None:
    stream = EventStream()
    for number in range(2):
        stream.receive(number, stored(number))
    answer = Events(0, [stored(number) for number in range(4)])
    assert stream.resync(answer) == [stored(2), stored(3)]
    assert stream.resync(answer) == []
    assert stream.next_id == 4


def test_an_answer_that_begins_behind_the_gap_is_no_answer() -> None:
    stream = EventStream()
    stream.receive(0, stored(0))
    stream.receive(5, stored(5))
    assert stream.resync(Events(4, [stored(4), stored(5)])) == []
    assert (stream.missing, stream.next_id) == (1, 1)


def test_an_event_for_which_there_was_no_room_is_still_missed() -> None:
    buffer, stream = EventBuffer(10), EventStream(max_early=1)
    tell(buffer, stored(0), stored(1), stored(2))
    stream.receive(2, stored(2))
    answer = buffer.replay(0)
    tell(buffer, stored(3))
    assert stream.receive(3, stored(3)) == []  # no room
    assert stream.resync(answer) == [stored(0), stored(1), stored(2)]
    assert stream.missing == 3
    assert stream.resync(buffer.replay(3)) == [stored(3)]
    assert stream.missing is None


def test_a_worker_that_started_anew_is_asked_for_its_new_events() -> None:
    buffer, stream = EventBuffer(10), EventStream()
    for number in range(3):
        stream.receive(number, stored(number))
    tell(buffer, stored(7))
    answer = buffer.replay(3)
    assert answer == TooNew(1)
    assert stream.resync(answer) == [Cleared()]
    assert stream.missing == 0
    assert stream.resync(buffer.replay(0)) == [stored(7)]


def test_what_was_made_up_for_is_counted() -> None:
    """Of events 1 to 4 only 3 had come by itself; 6 waits on."""
    stream: EventStream[BlockEvent] = EventStream()
    for number in (0, 3, 6):
        stream.receive(number, stored(number))
    assert stream.num_gaps == 1
    assert stream.resync(Events(1, [stored(n) for n in range(1, 5)])) == [
        stored(n) for n in range(1, 5)
    ]
    assert (stream.next_id, stream.missing, stream.num_lost) == (5, 5, 3)
    assert (stream.num_replays, stream.num_dumps, stream.num_repeats) == (1, 0, 0)
    assert stream.receive(5, stored(5)) == [stored(5), stored(6)]
    assert (stream.num_lost, stream.missing, stream.num_gaps) == (3, None, 1)
    stream.receive(9, stored(9))
    assert stream.resync(Dump(8, [stored(1)])) == [Cleared(), stored(1), stored(9)]
    assert (stream.next_id, stream.num_lost, stream.num_dumps, stream.num_gaps) == (10, 5, 1, 2)
    stream.resync(TooNew(3))
    assert (stream.num_dumps, stream.num_lost, stream.missing) == (2, 5, 0)


def test_an_answer_up_to_what_is_known_already_changes_nothing() -> None:
    stream: EventStream[BlockEvent] = EventStream()
    for number in range(3):
        stream.receive(number, stored(number))
    for answer in (Events(0, [stored(0)]), Events(3, []), Dump(1, [stored(9)])):
        assert stream.resync(answer) == []
        assert (stream.next_id, stream.num_lost) == (3, 0)
    assert stream.resync(Dump(2, [stored(9)])) == []
    assert stream.resync(Dump(3, [stored(9)])) == [Cleared(), stored(9)]
    assert stream.next_id == 4


def test_giving_up_voids_what_was_known_and_goes_on_behind_the_gap() -> None:
    stream: EventStream[BlockEvent] = EventStream()
    stream.receive(0, stored(0))
    for number in (4, 3, 6):
        stream.receive(number, stored(number))
    assert stream.give_up() == [Cleared(), stored(3), stored(4)]
    assert (stream.next_id, stream.missing, stream.num_lost) == (5, 5, 2)
    assert stream.give_up() == [Cleared(), stored(6)]
    assert (stream.next_id, stream.missing) == (7, None)


def test_giving_up_where_nothing_had_room_goes_on_with_the_next_event() -> None:
    stream: EventStream[BlockEvent] = EventStream(max_early=0)
    assert stream.receive(4, stored(4)) == []
    assert stream.missing == 0
    assert stream.give_up() == [Cleared()]
    assert (stream.next_id, stream.missing) == (5, None)
    assert stream.receive(5, stored(5)) == [stored(5)]


def test_so_many_events_wait_and_no_more() -> None:
    stream: EventStream[BlockEvent] = EventStream(max_early=2)
    for number in (3, 1, 2):
        stream.receive(number, stored(number))
    assert stream.receive(0, stored(0)) == [stored(0), stored(1)]  # 2 found no room
    assert stream.missing == 2
    assert stream.receive(2, stored(2)) == [stored(2), stored(3)]
    assert MAX_EARLY == 4096


def test_a_worker_numbers_its_events_and_answers_from_any_that_it_keeps() -> None:
    buffer = EventBuffer(3)
    assert [buffer.append(stored(n)) for n in range(5)] == [0, 1, 2, 3, 4]
    assert buffer.next_id == 5
    assert buffer.replay(2) == Events(2, [stored(2), stored(3), stored(4)])
    assert buffer.replay(4) == Events(4, [stored(4)])
    assert buffer.replay(5) == Events(5, [])
    assert buffer.replay(6) == TooNew(5)
    answer = buffer.replay(1)
    assert isinstance(answer, Dump) and answer.last_id == 4
    assert sorted(answer.events, key=repr) == [stored(n) for n in range(5)]


def test_nothing_new_is_an_empty_answer() -> None:
    buffer = EventBuffer(1)
    assert buffer.replay(0) == Events(0, [])
    tell(buffer, stored(1), stored(2))
    assert buffer.replay(2) == Events(2, [])


def test_a_dump_of_a_forked_tree_tells_each_block_once() -> None:
    buffer = EventBuffer(0)
    tell(buffer, stored(1, 2, 3), stored(4, 5, parent=2), stored(6, parent=5), stored(9, parent=8))
    answer = buffer.replay(0)
    assert isinstance(answer, Dump) and answer.last_id == 3
    assert answer.events[0] == stored(1, 2)
    assert sorted(answer.events[1:], key=repr) == [stored(3, parent=2), stored(4, 5, 6, parent=2)]


def test_blocks_behind_an_evicted_one_survive_a_dump() -> None:
    buffer, index = EventBuffer(0), CompressedRadixIndex()
    tell(buffer, stored(1, 2, 3), Removed([1]))
    for event in buffer.dump().events:
        index.apply(0, event)
    assert index.size == 2
    assert index.find_matches([1, 2, 3]).by_worker() == {}
    index.apply(0, stored(1))
    assert index.find_matches([1, 2, 3]).by_worker() == {0: 3}


def test_a_host_block_behind_a_device_block_survives_a_dump() -> None:
    buffer, index = EventBuffer(0), TieredIndex(CompressedRadixIndex())
    tell(buffer, stored(1, 2), stored(3, parent=2, tier=Tier.HOST))
    assert buffer.dump().events == [stored(1, 2), stored(3, parent=2, tier=Tier.HOST)]
    for event in buffer.dump().events:
        index.apply(0, event)
    found = index.find_tier_matches([1, 2, 3])
    assert (found.device.by_worker(), found.host.by_worker()) == ({0: 2}, {0: 1})


def test_clearing_one_tier_leaves_the_others() -> None:
    buffer = EventBuffer(0)
    tell(buffer, stored(1), stored(1, tier=Tier.HOST), Cleared(Tier.DEVICE))
    assert buffer.dump().events == [stored(1, tier=Tier.HOST)]
    tell(buffer, Cleared())
    assert buffer.dump().events == []


def test_a_buffer_forgets_the_places_of_evicted_blocks() -> None:
    buffer = EventBuffer(0)
    tell(buffer, stored(*range(10)))
    for number in range(10, 10 * MIN_PLACES, 10):
        tell(buffer, stored(*range(number, number + 10), parent=9))
        tell(buffer, Removed(list(range(number, number + 10))))
    assert len(buffer._held._places) <= max(MIN_PLACES, PRUNED_SHARE * 10)
    assert buffer.dump().events == [stored(*range(10))]
