"""Makes what places the requests of a run: a load-only mode, or routers with all they need."""

from random import Random

from dynosim.cluster.placement import LoadPlacer, Placer
from dynosim.cluster.rank_placer import RankPlacer
from dynosim.cluster.shared_store import SharedStore
from dynosim.engine.ranks import ONE_RANK, RankSpec
from dynosim.records import Trace
from dynosim.router.modes import make_load_mode
from dynosim.router.spec import RoutingSpec
from dynosim.router.workers import WorkerCard, WorkerTable
from dynosim.workload.extents import PrefixExtents


def make_placer(
    routing: RoutingSpec,
    trace: Trace,
    extents: PrefixExtents,
    cards: list[WorkerCard],
    ranks: RankSpec = ONE_RANK,
    *,
    may_change: bool = True,
    shared_store: SharedStore | None = None,
) -> Placer:
    """What places the requests of a run; `cards` are those of the workers to come.

    `ranks`: those of each worker; their front ends choose among them if they have a rule for it.
    `may_change`: more may come later, and these may go. `shared_store`: one that they all load from
    and a router is to see.
    """
    if routing.needs_router:
        from dynosim.cluster.routers import lone_placer, router_placer

        if len(cards) == 1 and not may_change and routing.only_follows_caches:
            return lone_placer(trace, extents)
        return router_placer(routing, trace, extents, cards, shared_store)
    settings = routing.settings
    table = WorkerTable(settings.block_size)
    generator = Random(f"{settings.seed}/router")
    mode = make_load_mode(settings.mode, generator, table, settings.cuda_to_cpu_ratio)
    loads = LoadPlacer(mode, table)
    return loads if ranks.rule is None else RankPlacer(loads, ranks.rule)
