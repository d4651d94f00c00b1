"""Runs a trace through a cluster of simulated engines."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynosim.cluster.apart import can_go_apart, one_by_one
from dynosim.cluster.books import Books
from dynosim.cluster.cluster import AnyPlacer, Cluster
from dynosim.cluster.frontend_stages import StagedLoad
from dynosim.cluster.generations import Generations
from dynosim.cluster.handoffs import Handoffs
from dynosim.cluster.journal import HandoffColumns, Journal, TierColumns
from dynosim.cluster.launcher import Launcher
from dynosim.cluster.lobby import Lobby
from dynosim.cluster.outside import as_clients_see
from dynosim.cluster.patience import Patience
from dynosim.cluster.pins import check_pins
from dynosim.cluster.placement import LoadPlacer
from dynosim.cluster.pool import worker_log
from dynosim.cluster.pool_placers import PoolPlacers
from dynosim.cluster.prefetches import check_prefetches
from dynosim.cluster.requests import Requests
from dynosim.cluster.routing import make_placer
from dynosim.cluster.shared_store import SharedStore
from dynosim.cluster.spec import ClusterSpec, DisaggSpec, RunOptions
from dynosim.cluster.tier_stores import TierStores
from dynosim.cluster.trail import TrailColumns
from dynosim.cluster.transfers import Transfers
from dynosim.cluster.watch import Watch
from dynosim.engine.room import require_room
from dynosim.engine.spec import EngineSpec
from dynosim.errors import InfeasibleError
from dynosim.records import RunResult, StartupLog, Trace
from dynosim.router.handoff import HandoffFlow, HandoffSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.workload.extents import PrefixExtents, prefix_extents
from dynosim.workload.load import NEVER, Arrivals, LoadDriver

if TYPE_CHECKING:
    from dynosim.cluster.control import Process

PART_S = 0.1
Progress = Callable[[int, int], None]
"""Takes the number of requests that have ended, and of all."""


def simulate(
    trace: Trace,
    cluster: ClusterSpec,
    options: RunOptions = RunOptions(),  # noqa: B008 (a value that never changes)
    *,
    processes: "Sequence[Process]" = (),
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> RunResult:
    """Replay `trace` on `cluster` in virtual time.

    Where workers start cold, requests wait outside until one of each role serves.

    `processes` are SimPy processes that watch and steer the run, see `dynosim.cluster.control`.
    `progress` is told several times a second how far a run without such processes is. `watch` may
    end a run early in which all workers are followed together and nothing steers them.

    Raises: InfeasibleError if a cache is too small for the model length, or all are for a pin.
    """
    started = time.perf_counter()
    for pool in cluster.pools:
        require_room(pool.engine)
    check_pins(trace, cluster)
    check_prefetches(trace, cluster)
    extents = extents_for(trace, cluster, may_fail=bool(processes))
    routing = _first_routing(cluster, trace, options)
    journal = Journal(trace)
    ingress_ms = cluster.pools[0].times.ingress_ms + routing.hop_ms
    egress_ms = cluster.pools[-1].times.egress_ms
    outside_ms = ingress_ms + egress_ms
    handoffs, decode_routing = None, None
    is_steered = bool(processes) or cluster.starts_cold
    stores = TierStores()
    seen = SharedStore(stores, extents) if routing.settings.cost.shared_cache_multiplier else None
    if cluster.disagg is not None:
        decode_routing = cluster.disagg.decode_routing or _in_turn(cluster.block_size, options.seed)
        decode_routing = replace(
            decode_routing,
            has_wishes=routing.has_wishes,
            is_asked=decode_routing.is_asked or routing.is_asked,
        )
        routing, decode_routing = _as_asked(cluster.disagg.handoff, routing, decode_routing)
        handoffs = _make_handoffs(cluster, cluster.disagg, journal)
    placer = _make_placer(
        (routing, decode_routing), trace, extents, cluster, may_change=is_steered, shared_store=seen
    )
    if any(pool.tiers is not None for pool in cluster.pools):
        journal.tiers = TierColumns(journal.scheduled_ms, cluster.block_size)
    load: Arrivals = LoadDriver(trace, options.concurrency)
    frontend = None
    if cluster.frontend is not None:
        load = frontend = StagedLoad(load, trace.input_tokens, cluster.frontend)
    trail = TrailColumns() if options.records_trail else None
    patience = None
    if options.client_timeout_ms is not None:
        # What is over so late that its last token comes after the time-out is given up, too.
        patience = Patience(max(0.0, options.client_timeout_ms - outside_ms), journal)
    singly = options.exact_stepping
    running = Cluster(
        Requests(trace, extents, cluster),
        launcher=Launcher(
            extents,
            journal,
            routing,
            decode_routing=decode_routing,
            steps_singly=singly,
            trail=trail,
            retains=trace.retention is not None,
        ),
        placer=placer,
        load=load,
        journal=journal,
        stores=stores,
        handoffs=handoffs,
        turnaround_ms=outside_ms,
        patience=patience,
        migration_limit=options.migration_limit,
        generations=_generations(cluster),
        lobby=Lobby() if options.waits_for_workers else None,
        frontend=frontend,
    )
    _launch_all(running, cluster)
    until_ms = NEVER if options.until_ms is None else options.until_ms - outside_ms
    parts = _Parts(progress)
    books = Books(
        journal, placer, cluster, ingress_ms=ingress_ms, egress_ms=egress_ms, frontend=frontend
    )
    startups = None
    if is_steered:
        until_ms, end_ms, startups = _run_steered(
            running, cluster, until_ms, processes, books, options.seed
        )
    elif (
        isinstance(placer, LoadPlacer)
        and patience is None
        and frontend is None
        and cluster.ranks.number == 1
        and can_go_apart(routing, load, len(running.workers))
        and not any(pool.tiers is not None and pool.tiers.goes_elsewhere for pool in cluster.pools)
    ):
        each = one_by_one(running, placer, trace, cluster.max_model_len)
        end_ms = max([parts.run(running, until_ms) for _ in each])
    elif watch is not None:
        until_ms, end_ms = parts.run_watched(running, until_ms, watch, journal)
    else:
        end_ms = parts.run(running, until_ms)
    running.stop(until_ms)
    result = RunResult(
        requests=journal.request_log(is_closed_loop=options.concurrency is not None),
        steps=journal.step_log(),
        stalled_gaps_ms=np.array(journal.stalled_gaps_ms),
        workers=worker_log(running.workers),
        block_size=cluster.block_size,
        end_ms=end_ms,
        num_preemptions=sum(w.engine.core.num_preemptions for w in running.workers),
        num_scheduling_events=sum(w.engine.num_events for w in running.workers),
        routing=placer.stats(),
        kv_events=placer.kv_events(),
        trail=None if trail is None else trail.log(end_ms),
        lock_step=running.lock_step_log(),
        links=None if handoffs is None else handoffs.transfers.log(),
        tiers=stores.log(),
        prefetches=running.prefetch_log(),
        retention=running.retention_log(),
        scaling=books.scaling_log(),
        startups=startups,
        simulate_wall_ms=(time.perf_counter() - started) * 1e3,
    )
    stores.clear()
    if outside_ms == 0:
        return result
    return as_clients_see(result, ingress_ms=ingress_ms, egress_ms=egress_ms)


def _make_placer(
    routings: tuple[RoutingSpec, RoutingSpec | None],
    trace: Trace,
    extents: PrefixExtents,
    cluster: ClusterSpec,
    *,
    may_change: bool,
    shared_store: SharedStore | None,
) -> AnyPlacer:
    """Who places requests; with prefill and decode workers apart, by the routing of each."""
    first, second = routings
    if second is None:
        return make_placer(
            first,
            trace,
            extents,
            cluster.cards(),
            cluster.ranks,
            may_change=may_change,
            shared_store=shared_store,
        )
    prefill = make_placer(
        first,
        trace,
        extents,
        cluster.cards("prefill"),
        may_change=may_change,
        shared_store=shared_store,
    )
    return PoolPlacers(
        prefill,
        make_placer(second, trace, extents, cluster.cards("decode"), may_change=may_change),
    )


def _first_routing(cluster: ClusterSpec, trace: Trace, options: RunOptions) -> RoutingSpec:
    """How requests that come are placed."""
    routing = cluster.routing or _in_turn(cluster.block_size, options.seed)
    if trace.wishes is not None:
        routing = replace(routing, has_wishes=True)
    if any(pool.tiers is not None and pool.tiers.are_published for pool in cluster.pools):
        routing = replace(routing, has_slower_tiers=True)  # or their events would be of devices
    return replace(routing, is_asked=True) if cluster.mixes_no_generations else routing


def _generations(cluster: ClusterSpec) -> Generations | None:
    """Those that do not mix, if they do not."""
    if not cluster.mixes_no_generations:
        return None
    return Generations([pool.name for pool in cluster.pools])


def _as_asked(
    handoff: HandoffSpec, prefill: RoutingSpec, decode: RoutingSpec
) -> tuple[RoutingSpec, RoutingSpec]:
    """The routing of both pools; where somebody asks for places or loads, routers do it."""
    if handoff.conditional is not None:
        return replace(prefill, is_asked=True), replace(decode, is_asked=True)
    if handoff.kv_transfer is None:
        return prefill, decode
    if handoff.order == "decode_first":
        return replace(prefill, is_asked=True), decode
    return prefill, replace(decode, is_asked=True)


def _make_handoffs(cluster: ClusterSpec, disagg: DisaggSpec, journal: Journal) -> Handoffs:
    """What takes requests from one pool to the other."""
    shows_prefill_tokens = disagg.handoff.first_token == "prefill"
    journal.handoffs = HandoffColumns(
        len(journal.status), shows_prefill_tokens=shows_prefill_tokens
    )
    flow, transfers = HandoffFlow(disagg.handoff), Transfers(disagg.transfer, cluster)
    return Handoffs(flow, transfers, journal)


def _launch_all(running: Cluster, spec: ClusterSpec) -> None:
    """Start the run with all workers ready, but those that start cold."""
    for pool in spec.pools:
        for _ in range(pool.workers):
            worker = running.launch(pool, 0.0)
            if not pool.start_cold:
                running.make_ready(worker, 0.0)


def extents_for(trace: Trace, cluster: ClusterSpec, *, may_fail: bool = False) -> PrefixExtents:
    """Prompts in terms of extents; of single blocks where a prompt may stop amid any of them: by a
    cap, or because its KV does not come, or is computed here while others' KV comes."""
    engines = [pool.engine for pool in cluster.pools]
    may_stop = any(engine.long_prefill_token_threshold > 0 for engine in engines)
    if cluster.disagg is not None:
        may_stop |= may_fail or cluster.disagg.handoff.conditional is not None
    reuse_blocks = {engine.reuse_blocks for engine in engines}
    may_stop |= len(reuse_blocks) > 1
    return prefix_extents(
        trace, cluster.block_size, single_blocks=may_stop, reuse_blocks=max(reuse_blocks)
    )


