"""The paged KV cache of one engine, kept by extents instead of by blocks.

An extent is a run of consecutive full blocks that every request either holds whole or not at all
(requests share prefixes; extents end where any two requests part). All blocks of an extent are
referenced, freed and evicted alike, the last one first, so one counter stands for them. vLLM's free
list is one queue whose front holds blocks without content and whose back holds cached ones in the
order they were freed; here the former are a number and the latter a queue of extents. An extent
that is used again stays in the queue, and is passed over when its turn comes.

The pool knows nothing of requests, budgets or time. Invariant: blocks without content + idle
blocks + blocks in use = `num_blocks`. Semantics: vLLM 0.32 `BlockPool`.
"""

from collections import deque
from typing import Final

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.retention import Standing

NO_EVENTS: list[KvEvent] = []  # never changed
_OUTDATED_ALLOWED: Final = 64  # places not worth a rebuild


class Extent:
    """A copy of a run of cached blocks; `num_cached` of them, from the front, hold content."""

    __slots__ = ("content", "num_cached", "outdated", "refs", "standing", "younger")

    def __init__(self, content: int) -> None:
        self.content = content
        self.num_cached = 0
        self.refs = 1
        self.outdated = 0  # places in the queue of idle ones to pass over: it was used since
        self.younger: Extent | None = None  # next copy of the same content, by age
        self.standing: Standing | None = None  # in a pool that asks what it is worth


