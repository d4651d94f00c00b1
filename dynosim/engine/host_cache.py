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
from collections.abc import Sequence
from typing import Protocol

from dynosim.engine.spec import TierPolicy
from dynosim.errors import InvariantError


class Span:
    """Consecutive chunks of an extent: `first` to before `end`."""

    __slots__ = ("content", "end", "extent", "first")

    def __init__(self, content: int, first: int, end: int) -> None:
        self.content = content
        self.first = first
        self.end = end
        # What the tier that was last asked about them has of the extent, to be looked up once.
        self.extent: HeldExtent | None = None

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

    __slots__ = ("batch", "content", "num_chunks", "num_loads", "num_stores", "older", "younger")

    def __init__(self, content: int) -> None:
        self.content = content
        self.num_chunks = 0  # 0: it has lost its place
        self.batch = 0  # the last offer, by number, that it was in
        self.num_stores = 0  # under way
        self.num_loads = 0  # under way
        self.older: HeldExtent | None = None  # its neighbours in a `AgeRanking`
        self.younger: HeldExtent | None = None


class AgeRanking:
    """Extents by name, and from the oldest to the youngest."""

    __slots__ = ("_extents", "_youngest", "num_chunks", "oldest")

    def __init__(self) -> None:
        self.num_chunks = 0
        self.oldest: HeldExtent | None = None
        self._youngest: HeldExtent | None = None
        self._extents: dict[int, HeldExtent] = {}

    def get(self, content: int) -> HeldExtent | None:
        """The extent of that name."""
        return self._extents.get(content)

    def add(self, extent: HeldExtent) -> None:
        """A further extent, the youngest."""
        self._extents[extent.content] = extent
        self.num_chunks += extent.num_chunks
        self._append(extent)

    def remove(self, extent: HeldExtent) -> None:
        """An extent goes."""
        del self._extents[extent.content]
        self.num_chunks -= extent.num_chunks
        self._unlink(extent)
        extent.older = extent.younger = None  # somebody may keep it, but not all that came after

    def renew(self, extent: HeldExtent) -> None:
        """An extent is the youngest from now on."""
        if extent is not self._youngest:
            self._unlink(extent)
            self._append(extent)

    def grow(self, extent: HeldExtent, num_chunks: int) -> None:
        """An extent gets further chunks."""
        extent.num_chunks += num_chunks
        self.num_chunks += num_chunks

    def cut(self, extent: HeldExtent, num_kept: int) -> None:
        """The last chunks of an extent go."""
        if num_kept == 0:
            self.remove(extent)
            extent.num_chunks = 0
        else:
            self.num_chunks -= extent.num_chunks - num_kept
            extent.num_chunks = num_kept

    def clear(self) -> None:
        """Nothing is held any more; what was refers to nothing."""
        for extent in self._extents.values():
            extent.older = extent.younger = None
        self._extents.clear()
        self.oldest = self._youngest = None
        self.num_chunks = 0

    def _append(self, extent: HeldExtent) -> None:
        extent.older = self._youngest
        extent.younger = None
        if self._youngest is None:
            self.oldest = extent
        else:
            self._youngest.younger = extent
        self._youngest = extent

    def _unlink(self, extent: HeldExtent) -> None:
        older, younger = extent.older, extent.younger
        if older is None:
            self.oldest = younger
        else:
            older.younger = younger
        if younger is None:
            self._youngest = older
        else:
            younger.older = older


class Policy(Protocol):
    """The extents in the order in which they go."""

    @property
    def num_chunks(self) -> int:
        """Chunks that have a place."""
        ...

    def get(self, content: int) -> HeldExtent | None:
        """The extent of that name, if any of it has a place."""
        ...

    def grow(self, extent: HeldExtent | None, content: int, num_chunks: int) -> HeldExtent:
        """Give further chunks of an extent places; None: it has none yet."""
        ...

    def drop(self, span: Span) -> None:
        """Take the last chunks of an extent out."""
        ...

    def missed(self, content: int, num_chunks: int) -> None:
        """A request offers chunks that have no place, for the first time."""
        ...

    def evict(self, number: int, batch: int) -> list[Span] | None:
        """Throw so many chunks out, none of extents that are in that batch, pending or pinned;
        None, and nothing done, if that cannot be."""
        ...

    def used(self, extent: HeldExtent, *, is_new: bool, again: bool) -> None:
        """A request that ended had an extent; `again`: it found it or loaded it; `is_new`: it only
        brought it here."""
        ...

    def clear(self) -> None:
        """Nothing is held any more."""
        ...


