"""Builds the routers of a run: frontends, their indexes, and the plane that carries KV events."""

from dynosim.cluster.block_names import ExtentNames, HashNames, PromptNames
from dynosim.cluster.event_plane import (
    DelayedPlane,
    DirectPlane,
    EventPlane,
    EventRecorder,
    SilentPlane,
)
from dynosim.cluster.frontends import FrontendRouter, extent_frontend, hash_frontend
from dynosim.cluster.lone_placer import LonePlacer
from dynosim.cluster.router_placer import RouterPlacer
from dynosim.cluster.settling_index import SettlingIndex
from dynosim.cluster.shared_store import SharedStore
from dynosim.errors import ConfigError, InvariantError
from dynosim.indexer.base import Index, LaggingIndex
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.make import TIERED, AnyExtentIndex, IndexSpec
from dynosim.records import Trace
from dynosim.router.inputs import E
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.recorder import RouterLog, logged_router
from dynosim.router.spec import RoutingSpec, hash_index_spec
from dynosim.router.workers import WorkerCard
from dynosim.workload.extents import PrefixExtents


def lone_placer(trace: Trace, extents: PrefixExtents) -> LonePlacer:
    """What notes the placements of a run where there is nothing to choose."""
    index = ExtentIndex(extents.extent_blocks.tolist())
    return LonePlacer(len(trace), ExtentNames(extents), index)


def router_placer(
    routing: RoutingSpec,
    trace: Trace,
    extents: PrefixExtents,
    cards: list[WorkerCard],
    shared_store: SharedStore | None = None,
) -> RouterPlacer:
    """What places the requests of a run; `cards` are those of the workers to come."""
    block_size = routing.settings.block_size
    hashes = HashNames(trace, extents, block_size) if routing.uses_hashes else None
    names = ExtentNames(extents) if hashes is None else hashes
    plane = _make_plane(routing, hashes)
    spec = _index_spec(routing, extents, cards)
    frontends = [
        _make_frontend(routing, spec, plane, names, number) for number in range(routing.frontends)
    ]
    return RouterPlacer(
        trace,
        frontends,
        names,
        plane,
        block_size=block_size,
        sync_delay_ms=routing.sync_delay_ms,
        reports_tokens=routing.settings.load.track_output_blocks,
        shared_store=shared_store,
    )


def _make_frontend(
    routing: RoutingSpec, spec: IndexSpec, plane: EventPlane, names: PromptNames, number: int
) -> FrontendRouter:
    made = spec.make()
    if isinstance(made, AnyExtentIndex):
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
            witness=routing.witness,
        )
    if routing.frontends > 1:
        raise ConfigError(
            "a router log can be written of one frontend only: set router.frontends: 1"
        )
    sink = routing.open_log(settings, spec, estimator is not None)
    return logged_router(
        sink, settings, index, key_blocks=names.key_blocks, estimator=estimator, policy=policy
    )


def _index_spec(routing: RoutingSpec, extents: PrefixExtents, cards: list[WorkerCard]) -> IndexSpec:
    is_guessed = routing.uses_hashes and not routing.use_kv_events
    if is_guessed or (routing.follows_caches and routing.uses_hashes):
        return hash_index_spec(routing, _capacity_blocks(routing, cards))
    kind = TIERED + "extents" if routing.has_slower_tiers else "extents"
    return IndexSpec(kind, extent_blocks=extents.extent_blocks.tolist())


def _capacity_blocks(routing: RoutingSpec, cards: list[WorkerCard]) -> int | None:
    """KV blocks of each worker, if they bound a guessed index."""
    if routing.use_kv_events or routing.approximate_cache_policy != "lru":
        return None
    capacities = {card.total_kv_blocks for card in cards}
    if not capacities:
        raise ConfigError(
            "router.approximate_cache_policy: lru goes by the caches of the workers at the start, "
            "and there is none (use ttl, or start one)"
        )
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