class BlockPool:
    """Block accounting, prefix lookup and eviction of one engine.

    `extent_blocks[content]` is the number of blocks of an extent; without it every extent is one
    block, whatever its content id. Blocks that belong to a single
    request have the content id `-1 - request index` and no entry there. With `announced`, events
    are only about the extents flagged in it: blocks that nobody asks for need not be published.
    """

    __slots__ = (
        "_idle",
        "_num_outdated",
        "_oldest",
        "_resident",
        "announced",
        "blank_blocks",
        "events",
        "extent_blocks",
        "idle_blocks",
        "num_blocks",
        "publishes_all",
        "released_blocks",
    )

    def __init__(
        self,
        num_blocks: int,
        extent_blocks: list[int] | None = None,
        *,
        publish_events: bool = False,
        announced: list[bool] | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.extent_blocks = extent_blocks
        self.blank_blocks = num_blocks  # free blocks without content: used first
        self.idle_blocks = 0  # free blocks with content: evicted oldest first
        self.released_blocks = 0  # that have become idle so far
        self._idle: deque[Extent] = deque()  # oldest first
        self._num_outdated = 0  # places in it that do not count
        self._oldest: Extent | None = None  # the idle extent in eviction, taken off the queue
        self._resident: dict[int, Extent] = {}  # content -> oldest copy
        self.events: list[KvEvent] | None = [] if publish_events else None
        self.announced = announced
        self.publishes_all = publish_events and announced is None

    @property
    def free_blocks(self) -> int:
        """Blocks that can be handed out now, cached but unreferenced ones included."""
        return self.blank_blocks + self.idle_blocks

    @property
    def resident_blocks(self) -> dict[int, int]:
        """Cached blocks by content id, oldest copies only."""
        return {content: extent.num_cached for content, extent in self._resident.items()}

    def take_events(self) -> list[KvEvent]:
        """The events since the last call; they belong to the caller."""
        events = self.events
        if not events:
            return NO_EVENTS
        taken = events.copy()
        events.clear()
        return taken

    def lookup(self, contents: list[int], limit_blocks: int) -> tuple[list[Extent], int, int]:
        """The longest cached prefix of a path, at most `limit_blocks` long. Touches nothing.

        Returns its extents (the last one may be cached in part), its blocks, and how many of them
        nobody references.
        """
        hits: list[Extent] = []
        num_blocks = 0
        idle_blocks = 0
        resident = self._resident
        sizes = self.extent_blocks
        for content in contents:
            extent = resident.get(content)
            if extent is None:
                break
            num_cached = extent.num_cached
            if num_blocks + num_cached > limit_blocks:
                break
            hits.append(extent)
            num_blocks += num_cached
            if extent.refs == 0:
                idle_blocks += num_cached
            if sizes is not None and num_cached < sizes[content]:
                break
        return hits, num_blocks, idle_blocks

    def reference(self, extents: list[Extent]) -> None:
        """Take hit extents into use."""
        for extent in extents:
            if extent.refs == 0:
                if extent is self._oldest:
                    self._oldest = None
                else:
                    extent.outdated += 1
                    self._num_outdated += 1
                self.idle_blocks -= extent.num_cached
            extent.refs += 1
        if self._num_outdated > _OUTDATED_ALLOWED + len(self._idle) // 2:
            self._drop_outdated()

    def allocate(self, num_blocks: int) -> None:
        """Hand out blocks, evicting the oldest idle content where blank ones do not suffice."""
        if num_blocks <= self.blank_blocks:
            self.blank_blocks -= num_blocks
            return
        missing = num_blocks - self.blank_blocks
        self.blank_blocks = 0
        self.idle_blocks -= missing
        private_events = self.events if self.publishes_all else None
        extent = self._oldest
        while missing > 0:
            if extent is None:
                extent = self._idle.popleft()
                if extent.outdated:
                    extent.outdated -= 1
                    self._num_outdated -= 1
                    extent = None
                    continue
            kept = extent.num_cached - missing
            if kept > 0:
                evicted, missing = missing, 0
                extent.num_cached = kept
            else:
                evicted, missing = extent.num_cached, -kept
                extent.num_cached = kept = 0
            if extent.content >= 0:
                self._note_evicted(extent, evicted)
            elif private_events is not None:
                private_events.append(KvEvent(False, extent.content, kept, evicted, None))
            if not kept:
                extent = None
        self._oldest = extent

    def open_extent(self, content: int) -> Extent:
        """A new copy of a shared extent, still without content, in use by its creator."""
        extent = Extent(content)
        oldest = self._resident.get(content)
        if oldest is None:
            self._resident[content] = extent
        else:
            while oldest.younger is not None:
                oldest = oldest.younger
            oldest.younger = extent
        return extent

    def release(self, extents: list[Extent]) -> None:
        """Give up extents, deepest first: the ones nobody uses become idle in that order."""
        idle = self._idle
        for extent in reversed(extents):
            extent.refs -= 1
            if extent.refs == 0:
                idle.append(extent)
                self.idle_blocks += extent.num_cached
                self.released_blocks += extent.num_cached

    def release_private(self, extent: Extent) -> None:
        """Make a request's private cached blocks idle."""
        extent.refs = 0
        self._idle.append(extent)
        self.idle_blocks += extent.num_cached
        self.released_blocks += extent.num_cached

    def discard(self, extent: Extent) -> None:
        """Forget an idle extent that requests share: its blocks become blank."""
        num_blocks = extent.num_cached
        self.reference([extent])  # so that it is not among the idle any more
        extent.num_cached = 0
        self.blank_blocks += num_blocks
        self._note_evicted(extent, num_blocks)

    def shrink(self, extent: Extent, num_cached: int) -> None:
        """Forget the last blocks of a request's private idle extent."""
        num_blocks = extent.num_cached - num_cached
        extent.num_cached = num_cached
        self.idle_blocks -= num_blocks
        self.blank_blocks += num_blocks
        if self.publishes_all and self.events is not None:
            self.events.append(KvEvent(False, extent.content, num_cached, num_blocks, None))

    def publish_stored(
        self, content: int, first_block: int, num_blocks: int, parent: int | None
    ) -> None:
        """Announce blocks that became hittable, if anyone listens."""
        if self.events is not None and self.announces(content):
            self.events.append(KvEvent(True, content, first_block, num_blocks, parent))

    def announces(self, content: int) -> bool:
        """Whether events about an extent are for anyone who listens."""
        announced = self.announced
        return announced is None or (content >= 0 and announced[content])

    def _drop_outdated(self) -> None:
        """Rid the queue of places that do not count: it must not grow where nothing is evicted."""
        queue, self._idle = self._idle, deque()
        for extent in queue:
            if extent.outdated:
                extent.outdated -= 1
            else:
                self._idle.append(extent)
        self._num_outdated = 0

    def _note_evicted(self, extent: Extent, num_blocks: int) -> None:
        """Tell that a shared extent has lost its last blocks; forget it if they were all."""
        content, num_left = extent.content, extent.num_cached
        events, announced = self.events, self.announced
        if events is not None and (announced is None or announced[content]):
            events.append(KvEvent(False, content, num_left, num_blocks, None))
        if num_left == 0:
            self._forget(extent)

    def _forget(self, extent: Extent) -> None:
        """Drop an evicted copy from the lookup table; a younger copy takes its place."""
        oldest = self._resident[extent.content]
        if oldest is extent:
            if extent.younger is None:
                del self._resident[extent.content]
            else:
                self._resident[extent.content] = extent.younger
            return
        while oldest.younger is not extent:
            assert oldest.younger is not None
            oldest = oldest.younger
        oldest.younger = extent.younger