class Lru:
    """What was used least recently goes first."""

    def __init__(self) -> None:
        self._extents = AgeRanking()

    @property
    def num_chunks(self) -> int:
        """See `Policy`."""
        return self._extents.num_chunks

    def get(self, content: int) -> HeldExtent | None:
        """See `Policy`."""
        return self._extents.get(content)

    def grow(self, extent: HeldExtent | None, content: int, num_chunks: int) -> HeldExtent:
        """See `Policy`."""
        if extent is None:
            extent = HeldExtent(content)
            self._extents.add(extent)
        else:
            self._extents.renew(extent)
        self._extents.grow(extent, num_chunks)
        return extent

    def drop(self, span: Span) -> None:
        """See `Policy`."""
        extent = self._extents.get(span.content)
        if extent is not None:
            self._extents.cut(extent, span.first)

    def missed(self, content: int, num_chunks: int) -> None:
        """See `Policy`."""

    def evict(self, number: int, batch: int) -> list[Span] | None:
        """See `Policy`."""
        victims = Victims(self._extents, batch)
        lacking = number
        while lacking > 0:
            taken = victims.take(lacking)
            if not taken:
                return None
            lacking -= taken
        victims.go()
        return victims.spans

    def used(self, extent: HeldExtent, *, is_new: bool, again: bool) -> None:
        """See `Policy`."""
        self._extents.renew(extent)

    def clear(self) -> None:
        """See `Policy`."""
        self._extents.clear()