def _in_turn(block_size: int, seed: int) -> RoutingSpec:
    """How requests are placed if nobody says: on each worker in turn."""
    return RoutingSpec(RouterSpec(block_size, mode="round-robin", seed=seed))


def _run_steered(
    running: Cluster,
    spec: ClusterSpec,
    until_ms: float,
    processes: "Sequence[Process]",
    books: Books,
    seed: int,
) -> tuple[float, float, StartupLog | None]:
    """Run to the end or to `until_ms`; returns that, or when a process stopped the run, when the
    last thing happened, and how workers started.
    """
    from dynosim.cluster.control import ControlPlane

    control = ControlPlane(running, spec.pools, processes, books, seed)
    control.run_until(until_ms)
    if control.is_stopped:
        until_ms = control.now_ms
    return until_ms, _end_ms(running, until_ms), control.startup_log()


def _end_ms(running: Cluster, until_ms: float) -> float:
    """When a run that went to `until_ms` ended: then, if there was anything left to happen."""
    return until_ms if running.next_ms() < NEVER else running.now_ms


class _Parts:
    """Comes back from the loop some ten times a second: to tell, and so that Ctrl-C is heard."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._part_ms = 1000.0

    def run(self, running: Cluster, until_ms: float) -> float:
        """Run to the end or to `until_ms`; returns when the last thing happened."""
        while (next_ms := running.next_ms()) < NEVER and next_ms <= until_ms:
            started = time.perf_counter()
            running.run_until(min(next_ms + self._part_ms, until_ms))
            if self._progress is not None:
                self._progress(running.num_ended, running.num_requests)
            self._part_ms *= 2 if time.perf_counter() - started < PART_S else 0.5
        running.run_until(until_ms)  # what is still the same instant
        return _end_ms(running, until_ms)

    def run_watched(
        self, running: Cluster, until_ms: float, watch: Watch, journal: Journal
    ) -> tuple[float, float]:
        """Run until `watch` ends it or to `until_ms`; returns until when, and when it ended."""
        while running.next_ms() < NEVER and watch.next_ms < until_ms:
            now_ms = watch.next_ms
            self.run(running, now_ms)
            if watch.look(journal, now_ms):
                return now_ms, _end_ms(running, now_ms)
        return until_ms, self.run(running, until_ms)


def check_requests_fit(trace: Trace, engine: EngineSpec) -> None:
    """Refuse a trace with requests that outgrow the KV cache.

    Meant for runs without a `max_model_len`: with one, longer prompts are rejected one by one, as
    an engine does.

    Raises: InfeasibleError naming the first such request and what to change.
    """
    capacity = engine.capacity_tokens
    needed = trace.input_tokens + trace.output_tokens - 1
    too_long = np.flatnonzero(needed > capacity)
    if len(too_long):
        row = int(too_long[0])
        raise InfeasibleError(
            f"{trace.source or 'trace'}: request {row} ({trace.input_tokens[row]} input + "
            f"{trace.output_tokens[row]} output tokens) is longer than the KV cache of one worker "
            f"({capacity} tokens), and so are {len(too_long) - 1} others: give workers more memory "
            "(engine.tensor_parallel, engine.num_gpu_blocks), or set engine.max_model_len to have "
            "too long prompts rejected and counted"
        )
