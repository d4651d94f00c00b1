"""A tier of KV below the device: what it holds of the extents of prompts, and whom it throws out.

A chunk is a fixed number of full blocks. Chunks are kept by extents (`dynosim.engine.block_pool`):
of each the tier holds the leading ones, as whoever needs a chunk needs all before it. An extent is
*pending* from the moment places for chunks of it are taken until their copy has been reported, and
*pinned* while somebody loads it; both keep it in place. Whoever offers a batch of chunks gets room
for all that are new, or for none. Chunks behind a gap are not taken.

Semantics, where extents are single chunks: vLLM 0.32's CPU offloading manager with its two
policies; ARC after Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache" (FAST
2003).
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from dynosim.engine.spec import EvictionPolicy
from dynosim.errors import InvariantError


class Span:
    """Consecutive chunks of an extent: `first` to before `end`."""

    __slots__ = ("content", "end", "first")

    def __init__(self, content: int, first: int, end: int) -> None:
        self.content = content
        self.first = first
        self.end = end

    def __repr__(self) -> str:
        return f"Span({self.content}, {self.first}, {self.end})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Span):
            return NotImplemented
        mine, theirs = (self.content, self.first, self.end), (other.content, other.first, other.end)
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.content, self.first, self.end))


class HeldExtent:
    """The leading chunks of an extent that have a place in the tier."""

    __slots__ = ("content", "num_chunks", "num_loads", "num_stores")

    def __init__(self, content: int) -> None:
        self.content = content
        self.num_chunks = 0
        self.num_stores = 0  # under way
        self.num_loads = 0  # under way

    @property
    def is_free(self) -> bool:
        """Whether it may be thrown out."""
        return self.num_stores == 0 and self.num_loads == 0


class Policy(Protocol):
    """The extents in the order in which they go."""

    num_chunks: int  # that have a place

    def get(self, content: int) -> HeldExtent | None:
        """The extent of that name, if any of it has a place."""
        ...

    def grow(self, content: int, num_chunks: int) -> HeldExtent:
        """Give further chunks of an extent places."""
        ...

    def missed(self, content: int, num_chunks: int) -> None:
        """A request offers chunks that have no place, for the first time."""
        ...

    def evict(self, number: int, kept: Collection[int]) -> list[Span] | None:
        """Throw so many chunks out, none of the extents kept; None, and nothing done, if that
        cannot be."""
        ...

    def used(self, content: int, *, is_new: bool, again: bool) -> None:
        """A request that ended had an extent; `again`: it found it or loaded it; `is_new`: it only
        brought it here."""
        ...


class Lru:
    """What was used least recently goes first."""

    def __init__(self) -> None:
        self.num_chunks = 0
        self._extents: OrderedDict[int, HeldExtent] = OrderedDict()  # oldest first

    def get(self, content: int) -> HeldExtent | None:
        """See `Policy`."""
        return self._extents.get(content)

    def grow(self, content: int, num_chunks: int) -> HeldExtent:
        """See `Policy`."""
        extent = self._extents.get(content)
        if extent is None:
            extent = self._extents[content] = HeldExtent(content)
        else:
            self._extents.move_to_end(content)
        extent.num_chunks += num_chunks
        self.num_chunks += num_chunks
        return extent

    def missed(self, content: int, num_chunks: int) -> None:
        """See `Policy`."""

    def evict(self, number: int, kept: Collection[int]) -> list[Span] | None:
        """See `Policy`."""
        victims: list[Span] = []
        lacking = number
        for extent in _free(self._extents, kept):
            end = extent.num_chunks
            first = end - lacking if end > lacking else 0
            victims.append(Span(extent.content, first, end))
            lacking -= end - first
            if lacking == 0:
                break
        if lacking:
            return None
        for span in victims:
            _cut(self._extents, span)
        self.num_chunks -= number
        return victims

    def used(self, content: int, *, is_new: bool, again: bool) -> None:
        """See `Policy`."""
        if content in self._extents:
            self._extents.move_to_end(content)


class Arc:
    """What was used once (`_once`) and again (`_again`), with what each lost.

    `_target` is how many chunks of the former there should be; it learns from which of the lost
    come back.
    """

    def __init__(self, capacity: int) -> None:
        self.num_chunks = 0
        self._capacity = capacity
        self._once: OrderedDict[int, HeldExtent] = OrderedDict()  # oldest first, as all
        self._again: OrderedDict[int, HeldExtent] = OrderedDict()
        self._num_once = 0  # chunks
        self._lost_once = _Lost(capacity)
        self._lost_again = _Lost(capacity)
        self._target = 0.0

    def get(self, content: int) -> HeldExtent | None:
        """See `Policy`."""
        return self._once.get(content) or self._again.get(content)

    def grow(self, content: int, num_chunks: int) -> HeldExtent:
        """See `Policy`."""
        self._lost_once.forget(content)
        self._lost_again.forget(content)
        self.num_chunks += num_chunks
        extent = self._again.get(content)
        if extent is None:
            self._num_once += num_chunks
            extent = self._once.get(content)
            if extent is None:
                extent = self._once[content] = HeldExtent(content)
            else:
                self._once.move_to_end(content)
        extent.num_chunks += num_chunks
        return extent

    def missed(self, content: int, num_chunks: int) -> None:
        """See `Policy`."""
        once, again = self._lost_once, self._lost_again
        if content in once.chunks:
            self._target += num_chunks * max(1.0, again.num_chunks / once.num_chunks)
            self._target = min(self._target, self._capacity)
            once.chunks.move_to_end(content)
        elif content in again.chunks:
            self._target -= num_chunks * max(1.0, once.num_chunks / again.num_chunks)
            self._target = max(self._target, 0.0)
            again.chunks.move_to_end(content)

    def evict(self, number: int, kept: Collection[int]) -> list[Span] | None:
        """See `Policy`."""
        order: list[Span] = []
        once, again = _Victims(self._once, kept, order), _Victims(self._again, kept, order)
        num_once, target, lacking = self._num_once, int(self._target), number
        while lacking > 0:
            taken = 0
            if num_once >= target:
                taken = once.take(min(lacking, num_once - target + 1))
                num_once -= taken
            if not taken:
                taken = again.take(lacking)
            if not taken:
                taken = once.take(lacking)
                num_once -= taken
            if not taken:
                return None
            lacking -= taken
        for victims, extents, lost in (
            (once, self._once, self._lost_once),
            (again, self._again, self._lost_again),
        ):
            for span in victims.spans:
                _cut(extents, span)
                lost.add(span)
        self._num_once = num_once
        self.num_chunks -= number
        return order

    def used(self, content: int, *, is_new: bool, again: bool) -> None:
        """See `Policy`."""
        extent = self._once.get(content)
        if extent is None:
            if (is_new or again) and content in self._again:
                self._again.move_to_end(content)
        elif is_new:
            self._once.move_to_end(content)
        elif again:
            self._again[content] = self._once.pop(content)
            self._num_once -= extent.num_chunks


class _Lost:
    """Names of chunks that had a place, at most `capacity` of them, the oldest first."""

    def __init__(self, capacity: int) -> None:
        self.chunks: OrderedDict[int, int] = OrderedDict()  # content -> number of them
        self.num_chunks = 0
        self._capacity = capacity

    def add(self, span: Span) -> None:
        """Chunks have been thrown out."""
        self.chunks[span.content] = self.chunks.get(span.content, 0) + span.end - span.first
        self.chunks.move_to_end(span.content)
        self.num_chunks += span.end - span.first
        while self.num_chunks > self._capacity:
            content, num_chunks = next(iter(self.chunks.items()))
            kept = max(0, num_chunks - (self.num_chunks - self._capacity))
            self.num_chunks -= num_chunks - kept
            if kept:
                self.chunks[content] = kept
            else:
                del self.chunks[content]

    def forget(self, content: int) -> None:
        """An extent has a place again."""
        self.num_chunks -= self.chunks.pop(content, 0)


class _Victims:
    """Takes chunks of extents that may go, the oldest first, from their ends."""

    def __init__(
        self, extents: OrderedDict[int, HeldExtent], kept: Collection[int], order: list[Span]
    ) -> None:
        self.spans: list[Span] = []
        self._order = order  # of those of both lists
        self._free = _free(extents, kept)
        self._num_left = 0  # of the extent that was come to last

    def take(self, number: int) -> int:
        """At most so many chunks of one extent; returns how many, 0 where none is left."""
        if self._num_left == 0:
            extent = next(self._free, None)
            if extent is None:
                return 0
            self._num_left = extent.num_chunks
            self.spans.append(Span(extent.content, self._num_left, self._num_left))
            self._order.append(self.spans[-1])
        taken = min(number, self._num_left)
        self._num_left -= taken
        self.spans[-1].first = self._num_left
        return taken


def _free(extents: OrderedDict[int, HeldExtent], kept: Collection[int]) -> Iterator[HeldExtent]:
    """Those that may be thrown out, the oldest first."""
    return (extent for extent in extents.values() if extent.is_free and extent.content not in kept)


def _cut(extents: OrderedDict[int, HeldExtent], span: Span) -> None:
    """Take the last chunks of an extent out."""
    extents[span.content].num_chunks = span.first
    if span.first == 0:
        del extents[span.content]


class Accesses:
    """What one request has had to do with the tier, for its end."""

    __slots__ = ("again", "inserted", "missed", "seen")

    def __init__(self) -> None:
        self.seen: set[int] = set()  # extents that it offered and that were new or ready; loaded
        self.inserted: set[int] = set()
        self.again: set[int] = set()  # found ready or loaded, not inserted by itself
        self.missed: set[int] = set()  # of which the policy has heard that they were new

    def found(self, content: int) -> None:
        """An extent was there, ready."""
        self.seen.add(content)
        if content not in self.inserted:
            self.again.add(content)


class Offered:
    """What became of an offer."""

    __slots__ = ("evicted", "new")

    def __init__(self, new: list[Span], evicted: list[Span]) -> None:
        self.new = new  # to be copied
        self.evicted = evicted


NOTHING: list[Span] = []  # never changed


class HostCache:
    """The tier. `store_threshold`: a chunk is stored from the so many-th offer on."""

    def __init__(self, capacity: int, policy: EvictionPolicy, store_threshold: int = 0) -> None:
        self.capacity = capacity
        self.num_stored = 0  # chunks that were ever given a place
        self.num_evicted = 0
        self._extents: Lru | Arc = Lru() if policy == "lru" else Arc(capacity)
        self._is_arc = policy == "arc"
        self._threshold = store_threshold
        self._num_offers: dict[int, int] = {}

    def __len__(self) -> int:
        """Chunks that have a place, pending ones included."""
        return self._extents.num_chunks

    def get(self, content: int) -> HeldExtent | None:
        """The extent of that name, if any of it has a place."""
        return self._extents.get(content)

    def offer(self, spans: Sequence[Span], accesses: Accesses) -> Offered | None:
        """Make room for the new ones among these; None if there is none for all of them."""
        new: list[Span] = []
        num_new = 0
        for span in spans:
            content = span.content
            extent = self._extents.get(content)
            num_held = 0
            if extent is not None:
                num_held = extent.num_chunks
                if extent.num_stores == 0:
                    accesses.found(content)
            if self._threshold > 1 and not self._is_wanted(span):
                continue
            if span.first <= num_held < span.end:
                new.append(Span(content, num_held, span.end))
                num_new += span.end - num_held
                accesses.seen.add(content)
        if not new:
            return Offered(NOTHING, NOTHING)
        if self._is_arc:
            self._note_missed(new, accesses)
        evicted = NOTHING
        num_lacking = num_new - (self.capacity - self._extents.num_chunks)
        if num_lacking > 0:
            victims = self._extents.evict(num_lacking, [span.content for span in spans])
            if victims is None:
                return None
            evicted = victims
            self.num_evicted += num_lacking
        for span in new:
            self._extents.grow(span.content, span.end - span.first).num_stores += 1
            accesses.inserted.add(span.content)
        self.num_stored += num_new
        return Offered(new, evicted)

    def _is_wanted(self, span: Span) -> bool:
        """Whether an extent has been offered often enough; its parts are offered one by one."""
        number = self._num_offers.get(span.content, 0)
        if span.first == 0:
            number += 1
            self._num_offers[span.content] = number
        return number >= self._threshold

    def _note_missed(self, new: list[Span], accesses: Accesses) -> None:
        for span in reversed(new):
            if span.content not in accesses.missed:
                self._extents.missed(span.content, span.end - span.first)
                accesses.missed.add(span.content)

    def stored(self, spans: Sequence[Span]) -> None:
        """The copies of pending chunks have been reported."""
        for span in spans:
            self._held(span.content).num_stores -= 1

    def pin(self, spans: Sequence[Span], accesses: Accesses) -> None:
        """Chunks begin to be loaded."""
        for span in spans:
            self._held(span.content).num_loads += 1
            accesses.found(span.content)

    def unpin(self, spans: Sequence[Span]) -> None:
        """Loads of chunks have ended."""
        for span in spans:
            self._held(span.content).num_loads -= 1

    def end(self, contents: Sequence[int], accesses: Accesses) -> None:
        """A request has ended that had these extents, in the order of its prompt."""
        seen, inserted, again = accesses.seen, accesses.inserted, accesses.again
        for content in reversed(contents):
            if content in seen:
                is_again = content in again
                is_new = content in inserted and not is_again
                self._extents.used(content, is_new=is_new, again=is_again)

    def _held(self, content: int) -> HeldExtent:
        extent = self._extents.get(content)
        if extent is None:
            raise InvariantError(f"chunk {content} has no place in the tier")
        return extent
