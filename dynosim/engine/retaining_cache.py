"""A tier below the device that keeps in mind what its blocks are worth, and may go by it.

Requests claim as they do of the device's blocks (`dynosim.blocks.retention`): when they bring a
chunk, and anew when they end; durations run from then. What goes to a tier further on takes its
worth along, so all tiers of an engine keep it if one goes by it. That one throws out the lowest
level first, and within a level what was used least recently. A pinned chunk is never thrown out:
nobody has to be served from here, so who finds no room is not stored.

Time comes from outside, before anything else that happens then: `at` says what it is.
"""

from heapq import heapify, heappop, heappush
from typing import Final

from dynosim.blocks.retention import DEFAULT_PRIORITY, FOR_GOOD, PINNED, PLAIN, Claim, Worth
from dynosim.engine.host_cache import (
    Accesses,
    AgeRanking,
    HeldExtent,
    HostCache,
    Lru,
    Span,
    Victims,
)
from dynosim.engine.instant import instant_end
from dynosim.engine.spec import TierPolicy

_PLAIN: Final = Worth()  # of all of which nothing but the default was ever claimed; never changed
_PLAIN.add(PLAIN, 0.0)
_OUTDATED_ALLOWED: Final = 64  # entries of a heap not worth a rebuild


class ByWorth(Lru):
    """The lowest level goes first, within a level what was used least recently; pins stay."""

    def __init__(self) -> None:
        super().__init__()
        self._rankings: dict[int, AgeRanking] = {DEFAULT_PRIORITY: self._extents}
        self._levels: dict[int, int] = {}  # of those not at the default

    @property
    def num_chunks(self) -> int:
        """See `Policy`."""
        return sum([ranking.num_chunks for ranking in self._rankings.values()])

    def get(self, content: int) -> HeldExtent | None:
        """See `Policy`."""
        return self._ranking_of(content).get(content)

    def grow(self, extent: HeldExtent | None, content: int, num_chunks: int) -> HeldExtent:
        """See `Policy`."""
        ranking = self._ranking_of(content)
        if extent is None:
            extent = HeldExtent(content)
            ranking.add(extent)
        else:
            ranking.renew(extent)
        ranking.grow(extent, num_chunks)
        return extent

    def drop(self, span: Span) -> None:
        """See `Policy`."""
        ranking = self._ranking_of(span.content)
        extent = ranking.get(span.content)
        if extent is not None:
            ranking.cut(extent, span.first)
            self._note_cut([span])

    def evict(self, number: int, batch: int) -> list[Span] | None:
        """See `Policy`."""
        chosen: list[Victims] = []
        lacking = number
        for level in sorted(self._rankings):
            if lacking == 0 or level == PINNED:
                break
            victims = Victims(self._rankings[level], batch)
            chosen.append(victims)
            while lacking > 0:
                taken = victims.take(lacking)
                if not taken:
                    break
                lacking -= taken
        if lacking > 0:
            return None
        spans: list[Span] = []
        for victims in chosen:
            victims.go()
            spans += victims.spans
        self._note_cut(spans)
        return spans

    def used(self, extent: HeldExtent, *, is_new: bool, again: bool) -> None:
        """See `Policy`."""
        self._ranking_of(extent.content).renew(extent)

    def clear(self) -> None:
        """See `Policy`."""
        for ranking in self._rankings.values():
            ranking.clear()
        self._levels.clear()

    def set_level(self, content: int, level: int) -> None:
        """An extent is worth this from now on; if that is new it is the youngest of its level."""
        ranking = self._ranking_of(content)
        extent = ranking.get(content)
        if extent is None or self._levels.get(content, DEFAULT_PRIORITY) == level:
            return
        ranking.remove(extent)
        self._levels.pop(content, None)
        if level != DEFAULT_PRIORITY:
            self._levels[content] = level
            if level not in self._rankings:
                self._rankings[level] = AgeRanking()
        self._rankings[level].add(extent)

    def _ranking_of(self, content: int) -> AgeRanking:
        level = self._levels.get(content)
        return self._extents if level is None else self._rankings[level]

    def _note_cut(self, spans: list[Span]) -> None:
        for span in spans:
            if span.first == 0:
                self._levels.pop(span.content, None)


