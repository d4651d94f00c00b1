"""What the routing of a deployment is built from, in the twin and live."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dynosim.indexer.base import DEFAULT_TTL_MS
from dynosim.router.knobs import RouterSpec
from dynosim.router.modes import LOAD_MODES

if TYPE_CHECKING:
    from dynosim.indexer.make import IndexSpec
    from dynosim.router.log.recorder import Sink
    from dynosim.router.policy import PlacementPolicy
    from dynosim.router.prefill_load import PrefillEstimator
    from dynosim.router.witness import ChoiceWitness


@dataclass(frozen=True, slots=True)
class DelaySpec:
    """Delay, loss and disorder of events on their way to a frontend, one message for each step."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # further delay of each message, uniform: some overtake others
    loss: float = 0.0  # chance that a message is lost
    recovery_ms: float = 10.0  # from noticing a gap to having what was missing
    may_worsen: bool = False  # in the course of a run some may be lost or late

    @property
    def is_numbered(self) -> bool:
        """Whether events can go missing or overtake each other, so that they need numbers."""
        return self.jitter_ms > 0 or self.loss > 0 or self.may_worsen


IndexKind = Literal[
    "extents", "radix", "compressed", "positional", "positional-binary", "naive", "inverted"
]
CachePolicy = Literal["ttl", "lru"]
"""How an index of guesses forgets: after a time, or when the worker's cache would be full."""

OpenLog = Callable[[RouterSpec, "IndexSpec", bool], "Sink"]
"""Opens the log of a router of these settings and index; last, whether it estimates prefills."""


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How a simulated cluster routes.

    `index` is `extents` (fast; the same answers as the exact hash indexes) or a kind known to
    `dynosim.indexer.make`. Without `use_kv_events` the index is fed by the router's own decisions
    and forgets after `ttl_ms`, or by capacity. `predicted_ttl_ms` adds such an index beside the
    events.
    """

    settings: RouterSpec
    index: IndexKind = "extents"
    use_kv_events: bool = True
    ttl_ms: float = DEFAULT_TTL_MS
    approximate_cache_policy: CachePolicy = "ttl"
    predicted_ttl_ms: float | None = None
    events: DelaySpec = field(default_factory=DelaySpec)
    frontends: int = 1
    sync_delay_ms: float | None = None
    policy: "Callable[[RouterSpec, int], PlacementPolicy] | None" = None
    estimator: "PrefillEstimator | None" = None
    records_events: bool = False
    open_log: OpenLog | None = None
    witness: "ChoiceWitness | None" = None  # notes some placements; changes nothing
    is_asked: bool = False  # for more than placements: loads, places of workers
    hop_ms: float = 0.0  # what asking a router outside the frontend adds to every request
    has_wishes: bool = False  # some requests say where they want to go
    has_slower_tiers: bool = False  # engines keep KV in more than the memory of their devices

    @property
    def needs_router(self) -> bool:
        """Whether anything but the number of requests in flight matters."""
        settings = self.settings
        return (
            settings.mode not in LOAD_MODES
            or self.policy is not None
            or bool(settings.classes)
            or settings.busy.is_set
            or settings.affinity is not None
            or self.frontends > 1
            or self.is_asked
            or self.open_log is not None
            or self.records_events
            or self.has_wishes
        )

    @property
    def follows_caches(self) -> bool:
        """Whether indexes receive KV events."""
        return self._looks_at_caches and self.use_kv_events

    @property
    def only_follows_caches(self) -> bool:
        """Whether all that a router does is to choose by plain costs, from exact news of extents.

        Then a single worker gets everything, at once.
        """
        settings = self.settings
        return (
            settings.mode == "kv"
            and settings.cost.is_plain
            and self.estimator is None
            and self.policy is None
            and not settings.classes
            and not settings.busy.is_set
            and settings.affinity is None
            and self.frontends == 1
            and not self.is_asked
            and self.open_log is None
            and not self.has_wishes
            and not self.has_slower_tiers
            and self.use_kv_events
            and not self.uses_hashes
            and not self.stamps_events
        )

    @property
    def _looks_at_caches(self) -> bool:
        return self.settings.mode == "kv" or self.policy is not None

    @property
    def publishes_events(self) -> bool:
        """Whether engines have to publish what they cache and evict."""
        return self.follows_caches or self.records_events

    @property
    def stamps_events(self) -> bool:
        """Whether it matters when exactly events are published."""
        return self.records_events or (self.follows_caches and self._delays_events)

    @property
    def _delays_events(self) -> bool:
        return self.events.delay_ms > 0 or self.numbers_events

    @property
    def numbers_events(self) -> bool:
        """Whether events can go missing or overtake each other."""
        return self.events.is_numbered

    @property
    def uses_hashes(self) -> bool:
        """Whether blocks go by their hashes, as in a live deployment."""
        learns = not self.use_kv_events or self.predicted_ttl_ms is not None
        return self._looks_at_caches and (self.index != "extents" or learns or self.numbers_events)


def hash_index_spec(routing: RoutingSpec, capacity_blocks: int | None) -> "IndexSpec":
    """The index of a router that knows blocks by their hashes.

    `capacity_blocks` of each worker bound a guessed index, if `routing` asks for that.
    """
    from dynosim.indexer.make import TIERED, IndexSpec

    if not routing.use_kv_events:
        is_bounded = routing.approximate_cache_policy == "lru"
        return IndexSpec(
            "approximate",
            ttl_ms=routing.ttl_ms,
            capacity_blocks=capacity_blocks if is_bounded else None,
        )
    kind: str = "compressed" if routing.index == "extents" else routing.index
    if routing.has_slower_tiers:
        kind = TIERED + kind
    return IndexSpec(kind, predicted_ttl_ms=routing.predicted_ttl_ms)
