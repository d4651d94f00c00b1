"""Builds what places the requests of a run: a load-only mode, or routers with all they need."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from dynosim.cluster.block_names import ExtentNames, HashNames, PromptNames
from dynosim.cluster.event_plane import (
    DelayedPlane,
    DelaySettings,
    DirectPlane,
    EventPlane,
    EventRecorder,
    SilentPlane,
)
from dynosim.cluster.frontends import FrontendRouter, extent_frontend, hash_frontend
from dynosim.cluster.placement import LoadPlacer, Placer
from dynosim.cluster.router_placer import RouterPlacer
from dynosim.cluster.settling_index import SettlingIndex
from dynosim.cluster.worker import Worker
from dynosim.errors import ConfigError, InvariantError
from dynosim.indexer.base import Index, LaggingIndex
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.make import IndexSpec
from dynosim.records import Trace
from dynosim.router.inputs import E
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.recorder import RouterLog, Sink, logged_router
from dynosim.router.modes import LOAD_MODES, make_load_mode
from dynosim.router.policy import PlacementPolicy
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.settings import RouterSettings
from dynosim.router.workers import WorkerCard, WorkerTable
from dynosim.workload.extents import PrefixExtents

OpenLog = Callable[[RouterSettings, IndexSpec, bool], Sink]
"""Opens the log of a router of these settings and index; last, whether it estimates prefills."""


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How a simulated cluster routes.

    `index` is `extents` (fast; the same answers as the exact hash indexes) or a kind known to
    `dynosim.indexer.make`. Without `use_kv_events` the index is fed by the router's own decisions
    and forgets after `ttl_ms`, or by capacity. `predicted_ttl_ms` adds such an index beside the
    events.
    """

    settings: RouterSettings
    index: str = "extents"
    use_kv_events: bool = True
    ttl_ms: float = 120_000.0
    approximate_cache_policy: str = "ttl"
    predicted_ttl_ms: float | None = None
    events: DelaySettings = field(default_factory=DelaySettings)
    frontends: int = 1
    sync_delay_ms: float | None = None
    policy: Callable[[RouterSettings, int], PlacementPolicy] | None = None
    estimator: PrefillEstimator | None = None
    records_events: bool = False
    open_log: OpenLog | None = None

    @property
    def needs_router(self) -> bool:
        """Whether anything but the number of requests in hand matters."""
        settings = self.settings
        return (
            settings.mode not in LOAD_MODES
            or self.policy is not None
            or bool(settings.classes)
            or settings.busy.is_set
            or settings.affinity is not None
            or self.frontends > 1
            or self.open_log is not None
            or self.records_events
        )

    @property
    def follows_caches(self) -> bool:
        """Whether indexes hear of KV events."""
        return self._looks_at_caches and self.use_kv_events

    @property
    def _looks_at_caches(self) -> bool:
        return self.settings.mode == "kv" or self.policy is not None

    @property
    def publishes_events(self) -> bool:
        """Whether engines have to tell of what they cache and evict."""
        return self.follows_caches or self.records_events

    @property
    def stamps_events(self) -> bool:
        """Whether it matters when exactly events are told."""
        return self.records_events or (self.follows_caches and self._delays_events)

    @property
    def _delays_events(self) -> bool:
        events = self.events
        return events.delay_ms > 0 or events.jitter_ms > 0 or events.loss > 0

    @property
    def numbers_events(self) -> bool:
        """Whether events can go missing or overtake each other."""
        return self.events.jitter_ms > 0 or self.events.loss > 0

    @property
    def uses_hashes(self) -> bool:
        """Whether blocks go by their hashes, as in a live deployment."""
        learns = not self.use_kv_events or self.predicted_ttl_ms is not None
        return self._looks_at_caches and (self.index != "extents" or learns or self.numbers_events)


def make_placer(
    routing: RoutingSpec,
    trace: Trace,
    extents: PrefixExtents,
    cards: list[WorkerCard],
    workers: list[Worker],
) -> Placer:
    """Whoever places the requests of a run on `workers`, whose `cards` are in the same order."""
    block_size = cards[0].block_size
    if not routing.needs_router:
        table = WorkerTable(block_size)
        for card in cards:
            table.add(card)
        settings = routing.settings
        generator = Random(f"{settings.seed}/router")
        mode = make_load_mode(settings.mode, generator, table, settings.cuda_to_cpu_ratio)
        return LoadPlacer(mode, len(workers))
    hashes = HashNames(trace, extents, block_size) if routing.uses_hashes else None
    names = ExtentNames(extents) if hashes is None else hashes
    plane = _make_plane(routing, hashes)
    spec = _index_spec(routing, extents, cards)
    frontends = [
        _make_frontend(routing, spec, plane, names, number) for number in range(routing.frontends)
    ]
    placer = RouterPlacer(
        trace,
        frontends,
        names,
        plane,
        block_size=block_size,
        sync_delay_ms=routing.sync_delay_ms,
        reports_tokens=routing.settings.load.track_output_blocks,
    )
    for worker, card in zip(workers, cards, strict=True):
        placer.join(worker, card, 0.0)
    return placer


