"""Builds what places the requests of a run: a load-only mode, or routers with all they need."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from dynosim.cluster.block_names import ExtentNames, HashNames
from dynosim.cluster.event_plane import (
    DelayedPlane,
    DelaySettings,
    DirectPlane,
    EventPlane,
    SilentPlane,
    feed_of,
)
from dynosim.cluster.placement import LoadPlacer, Placer
from dynosim.cluster.router_placer import RouterPlacer
from dynosim.cluster.worker import Worker
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.indexer.approximate import ApproximateIndex, PredictedIndex
from dynosim.indexer.base import Indexer, OverlapSource
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.make import make_indexer
from dynosim.records import Trace
from dynosim.router.kv_router import KvRouter
from dynosim.router.modes import LOAD_MODES, make_load_mode
from dynosim.router.policy import PlacementPolicy
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.settings import RouterSettings
from dynosim.router.workers import WorkerCard, WorkerTable
from dynosim.workload.extents import PrefixExtents


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How a simulated cluster routes.

    `index` is `extents` (fast; the same answers as the exact hash indexes) or a kind known to
    `dynosim.indexer.make`. Without `use_kv_events` the index is fed by the router's own decisions
    and forgets after `ttl_ms`, or by capacity. `predicted_ttl_ms` adds such an index beside the
    events. The last `cpu_workers` workers are CPU workers.
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
    cpu_workers: int = 0

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
        )

    @property
    def follows_caches(self) -> bool:
        """Whether engines have to publish KV events."""
        is_kv = self.settings.mode == "kv" or self.policy is not None
        return self.needs_router and is_kv and self.use_kv_events

    @property
    def delays_events(self) -> bool:
        """Whether events take time, or get lost."""
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
        return self.index != "extents" or learns or self.numbers_events


def make_placer(
    routing: RoutingSpec,
    trace: Trace,
    extents: PrefixExtents,
    engine: EngineSpec,
    workers: list[Worker],
) -> Placer:
    """Whoever places the requests of a run."""
    if not routing.needs_router:
        table = WorkerTable(engine.block_size)
        for card in worker_cards(routing, engine, len(workers)):
            table.add(card)
        settings = routing.settings
        generator = Random(f"{settings.seed}/router")
        mode = make_load_mode(settings.mode, generator, table, settings.cuda_to_cpu_ratio)
        return LoadPlacer(mode, len(workers))
    hashes = HashNames(trace, extents, engine.block_size) if routing.uses_hashes else None
    names = ExtentNames(extents) if hashes is None else hashes
    indexes = [_make_index(routing, extents, engine) for _ in range(routing.frontends)]
    plane = _make_plane(routing, workers, indexes, hashes)
    routers = []
    for frontend, index in enumerate(indexes):
        seed = routing.settings.seed
        router = KvRouter(
            routing.settings,
            index,
            key_blocks=names.key_blocks,
            estimator=routing.estimator,
            policy=None if routing.policy is None else routing.policy(routing.settings, seed),
            confirm=plane.confirm if isinstance(plane, DirectPlane) else None,
            stream=f"router/{frontend}" if frontend else "router",
        )
        for card in worker_cards(routing, engine, len(workers)):
            router.add_worker(card)
        routers.append(router)
    return RouterPlacer(
        trace,
        routers,
        names,
        plane,
        block_size=engine.block_size,
        sync_delay_ms=routing.sync_delay_ms,
        observed=workers if routing.settings.load.track_output_blocks else None,
    )


def worker_cards(routing: RoutingSpec, engine: EngineSpec, num_workers: int) -> list[WorkerCard]:
    """The cards of a cluster of equal engines."""
    if routing.cpu_workers > num_workers:
        raise ConfigError(
            f"cluster.cpu_workers: {routing.cpu_workers} of {num_workers} workers cannot be CPUs"
        )
    first_cpu = num_workers - routing.cpu_workers
    return [
        WorkerCard(
            worker_id,
            engine.block_size,
            total_kv_blocks=engine.usable_blocks,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            device="gpu" if worker_id < first_cpu else "cpu",
        )
        for worker_id in range(num_workers)
    ]


def _make_index(routing: RoutingSpec, extents: PrefixExtents, engine: EngineSpec) -> OverlapSource:
    if not routing.follows_caches and routing.use_kv_events:
        return ExtentIndex(extents.extent_blocks.tolist())  # stays empty: the mode needs none
    if not routing.use_kv_events:
        if routing.approximate_cache_policy == "lru":
            return ApproximateIndex(capacity_blocks=engine.usable_blocks)
        return ApproximateIndex(ttl_ms=routing.ttl_ms)
    if not routing.uses_hashes:
        return ExtentIndex(extents.extent_blocks.tolist())
    index = make_indexer("compressed" if routing.index == "extents" else routing.index)
    if routing.predicted_ttl_ms is None:
        return index
    return PredictedIndex(index, ApproximateIndex(ttl_ms=routing.predicted_ttl_ms))


def _make_plane(
    routing: RoutingSpec,
    workers: list[Worker],
    indexes: list[OverlapSource],
    hashes: HashNames | None,
) -> EventPlane:
    if not routing.follows_caches:
        return SilentPlane()
    fed: list[ExtentIndex | Indexer] = []
    by_hash: list[Indexer] = []
    for index in indexes:
        assert not isinstance(index, ApproximateIndex)
        fed.append(index)  # type: ignore[arg-type]
        by_hash.append(index)  # type: ignore[arg-type]
    feeds = [feed_of(index, hashes) for index in fed]
    if not routing.delays_events:
        return DirectPlane(workers, feeds)
    return DelayedPlane(
        workers,
        feeds,
        routing.events,
        indexes=by_hash if routing.numbers_events else None,
        names=hashes,
        seed=routing.settings.seed,
    )
