"""The tier of an engine's host: who has room, who goes, what a request's end changes."""

from collections.abc import Sequence

import pytest

from dynosim.engine.host_cache import Accesses, HostCache, Span
from dynosim.engine.spec import EvictionPolicy
from dynosim.errors import InvariantError


def single(*keys: int) -> list[Span]:
    """Extents of one chunk each."""
    return [Span(key, 0, 1) for key in keys]


class Request:
    """One that offers chunks and waits for their copies."""

    def __init__(self, cache: HostCache) -> None:
        self.cache = cache
        self.accesses = Accesses()

    def stores(self, *keys: int) -> list[int] | None:
        """Offers chunks, and has them copied; returns who had to go, None if refused."""
        new = self.cache.offer(single(*keys), self.accesses)
        if new is None:
            return None
        self.cache.stored(new)
        return [span.content for span in self.cache.evicted]

    def loads(self, *keys: int) -> None:
        self.cache.pin(single(*keys), self.accesses)
        self.cache.unpin(single(*keys))

    def ends(self, *keys: int) -> None:
        """With these chunks, in the order of its prompt."""
        self.cache.end(list(keys), self.accesses)


def cache_with(policy: EvictionPolicy, capacity: int, *prompts: Sequence[int]) -> HostCache:
    """A tier that requests have stored prompts in, one after the other."""
    cache = HostCache(capacity, policy)
    for keys in prompts:
        request = Request(cache)
        assert request.stores(*keys) == []
        request.ends(*keys)
    return cache


def test_of_an_ended_prompt_the_tail_goes_first_and_of_a_running_one_the_head() -> None:
    cache = cache_with("lru", 4, (1, 2))
    Request(cache).stores(3, 4)
    assert Request(cache).stores(5, 6, 7) == [2, 1, 3]


def test_loading_alone_makes_nothing_younger_but_the_end_does() -> None:
    cache = cache_with("lru", 3, (1,), (2,), (3,))
    reader = Request(cache)
    reader.loads(1)
    assert Request(cache).stores(4) == [1]
    cache = cache_with("lru", 3, (1,), (2,), (3,))
    reader = Request(cache)
    reader.loads(1)
    reader.ends(1)
    assert Request(cache).stores(4) == [2]


def test_what_is_on_its_way_in_or_out_stays_and_a_batch_gets_room_for_all_or_none() -> None:
    cache = HostCache(3, "lru")
    first, second = Request(cache), Request(cache)
    assert cache.offer(single(1), first.accesses) == single(1)  # its copy is not reported
    second.stores(2, 3)
    cache.pin(single(2), second.accesses)
    assert Request(cache).stores(4, 5) is None
    assert len(cache) == 3 and cache.get(3) is not None
    assert Request(cache).stores(4) == [3]
    cache.unpin(single(2))
    assert Request(cache).stores(5) == [2]


def test_chunks_that_are_there_are_not_stored_again_nor_thrown_out_for_their_own_batch() -> None:
    cache = cache_with("lru", 3, (1, 2, 3))
    request = Request(cache)
    assert cache.offer(single(1, 2, 4), request.accesses) == single(4)
    assert cache.evicted == single(3)


