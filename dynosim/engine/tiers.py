"""The tiers that an engine uses beyond the nearest one."""

from collections.abc import Sequence
from typing import Protocol

from dynosim.blocks.tier import Tier
from dynosim.engine.host_cache import HeldExtent, HostCache, Span
from dynosim.engine.plan import Write
from dynosim.errors import InvariantError


class Onboarding(Protocol):
    """Says how much of what was found is worth loading."""

    def chosen_chunks(
        self, known_tokens: int, local_tokens: int, chunks_by_tier: list[tuple[int, int]]
    ) -> int:
        """How many of the chunks found, (tier, number) each, to load; the rest is computed."""
        ...


class Beyond:
    """The tiers behind the nearest one, as an engine sees them.

    `labels` are what events call each tier, the nearest included; None: it is not told of.
    `is_live`: others store in some of them, or copies come to them over links of their own.
    """

    __slots__ = ("caches", "is_live", "labels", "onboarding", "writes", "writes_evicted")

    def __init__(
        self,
        caches: list[HostCache],
        labels: list[Tier | None],
        onboarding: Onboarding | None = None,
        *,
        writes_evicted: bool = False,
        is_live: bool = False,
    ) -> None:
        self.caches = caches
        self.is_live = is_live
        self.labels = labels
        self.onboarding = onboarding
        self.writes_evicted = writes_evicted
        self.writes: list[Write] = []  # decided, for the owner of the links to take


class PeerCaches(HostCache):
    """What the nearest tiers of other engines hold, to be read by this one.

    `others` grows and shrinks as engines come and go; of several that hold an extent the one is
    read that holds most of it, the first of those.
    """

    def __init__(self, own: HostCache, others: list[HostCache]) -> None:
        super().__init__(0, "lru")
        self.is_view = True
        self._own = own
        self._others = others
        self._read: dict[int, list[HostCache]] = {}  # by extent, loads under way: from whom

    def get(self, content: int) -> HeldExtent | None:
        """See `HostCache`."""
        found = self._best(content)
        return None if found is None else found.get(content)

    def use(self, spans: Sequence[Span]) -> None:
        """See `HostCache`."""
        for span in spans:
            cache = self._best(span.content)
            if cache is None:
                raise InvariantError(f"chunk {span.content} is nowhere to be read")
            cache.use([span])
            self.num_loaded += span.end - span.first
            self._read.setdefault(span.content, []).append(cache)

    def unpin(self, spans: Sequence[Span]) -> None:
        """See `HostCache`."""
        for span in spans:
            caches = self._read[span.content]
            caches.pop().unpin([span])
            if not caches:
                del self._read[span.content]

    def _best(self, content: int) -> HostCache | None:
        best: HostCache | None = None
        most = 0
        for cache in self._others:
            if cache is self._own:
                continue
            extent = cache.get(content)
            if extent is not None and extent.num_stores == 0 and extent.num_chunks > most:
                best, most = cache, extent.num_chunks
        return best