def _make_frontend(
    routing: RoutingSpec, spec: IndexSpec, plane: EventPlane, names: PromptNames, number: int
) -> FrontendRouter:
    made = spec.make()
    if isinstance(made, ExtentIndex):
        return extent_frontend(_make_inputs(routing, spec, _settled(made, plane), names, number))
    if not isinstance(names, HashNames):
        raise InvariantError(f"a {type(made).__name__} needs blocks by their hashes")
    inputs = _make_inputs(routing, spec, _settled(made, plane), names, number)
    return hash_frontend(inputs, names)


def _settled(index: Index[E], plane: EventPlane) -> Index[E] | LaggingIndex[E]:
    """The index, which lags where engines publish only at the end of a run of steps."""
    return SettlingIndex(index, plane) if isinstance(plane, DirectPlane) else index


def _make_inputs(
    routing: RoutingSpec,
    spec: IndexSpec,
    index: Index[E] | LaggingIndex[E],
    names: PromptNames,
    number: int,
) -> KvRouter[E] | RouterLog[E]:
    """A frontend's router, behind its log if it has one."""
    settings, estimator = routing.settings, routing.estimator
    policy = None if routing.policy is None else routing.policy(settings, settings.seed)
    if routing.open_log is None:
        return KvRouter(
            settings,
            index,
            key_blocks=names.key_blocks,
            estimator=estimator,
            policy=policy,
            stream=f"router/{number}" if number else "router",
        )
    if routing.frontends > 1:
        raise ConfigError(
            "a router log can be written of one frontend only: set router.frontends: 1"
        )
    sink = routing.open_log(settings, spec, estimator is not None)
    return logged_router(
        sink, settings, index, key_blocks=names.key_blocks, estimator=estimator, policy=policy
    )


def hash_index_spec(routing: RoutingSpec, capacity_blocks: int | None) -> IndexSpec:
    """The index of a router that knows blocks by their hashes.

    `capacity_blocks` of each worker bound a guessed index, if `routing` asks for that.
    """
    if not routing.use_kv_events:
        is_bounded = routing.approximate_cache_policy == "lru"
        return IndexSpec(
            "approximate",
            ttl_ms=routing.ttl_ms,
            capacity_blocks=capacity_blocks if is_bounded else None,
        )
    kind = "compressed" if routing.index == "extents" else routing.index
    return IndexSpec(kind, predicted_ttl_ms=routing.predicted_ttl_ms)


def _index_spec(routing: RoutingSpec, extents: PrefixExtents, cards: list[WorkerCard]) -> IndexSpec:
    is_guessed = routing.uses_hashes and not routing.use_kv_events
    if is_guessed or (routing.follows_caches and routing.uses_hashes):
        return hash_index_spec(routing, _capacity_blocks(routing, cards))
    return IndexSpec("extents", extent_blocks=extents.extent_blocks.tolist())


def _capacity_blocks(routing: RoutingSpec, cards: list[WorkerCard]) -> int | None:
    """KV blocks of each worker, if they bound a guessed index."""
    if routing.use_kv_events or routing.approximate_cache_policy != "lru":
        return None
    capacities = {card.total_kv_blocks for card in cards}
    if len(capacities) > 1:
        raise ConfigError(
            "router.approximate_cache_policy: lru goes by one cache size for all workers, and "
            f"theirs are {sorted(map(str, capacities))} blocks (use ttl)"
        )
    return capacities.pop()


def _make_plane(routing: RoutingSpec, hashes: HashNames | None) -> EventPlane:
    recorder = EventRecorder() if routing.records_events else None
    if not routing.follows_caches:
        return SilentPlane(recorder)
    if not routing.stamps_events:
        return DirectPlane()
    seed = routing.settings.seed
    return DelayedPlane(routing.events, names=hashes, seed=seed, recorder=recorder)
