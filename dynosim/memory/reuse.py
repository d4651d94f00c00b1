"""What a prefix cache of any size would have of a trace, under LRU, ARC and perfect foresight.

One request after the other, in no time: a request finds the leading run of its prompt's blocks that
the cache holds, then has touched all of them. What requests in flight hold at once, when blocks
come to be there and who is placed where is not known here; a run of the twin knows.

Prompts are given as extents, runs of blocks that are always touched whole, so that LRU and the
optimum cost the same for blocks of 16 tokens as for blocks of 512. ARC goes block by block.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np

from dynosim.engine.host_cache import Accesses, HostCache, Span
from dynosim.engine.spec import EvictionPolicy
from dynosim.records import IntArray

_NEVER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheVisits:
    """What the requests of a trace touch, in their order.

    Request i touches the extents `extents[offsets[i]:offsets[i + 1]]`, root first, and behind them
    `answer_blocks[i]` blocks that nobody else ever touches. Before an extent come the same ones
    wherever it is visited.
    """

    extents: IntArray  # (visits,)
    blocks: IntArray  # (visits,) of each extent, >= 1
    is_hittable: np.ndarray[tuple[int], np.dtype[np.bool_]]  # (visits,) False: computed anyway
    offsets: IntArray  # (n + 1,)
    answer_blocks: IntArray  # (n,)

    def __len__(self) -> int:
        return len(self.answer_blocks)

    def total(self, values: IntArray) -> IntArray:
        """The sum over each request's visits (n,)."""
        before = np.concatenate(([0], np.cumsum(values)))
        sums: IntArray = before[self.offsets[1:]] - before[self.offsets[:-1]]
        return sums


class LruReuse:
    """What LRU hits at every capacity, from one pass.

    A request makes its blocks the youngest, the first of its prompt youngest of all, as engines
    free them. So a cache of C blocks holds the C youngest, for every C: a block is hit where it is
    among them, and whoever is among them has all before it there too.

    Source: Mattson et al., "Evaluation techniques for storage hierarchies" (1970).
    """

    def __init__(self, visits: CacheVisits) -> None:
        self._visits = visits
        younger = _younger_blocks(visits)
        self._is_reuse = visits.is_hittable & (younger != _NEVER)
        self._younger = younger
        # What a visit hits rises by one a block, from its first to its last.
        self._starts = _Ramp(younger[self._is_reuse])
        self._ends = _Ramp((younger + visits.blocks)[self._is_reuse])

    @property
    def working_set_blocks(self) -> int:
        """The capacity from which on more is of no use; 0: nothing is ever hit."""
        return self._ends.last

    def hits(self, capacity: int) -> int:
        """Blocks hit, over all requests."""
        return self._starts.height(capacity) - self._ends.height(capacity)

    def hits_of_requests(self, capacity: int) -> IntArray:
        """Blocks that each request hits (n,)."""
        hits = np.clip(capacity - self._younger, 0, self._visits.blocks)
        return self._visits.total(np.where(self._is_reuse, hits, 0))

    def capacity_for(self, hits: int) -> int:
        """The smallest capacity with so many hits. Raises: ValueError if there is none."""
        if hits > self.hits(self.working_set_blocks):
            raise ValueError(f"{hits} hits are more than an endless cache has")
        return bisect_left(range(self.working_set_blocks + 1), hits, key=self.hits)


class _Ramp:
    """The sum of max(0, x - start) over many starts."""

    def __init__(self, starts: IntArray) -> None:
        self._starts = np.sort(starts)
        self._sums = np.concatenate(([0], np.cumsum(self._starts)))

    @property
    def last(self) -> int:
        return int(self._starts[-1]) if len(self._starts) else 0

    def height(self, x: int) -> int:
        count = int(np.searchsorted(self._starts, x))
        return count * x - int(self._sums[count])


class _Touches:
    """Blocks by when they were touched last, in slots from the oldest on (a Fenwick tree)."""

    def __init__(self, num_slots: int) -> None:
        self._sums = [0] * (num_slots + 1)
        self._total = 0

    def add(self, slot: int, blocks: int) -> None:
        sums, slot = self._sums, slot + 1
        self._total += blocks
        while slot < len(sums):
            sums[slot] += blocks
            slot += slot & -slot

    def younger_than(self, slot: int) -> int:
        sums, slot, older = self._sums, slot + 1, 0
        while slot:
            older += sums[slot]
            slot &= slot - 1
        return self._total - older


def _younger_blocks(visits: CacheVisits) -> IntArray:
    """Blocks that were touched after each visit's extent, when its request came; `_NEVER`: it is
    visited for the first time (visits,)."""
    touches = _Touches(len(visits.extents) + len(visits))
    younger = [_NEVER] * len(visits.extents)
    extents, blocks = visits.extents.tolist(), visits.blocks.tolist()
    answers: list[int] = visits.answer_blocks.tolist()
    slot_of: dict[int, int] = {}
    slot = 0
    for request, (begin, end) in enumerate(pairwise(visits.offsets.tolist())):
        for visit in range(begin, end):
            known = slot_of.get(extents[visit])
            if known is not None:
                younger[visit] = touches.younger_than(known)
        touches.add(slot, answers[request])
        for visit in range(end - 1, begin - 1, -1):
            slot += 1
            known = slot_of.get(extents[visit])
            if known is not None:
                touches.add(known, -blocks[visit])
            slot_of[extents[visit]] = slot
            touches.add(slot, blocks[visit])
        slot += 1
    return np.array(younger, np.int64)


