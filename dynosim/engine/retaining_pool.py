"""A block pool whose blocks are worth more or less to somebody: who goes first is not age alone.

Two structures hold the idle extents. Those of default worth, which is what nobody says anything of,
stay in the queue of the plain pool, with all that makes that cheap. The others are in a heap by
(level, order of becoming idle). Blank blocks are handed out first, then extents below the default,
then the queue, then extents above it. Pinned ones come last: a pin gives way rather than keep a
request from being served, which `broken_blocks` counts.

Time comes from outside: `at` says what it is now, whenever that may matter, and `next_lapse_ms`
when it matters next by itself.
"""

from heapq import heapify, heappop, heappush
from typing import Final

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.retention import (
    DEFAULT_PRIORITY,
    EPHEMERAL,
    FOR_GOOD,
    NOWHERE,
    PINNED,
    PLAIN,
    BlockClaims,
    Claim,
    Standing,
)
from dynosim.engine.block_pool import BlockPool, Extent
from dynosim.engine.instant import instant_end

_PLAIN: Final = Standing()  # of all of which nothing but the default was ever claimed
_PLAIN.worth.add(PLAIN, 0.0)
_OUTDATED_ALLOWED: Final = 64  # entries of a heap not worth a rebuild


class RetainingPool(BlockPool):
    """See the module. Every extent's release is preceded by what its user claims (`claim`)."""

    __slots__ = (
        "_heap",
        "_lapses",
        "_now_ms",
        "_num_placed",
        "_num_ranked",
        "_of_sessions",
        "_ranked_blocks",
        "broken_blocks",
        "peak_pinned_blocks",
        "pinned_blocks",
    )

    def __init__(
        self,
        num_blocks: int,
        extent_blocks: list[int] | None = None,
        *,
        publish_events: bool = False,
        announced: list[bool] | None = None,
    ) -> None:
        super().__init__(
            num_blocks, extent_blocks, publish_events=publish_events, announced=announced
        )
        self._now_ms = 0.0
        self._heap: list[tuple[int, int, Extent]] = []  # (level, place); outdated ones among them
        self._lapses: list[tuple[float, int, Extent]] = []  # heap of (when, place)
        self._num_placed = 0
        self._num_ranked = 0  # idle extents that are not in the plain queue
        self._ranked_blocks = 0
        self._of_sessions: dict[int, list[Extent]] = {}  # ephemeral ones, by session
        self.pinned_blocks = 0  # idle ones
        self.peak_pinned_blocks = 0
        self.broken_blocks = 0  # pinned ones that were evicted all the same

    # ---- time ----------------------------------------------------------------------------------

    def at(self, now_ms: float) -> None:
        """It is this time now, which is not before any earlier one: claims whose time is over end.

        Who falls back to the default by that is the last to go of all plain ones.
        """
        instant_ms = instant_end(max(now_ms, self._now_ms))
        while self.next_lapse_ms <= instant_ms:
            until_ms, _, extent = heappop(self._lapses)
            self._remove(extent)
            if until_ms > self._now_ms:
                self._now_ms = until_ms
            self._put(extent)
        if now_ms > self._now_ms:
            self._now_ms = now_ms

    @property
    def next_lapse_ms(self) -> float:
        """When the order of idle extents changes next by itself; infinity: never."""
        lapses = self._lapses
        while lapses:
            until_ms, place, extent = lapses[0]
            if _is_current(place, extent):
                return until_ms
            heappop(lapses)
        return FOR_GOOD

    # ---- what requests say ---------------------------------------------------------------------

    def claim(self, held: list[Extent], own: Extent | None, claims: BlockClaims | None) -> None:
        """A request is about to release its extents, `held` along its path, and claims this."""
        for i, extent in enumerate(held):
            self._add(extent, PLAIN if claims is None else claims.path[i])
        if own is not None:
            self._add(own, PLAIN if claims is None else claims.own)
        if claims is not None and claims.session >= 0:
            extents = self._of_sessions.setdefault(claims.session, [])
            extents += held
            if own is not None:
                extents.append(own)

    def end_session(self, session: int) -> None:
        """Its pins are over. Forget what is idle and of use to nobody else: blocks become blank."""
        extents = self._of_sessions.pop(session, [])
        for extent in reversed(extents):
            standing = extent.standing
            assert standing is not None, "claimed before"
            if standing.worth.end_session(session) and standing.place != NOWHERE:
                self._remove(extent)
                self._put(extent)
        for extent in extents:
            standing = extent.standing
            if standing is None or standing.place == NOWHERE or standing.level != EPHEMERAL:
                continue
            self._evict(extent, extent.num_cached)

    # ---- as in every pool ----------------------------------------------------------------------

    def reference(self, extents: list[Extent]) -> None:
        """Take hit extents into use."""
        plain: list[Extent] = []
        for extent in extents:
            if extent.standing is not None and extent.standing.place != NOWHERE:
                self._remove(extent)
                self.idle_blocks -= extent.num_cached
                extent.refs += 1
            else:
                plain.append(extent)
        super().reference(plain)

    def allocate(self, num_blocks: int) -> None:
        """Hand out blocks, evicting what is worth least where blank ones do not suffice."""
        missing = num_blocks - self.blank_blocks
        if missing > 0:
            missing -= self._evict_up_to(DEFAULT_PRIORITY - 1, missing)
            missing -= self.idle_blocks - self._ranked_blocks  # what the plain queue has
            if missing > 0:
                self._evict_up_to(PINNED, missing)
        super().allocate(num_blocks)

    def release(self, extents: list[Extent]) -> None:
        """Give up extents, deepest first: the ones nobody uses become idle in that order."""
        for extent in reversed(extents):
            extent.refs -= 1
            if extent.refs == 0:
                self.idle_blocks += extent.num_cached
                self.released_blocks += extent.num_cached
                self._put(extent)

    def release_private(self, extent: Extent) -> None:
        """Make a request's private cached blocks idle."""
        extent.refs = 0
        self.idle_blocks += extent.num_cached
        self.released_blocks += extent.num_cached
        self._put(extent)

    def shrink(self, extent: Extent, num_cached: int) -> None:
        """Forget the last blocks of a request's private idle extent."""
        self._count(extent, num_cached - extent.num_cached)
        super().shrink(extent, num_cached)

    # ---- places --------------------------------------------------------------------------------

    def _add(self, extent: Extent, claims: tuple[Claim, ...]) -> None:
        """One more user's claims."""
        standing = extent.standing
        if claims is PLAIN and (standing is None or standing is _PLAIN):
            extent.standing = _PLAIN
            return
        if standing is None or standing is _PLAIN:
            extent.standing = Standing()
            if standing is _PLAIN:
                extent.standing.worth.add(PLAIN, self._now_ms)
            standing = extent.standing
        standing.worth.add(claims, self._now_ms)

    def _put(self, extent: Extent) -> None:
        """Find an idle extent its place."""
        standing = extent.standing
        if standing is _PLAIN:
            self._idle.append(extent)
            return
        assert standing is not None, "claimed before"
        standing.level = standing.worth.level(self._now_ms)
        if standing.level == DEFAULT_PRIORITY:
            self._idle.append(extent)
            return
        self._num_placed += 1
        standing.place = self._num_placed
        heappush(self._heap, (standing.level, standing.place, extent))
        until_ms = standing.worth.until_ms
        if until_ms < FOR_GOOD:
            heappush(self._lapses, (until_ms, standing.place, extent))
        self._num_ranked += 1
        self._count(extent, extent.num_cached)
        if len(self._heap) > _OUTDATED_ALLOWED + 2 * self._num_ranked:
            self._heap = [entry for entry in self._heap if _is_current(entry[1], entry[2])]
            heapify(self._heap)
            self._lapses = [entry for entry in self._lapses if _is_current(entry[1], entry[2])]
            heapify(self._lapses)

    def _remove(self, extent: Extent) -> None:
        """Take an extent out of the heap, where its entry is outdated from now on."""
        assert extent.standing is not None
        self._count(extent, -extent.num_cached)
        self._num_ranked -= 1
        extent.standing.place = NOWHERE

    def _count(self, extent: Extent, num_blocks: int) -> None:
        """So many blocks of an idle extent more; it counts only in the heap."""
        standing = extent.standing
        if standing is None or standing.place == NOWHERE:
            return
        self._ranked_blocks += num_blocks
        if standing.level == PINNED:
            self.pinned_blocks += num_blocks
            if self.pinned_blocks > self.peak_pinned_blocks:
                self.peak_pinned_blocks = self.pinned_blocks

    # ---- eviction ------------------------------------------------------------------------------

    def _evict_up_to(self, level: int, num_blocks: int) -> int:
        """Make up to so many blocks blank of the extents in the heap, lowest first.

        Returns how many.
        """
        heap = self._heap
        left = num_blocks
        while left > 0 and heap:
            lowest, place, extent = heap[0]
            if not _is_current(place, extent):
                heappop(heap)
                continue
            if lowest > level:
                break
            taken = min(left, extent.num_cached)
            if lowest == PINNED:
                self.broken_blocks += taken
            self._evict(extent, taken)
            left -= taken
        return num_blocks - left

    def _evict(self, extent: Extent, num_blocks: int) -> None:
        """Make the last blocks of an extent in the heap blank."""
        self._count(extent, -num_blocks)
        extent.num_cached -= num_blocks
        self.idle_blocks -= num_blocks
        self.blank_blocks += num_blocks
        if extent.num_cached == 0:
            self._remove(extent)
        if extent.content >= 0:
            self._note_evicted(extent, num_blocks)
        elif self.publishes_all and self.events is not None:
            left = extent.num_cached
            self.events.append(KvEvent(False, extent.content, left, num_blocks, None))


def _is_current(place: int, extent: Extent) -> bool:
    """Whether an entry still holds: its extent was neither used nor evicted since."""
    return extent.standing is not None and extent.standing.place == place