@pytest.mark.parametrize(("threshold", "offers"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_a_chunk_is_stored_from_its_so_many_th_offer_on(threshold: int, offers: int) -> None:
    cache = HostCache(2, "lru", threshold)
    for number in range(1, offers + 1):
        assert cache.offer(single(1), Accesses()) == (single(1) if number == offers else [])


def test_an_end_makes_younger_what_was_thrown_out_and_has_come_back() -> None:
    cache = HostCache(3, "lru")
    reader = Request(cache)
    reader.stores(1)
    assert Request(cache).stores(2, 3, 4) == [1]
    assert Request(cache).stores(1, 5) == [2, 3]
    reader.ends(1)
    assert [Request(cache).stores(key) for key in (6, 7)] == [[4], [5]]


def test_an_end_makes_younger_what_was_refused_and_then_brought_by_others() -> None:
    cache = HostCache(2, "lru")
    on_its_way = cache.offer(single(8, 9), Accesses())
    assert on_its_way is not None
    reader = Request(cache)
    assert reader.stores(1) is None
    cache.stored(on_its_way)
    assert Request(cache).stores(1, 2) == [8, 9]
    reader.ends(1)
    assert Request(cache).stores(3) == [2]


def test_arc_keeps_what_was_used_again_from_a_scan() -> None:
    cache = cache_with("arc", 4, (1, 2))
    again = Request(cache)
    again.loads(1, 2)
    again.ends(1, 2)
    scan = [Request(cache).stores(number) for number in range(10, 20)]
    assert scan == [[], [], *[[number] for number in range(10, 18)]]
    assert cache.get(1) is not None and cache.get(2) is not None
    lru = cache_with("lru", 4, (1, 2))
    again = Request(lru)
    again.loads(1, 2)
    again.ends(1, 2)
    for number in range(10, 20):
        Request(lru).stores(number)
    assert lru.get(1) is None and lru.get(2) is None


def test_arc_gives_more_room_to_once_used_chunks_when_lost_ones_come_back() -> None:
    cache = cache_with("arc", 2, (1,), (2,))
    reader = Request(cache)
    reader.loads(2)
    reader.ends(2)
    assert Request(cache).stores(3) == [1]  # used once
    assert Request(cache).stores(1) == [3]  # 1 was thrown out too early: room for one such
    assert Request(cache).stores(3) == [2]  # so was 3: room for two, and 2 has to go


def test_a_store_of_ones_own_is_no_second_use() -> None:
    cache = HostCache(2, "arc")
    writer = Request(cache)
    writer.stores(1)
    writer.loads(1)  # after a preemption, say
    writer.ends(1)
    reader = Request(cache)
    reader.stores(2)
    assert Request(cache).stores(3) == [1]


def test_a_chunk_without_a_place_cannot_be_loaded() -> None:
    cache = HostCache(1, "lru")
    with pytest.raises(InvariantError, match="chunk 7"):
        cache.pin(single(7), Accesses())


def test_of_longer_extents_the_last_chunks_go_first_and_the_rest_can_grow_again() -> None:
    cache = HostCache(10, "lru")
    first = Accesses()
    assert cache.offer([Span(1, 0, 4)], first) == [Span(1, 0, 4)]
    assert cache.offer([Span(1, 4, 6)], first) == [Span(1, 4, 6)]
    cache.stored([Span(1, 0, 4)])
    assert cache.offer([Span(2, 0, 8)], Accesses()) is None  # the rest of 1 is on its way
    cache.stored([Span(1, 4, 6)])
    cache.end([1], first)
    assert cache.offer([Span(2, 0, 8)], Accesses()) == [Span(2, 0, 8)]
    assert cache.evicted == [Span(1, 2, 6)]
    cache.stored([Span(2, 0, 8)])
    assert cache.offer([Span(1, 4, 6)], Accesses()) == []  # behind a gap: of no use
    assert cache.offer([Span(1, 0, 3)], Accesses()) == [Span(1, 2, 3)]
    assert cache.evicted == [Span(2, 7, 8)]
    assert (len(cache), cache.num_stored, cache.num_evicted) == (10, 15, 5)


def test_copies_that_do_not_come_leave_their_places() -> None:
    cache = HostCache(10, "lru")
    cache.offer([Span(1, 0, 4)], Accesses())
    cache.stored([Span(1, 0, 4)])
    cache.offer([Span(1, 4, 6)], Accesses())
    cache.lose([Span(1, 4, 6)])
    assert (len(cache), cache.num_lost) == (4, 2)
    held = cache.get(1)
    assert held is not None and (held.num_stores, held.num_chunks) == (0, 4)