class Arc:
    """What was used once (`_once`) and again (`_again`), with what each lost.

    `_target` is how many chunks of the former there should be; it learns from which of the lost
    come back.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._once = AgeRanking()
        self._again = AgeRanking()
        self._lost_once = _Lost(capacity)
        self._lost_again = _Lost(capacity)
        self._target = 0.0

    @property
    def num_chunks(self) -> int:
        """See `Policy`."""
        return self._once.num_chunks + self._again.num_chunks

    def get(self, content: int) -> HeldExtent | None:
        """See `Policy`."""
        return self._once.get(content) or self._again.get(content)

    def grow(self, extent: HeldExtent | None, content: int, num_chunks: int) -> HeldExtent:
        """See `Policy`."""
        self._lost_once.forget(content)
        self._lost_again.forget(content)
        if extent is not None and self._again.get(content) is extent:
            self._again.grow(extent, num_chunks)
            return extent
        if extent is None:
            extent = HeldExtent(content)
            self._once.add(extent)
        else:
            self._once.renew(extent)
        self._once.grow(extent, num_chunks)
        return extent

    def drop(self, span: Span) -> None:
        """See `Policy`."""
        for extents in (self._once, self._again):
            extent = extents.get(span.content)
            if extent is not None:
                extents.cut(extent, span.first)

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

    def evict(self, number: int, batch: int) -> list[Span] | None:
        """See `Policy`."""
        once, again = Victims(self._once, batch), Victims(self._again, batch)
        order: list[Span] = []
        num_once, target, lacking = self._once.num_chunks, int(self._target), number
        while lacking > 0:
            victims, taken = once, 0
            if num_once >= target:
                taken = once.take(min(lacking, num_once - target + 1))
            if not taken:
                victims, taken = again, again.take(lacking)
            if not taken:
                victims, taken = once, once.take(lacking)
            if not taken:
                return None
            if victims is once:
                num_once -= taken
            if len(victims.spans) > victims.num_told:
                victims.num_told += 1
                order.append(victims.spans[-1])
            lacking -= taken
        for victims, lost in ((once, self._lost_once), (again, self._lost_again)):
            victims.go()
            for span in victims.spans:
                lost.add(span)
        return order

    def used(self, extent: HeldExtent, *, is_new: bool, again: bool) -> None:
        """See `Policy`."""
        is_once = self._once.get(extent.content) is not None
        if is_once and is_new:
            self._once.renew(extent)
        elif is_once and again:
            self._once.remove(extent)
            self._again.add(extent)
        elif is_new or again:
            self._again.renew(extent)

    def clear(self) -> None:
        """See `Policy`."""
        self._once.clear()
        self._again.clear()


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


class Victims:
    """Takes chunks of extents that may go, the oldest first, from their ends."""

    def __init__(self, extents: AgeRanking, batch: int) -> None:
        self.spans: list[Span] = []
        self._extents = extents
        self._chosen: list[HeldExtent] = []  # of the spans
        self.num_told = 0  # of the spans, to who keeps the order of those of several rankings
        self._next = extents.oldest
        self._batch = batch
        self._num_left = 0  # of the extent that was come to last

    def take(self, number: int) -> int:
        """At most so many chunks of one extent; returns how many, 0 where none is left."""
        if self._num_left == 0:
            extent = self._next
            while extent is not None and (
                extent.num_stores > 0 or extent.num_loads > 0 or extent.batch == self._batch
            ):
                extent = extent.younger
            if extent is None:
                self._next = None
                return 0
            self._next = extent.younger
            self._num_left = extent.num_chunks
            self._chosen.append(extent)
            self.spans.append(Span(extent.content, self._num_left, self._num_left))
        taken = number if number < self._num_left else self._num_left
        self._num_left -= taken
        self.spans[-1].first = self._num_left
        return taken

    def go(self) -> None:
        """What was taken goes."""
        spans = self.spans
        for index, extent in enumerate(self._chosen):
            self._extents.cut(extent, spans[index].first)


class Accesses:
    """What one request has had to do with the tier, for its end."""

    __slots__ = ("again", "inserted", "missed", "seen")

    def __init__(self) -> None:
        # Extents that it offered and that were new or ready; loaded. None: had no place then.
        self.seen: dict[int, HeldExtent | None] = {}
        # What only ARC asks for: inserted; found ready or loaded, not inserted by itself; told to
        # the policy as new.
        self.inserted: set[int] | None = None
        self.again: set[int] | None = None
        self.missed: set[int] | None = None

    def keep_all(self) -> None:
        """From the start, for ARC."""
        if self.inserted is None:
            self.inserted, self.again, self.missed = set(), set(), set()

    def found(self, extent: HeldExtent) -> None:
        """An extent was there, ready."""
        content = extent.content
        self.seen[content] = extent
        if self.again is not None and self.inserted is not None and content not in self.inserted:
            self.again.add(content)


class TierProgress:
    """How far a request is with the nearest tier."""

    __slots__ = ("accesses", "blank_below", "num_jobs", "num_offered")

    def __init__(self) -> None:
        self.num_offered = 0  # leading chunks
        self.num_jobs = 0  # under way
        self.blank_below: int | None = None  # blank blocks when its own were freed, after its end
        self.accesses = Accesses()


NOTHING: list[Span] = []  # never changed


class HostCache:
    """The tier. `store_threshold`: a chunk is stored from the so many-th offer on.

    Nobody says anything of worth here, so with `priority` it goes by age.
    """

    def __init__(self, capacity: int, policy: TierPolicy, store_threshold: int = 0) -> None:
        self.capacity = capacity
        self.num_stored = 0  # chunks that were ever given a place
        self.num_evicted = 0
        self.num_lost = 0  # whose copies did not come
        self.num_loaded = 0
        self.evicted = NOTHING  # by the last offer
        self.is_view = False  # on what others hold: nothing is stored through it
        self._extents: Lru | Arc = Arc(capacity) if policy == "arc" else Lru()
        self._is_arc = policy == "arc"
        self._threshold = store_threshold
        self._num_offers: dict[int, int] = {}
        self._last_batch = 0

    def __len__(self) -> int:
        """Chunks that have a place, pending ones included."""
        return self._extents.num_chunks

    def get(self, content: int) -> HeldExtent | None:
        """The extent of that name, if any of it has a place."""
        return self._extents.get(content)

    def offer(self, spans: list[Span], accesses: Accesses) -> list[Span] | None:
        """Make room for the new ones among these, which are returned, to be copied; None if there
        is none for all of them. `evicted` are those that had to go."""
        if self._is_arc:
            accesses.keep_all()
        self.evicted = NOTHING
        new = self._without_place(spans, accesses)
        if not new:
            return new
        num_new = 0
        for span in new:
            num_new += span.end - span.first
        if self._is_arc:
            self._note_missed(new, accesses)
        extents = self._extents
        num_lacking = num_new - (self.capacity - extents.num_chunks)
        if num_lacking > 0:
            evicted = extents.evict(num_lacking, self._last_batch)
            if evicted is None:
                for span in new:
                    accesses.seen[span.content] = span.extent
                return None
            self.evicted = evicted
            self.num_evicted += num_lacking
        for span in new:
            extent = extents.grow(span.extent, span.content, span.end - span.first)
            extent.num_stores += 1
            span.extent = accesses.seen[span.content] = extent
            if accesses.inserted is not None:
                accesses.inserted.add(span.content)
        self.num_stored += num_new
        return new

    def _without_place(self, spans: list[Span], accesses: Accesses) -> list[Span]:
        """Which of the chunks offered are new, and to be stored."""
        new: list[Span] = []
        self._last_batch += 1
        for span in spans:
            content = span.content
            extent = span.extent = self._extents.get(content)
            num_held = 0
            if extent is not None:
                num_held = extent.num_chunks
                extent.batch = self._last_batch
                if extent.num_stores == 0:
                    accesses.found(extent)
            if self._threshold > 1 and not self._is_wanted(span):
                continue
            if span.first <= num_held < span.end:
                rest = span
                if num_held > span.first:
                    rest = Span(content, num_held, span.end)
                    rest.extent = extent
                new.append(rest)
        return new

    def _is_wanted(self, span: Span) -> bool:
        """Whether an extent has been offered often enough; its parts are offered one by one."""
        number = self._num_offers.get(span.content, 0)
        if span.first == 0:
            number += 1
            self._num_offers[span.content] = number
        return number >= self._threshold

    def _note_missed(self, new: list[Span], accesses: Accesses) -> None:
        missed = accesses.missed
        assert missed is not None
        for span in reversed(new):
            if span.content not in missed:
                self._extents.missed(span.content, span.end - span.first)
                missed.add(span.content)

    def stored(self, spans: Sequence[Span]) -> None:
        """The copies of pending chunks have been reported."""
        for span in spans:
            self._held(span).num_stores -= 1

    def pin(self, spans: Sequence[Span], accesses: Accesses) -> None:
        """Chunks begin to be loaded."""
        if self._is_arc:
            accesses.keep_all()
        for span in spans:
            span.extent = None
            extent = self._held(span)
            extent.num_loads += 1
            self.num_loaded += span.end - span.first
            accesses.found(extent)

    def unpin(self, spans: Sequence[Span]) -> None:
        """Loads of chunks have ended."""
        for span in spans:
            self._held(span).num_loads -= 1

    def use(self, spans: Sequence[Span]) -> None:
        """Chunks begin to be loaded by somebody of whom nothing else is kept: they are used now."""
        for span in spans:
            span.extent = None
            extent = self._held(span)
            extent.num_loads += 1
            self.num_loaded += span.end - span.first
            self._extents.used(extent, is_new=False, again=True)

    def lose(self, spans: list[Span]) -> None:
        """Chunks whose copies were under way will not come; what lies behind them is gone, too."""
        for span in spans:
            extent = self._held(span)
            extent.num_stores -= 1
            if extent.num_stores == 0 and extent.num_loads == 0 and extent.num_chunks > span.first:
                self.num_lost += extent.num_chunks - span.first
                self._extents.drop(Span(span.content, span.first, extent.num_chunks))

    def end(self, contents: list[int], accesses: Accesses) -> None:
        """A request has ended that had these extents, in the order of its prompt."""
        seen, inserted, again = accesses.seen, accesses.inserted, accesses.again
        for place in range(len(contents) - 1, -1, -1):  # from the end; compiled, faster so
            content = contents[place]
            if content not in seen:
                continue
            extent = seen[content]
            if extent is None or extent.num_chunks == 0:  # it may have a place again
                extent = self._extents.get(content)
            if extent is not None:
                is_again = again is not None and content in again
                is_new = inserted is not None and content in inserted and not is_again
                self._extents.used(extent, is_new=is_new, again=is_again)

    def clear(self) -> None:
        """Nothing is held any more: the run is over."""
        self._extents.clear()

    def _held(self, span: Span) -> HeldExtent:
        extent = span.extent
        if extent is None:
            extent = span.extent = self._extents.get(span.content)
        if extent is None:
            raise InvariantError(f"chunk {span.content} has no place in the tier")
        return extent