class OptimalReuse:
    """The most that any cache can hit, whatever it knows of the future.

    After each request it keeps, of what it held and what the request touched, the blocks that are
    hit soonest (Belady's rule); what is never hit again it does not keep at all. No other choice
    hits more blocks one by one: keeping x where another cache keeps y, hit later than x, gains a
    hit when x comes and loses at most one when y does. Here the blocks also are leading runs, so
    that the figure is reached, not only a bound: whoever touches a block touches all before it, so
    these are never hit later, and among equals the first of a prompt is kept.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer" (1966).
    """

    def __init__(self, visits: CacheVisits) -> None:
        self._offsets: list[int] = visits.offsets.tolist()
        self._blocks: list[int] = visits.blocks.tolist()
        self._next: list[int] = _next_visits(visits).tolist()
        self._known: dict[int, int] = {}

    def hits(self, capacity: int) -> int:
        """Blocks hit, over all requests, by a cache of so many blocks."""
        if capacity not in self._known:
            self._known[capacity] = self._replay(capacity)
        return self._known[capacity]

    def capacity_for(self, hits: int, *, at_most: int) -> int:
        """The smallest capacity with so many hits, which `at_most` is known to have."""
        return bisect_left(range(at_most), hits, key=self.hits)

    def _replay(self, capacity: int) -> int:
        next_visit, blocks = self._next, self._blocks
        kept = [0] * len(blocks)  # leading blocks kept of what is hit at each visit
        latest: list[int] = []  # a heap of those visits, the last one first
        num_kept = num_hits = 0
        for begin, end in pairwise(self._offsets):
            hits = sum(kept[begin:end])
            num_hits += hits
            num_kept -= hits
            for visit in range(begin, end):
                coming = next_visit[visit]
                if coming != _NEVER:
                    kept[coming] = blocks[visit]
                    num_kept += blocks[visit]
                    heappush(latest, -coming)
            while num_kept > capacity:
                last = -latest[0]
                surplus = num_kept - capacity
                if kept[last] > surplus:
                    kept[last] -= surplus
                    num_kept = capacity
                else:
                    heappop(latest)
                    num_kept -= kept[last]
                    kept[last] = 0
        return num_hits


def _next_visits(visits: CacheVisits) -> IntArray:
    """The next visit of each visit's extent (visits,); `_NEVER` if there is none, or if its blocks
    are not to be hit there and will be there again afterwards."""
    order = np.argsort(visits.extents, kind="stable")
    following = np.full(len(order), _NEVER, np.int64)
    is_same = visits.extents[order][1:] == visits.extents[order][:-1]
    following[order[:-1][is_same]] = order[1:][is_same]
    is_hit = (following != _NEVER) & visits.is_hittable[following]
    return np.where(is_hit, following, _NEVER)


def tier_hits(
    visits: CacheVisits,
    capacity: int,
    policy: EvictionPolicy,
    found_before: IntArray | None = None,
) -> IntArray:
    """Blocks that each request hits in a tier of so many blocks (n,), behind the leading
    `found_before` (n,) that it found in a faster one.

    All that requests touch is written to the tier, what a faster one has too (write-through), and
    ranked by the policies of the twin's host tier. A prompt larger than the tier is there with its
    beginning. Every extent has to be one block.
    """
    if bool((visits.blocks != 1).any()):
        raise ValueError("expected extents of one block")
    cache = HostCache(capacity, policy)
    paths: list[int] = visits.extents.tolist()
    limits: list[int] = visits.total(visits.is_hittable.astype(np.int64)).tolist()
    answers: list[int] = visits.answer_blocks.tolist()
    first: list[int] = [0] * len(visits) if found_before is None else found_before.tolist()
    hits = np.zeros(len(visits), np.int64)
    num_answered = 0
    for request, (begin, end) in enumerate(pairwise(visits.offsets.tolist())):
        path = paths[begin:end]
        hits[request] = _leading(cache, path[first[request] : limits[request]])
        num_answered += answers[request]
        path += range(-num_answered, answers[request] - num_answered)
        _touch(cache, path[:capacity])
    return hits


def _leading(cache: HostCache, path: Sequence[int]) -> int:
    """How many of these blocks the tier holds before the first that it does not."""
    for depth, key in enumerate(path):
        if cache.get(key) is None:
            return depth
    return len(path)


def _touch(cache: HostCache, path: list[int]) -> None:
    """A request that has these blocks comes and goes."""
    accesses = Accesses()
    new = cache.offer([Span(block, 0, 1) for block in path], accesses)
    assert new is not None, "nobody else holds anything"
    cache.stored(new)
    cache.end(path, accesses)