class RetainingCache(HostCache):
    """A tier that knows what its extents are worth; with `priority` it goes by that."""

    def __init__(self, capacity: int, policy: TierPolicy, store_threshold: int = 0) -> None:
        super().__init__(capacity, "arc" if policy == "arc" else "lru", store_threshold)
        self._by_worth: ByWorth | None = None
        if policy == "priority":
            self._by_worth = ByWorth()
            self._extents = self._by_worth
        self._worths: dict[int, Worth] = {}  # of all extents that it holds
        self._evicted_worths: dict[int, Worth] = {}  # of what the last offer threw out
        self._lapses: list[tuple[float, int, int]] = []  # heap of (when, place, content)
        self._of_sessions: dict[int, set[int]] = {}  # contents that these pin while they last
        self._places: dict[int, int] = {}  # by content: the entry that counts
        self._num_placed = 0
        self._now_ms = 0.0

    def at(self, now_ms: float) -> None:
        """It is this time now, which is not before any earlier one: claims whose time is over end.

        Who falls back to the default by that is the youngest of all that are there.
        """
        instant_ms = instant_end(max(now_ms, self._now_ms))
        lapses = self._lapses
        while lapses and lapses[0][0] <= instant_ms:
            until_ms, place, content = heappop(lapses)
            if self._places.get(content) == place:
                if until_ms > self._now_ms:
                    self._now_ms = until_ms
                self._rank(content)
        if now_ms > self._now_ms:
            self._now_ms = now_ms

    def worth_of(self, content: int) -> Worth:
        """What an extent is worth that it holds, or that the last offer threw out."""
        return self._worths.get(content) or self._evicted_worths.get(content, _PLAIN)

    def claim(self, content: int, claims: tuple[Claim, ...]) -> None:
        """Somebody who has had an extent claims this of it, if it is here."""
        worth = self._own_worth(content, is_plain=claims is PLAIN)
        if worth is not None:
            worth.add(claims, self._now_ms)
            self._note_sessions(content, worth)
            self._rank(content)

    def take_over(self, content: int, worth: Worth) -> None:
        """What was claimed of an extent elsewhere holds here, too, if it is here."""
        mine = self._own_worth(content, is_plain=worth is _PLAIN)
        if mine is not None:
            mine.merge(worth)
            self._note_sessions(content, mine)
            self._rank(content)

    def end_session(self, session: int) -> None:
        """A session is over, and with it its pins."""
        for content in sorted(self._of_sessions.pop(session, ()), reverse=True):
            worth = self._worths.get(content)
            if worth is not None and worth.end_session(session):
                self._rank(content)

    def offer(self, spans: list[Span], accesses: Accesses) -> list[Span] | None:
        """See `HostCache`."""
        new = super().offer(spans, accesses)
        self._evicted_worths = {}
        for span in self.evicted:
            worth = self._worths.get(span.content, _PLAIN)
            self._evicted_worths[span.content] = worth
            if span.first == 0:
                self._forget(span.content)
        return new

    def lose(self, spans: list[Span]) -> None:
        """See `HostCache`."""
        super().lose(spans)
        for span in spans:
            if self._extents.get(span.content) is None:
                self._forget(span.content)

    # ---- inside --------------------------------------------------------------------------------

    def _own_worth(self, content: int, *, is_plain: bool) -> Worth | None:
        """The worth of an extent that is here, to be added to; None: there is nothing to add."""
        worth = self._worths.get(content)
        if worth is None and self._extents.get(content) is None:
            return None
        if is_plain and (worth is None or worth is _PLAIN):
            self._worths[content] = _PLAIN
            return None
        if worth is None or worth is _PLAIN:
            mine = self._worths[content] = Worth()
            if worth is _PLAIN:
                mine.add(PLAIN, self._now_ms)
            return mine
        return worth

    def _note_sessions(self, content: int, worth: Worth) -> None:
        for session in worth.sessions:
            self._of_sessions.setdefault(session, set()).add(content)

    def _rank(self, content: int) -> None:
        """Let an extent stand where its worth puts it now, until that changes by itself."""
        if self._by_worth is None:
            return
        worth = self._worths[content]
        self._by_worth.set_level(content, worth.level(self._now_ms))
        self._places.pop(content, None)
        if worth.until_ms == FOR_GOOD:
            return
        self._num_placed += 1
        self._places[content] = self._num_placed
        heappush(self._lapses, (worth.until_ms, self._num_placed, content))
        if len(self._lapses) > _OUTDATED_ALLOWED + 2 * len(self._places):
            self._lapses = [one for one in self._lapses if self._places.get(one[2]) == one[1]]
            heapify(self._lapses)

    def _forget(self, content: int) -> None:
        self._worths.pop(content, None)
        self._places.pop(content, None)
