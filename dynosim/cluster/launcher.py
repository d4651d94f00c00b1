"""Makes workers: an engine core with its step times and its token log, as a pool's spec says."""

from dynosim.cluster.journal import Journal
from dynosim.cluster.pool import Worker
from dynosim.cluster.spec import PoolSpec, Role
from dynosim.cluster.token_log import DecodeLog, PrefillLog, TokenLog
from dynosim.cluster.trail import TrailColumns, TrailRecorder
from dynosim.engine.cores import CORES, Core
from dynosim.engine.engine import Engine
from dynosim.engine.lanes import CopyLanes
from dynosim.engine.lock_step import LockStep, RankEngine
from dynosim.engine.recorder import Recorder
from dynosim.router.spec import RoutingSpec
from dynosim.timing.lock_step import LockStepTimes
from dynosim.workers.ids import WorkerId
from dynosim.workload.extents import PrefixExtents

_LOGS: dict[Role, type[TokenLog]] = {
    "agg": TokenLog,
    "prefill": PrefillLog,
    "decode": DecodeLog,
}


class Launcher:
    """What all workers of a run have in common: its requests' prefixes, its journal, its routing.

    `steps_singly` decides every engine step on its own; `trail` takes what requests do in steps;
    `retains`: requests say what their blocks are worth.
    """

    def __init__(
        self,
        extents: PrefixExtents,
        journal: Journal,
        routing: RoutingSpec,
        *,
        decode_routing: RoutingSpec | None = None,
        steps_singly: bool,
        trail: TrailColumns | None = None,
        retains: bool = False,
    ) -> None:
        self._extent_blocks: list[int] = extents.extent_blocks.tolist()
        self._journal = journal
        self._routing = routing
        self._decode_routing = routing if decode_routing is None else decode_routing
        self._steps_singly = steps_singly
        self._trail = trail
        self._retains = retains
        self._launched: dict[str, int] = {}  # workers so far, by pool
        self._shared_extents: list[bool] | None = None
        self._extents = extents

    def launch(
        self, worker_id: WorkerId, pool: PoolSpec, now_ms: float
    ) -> tuple[list[Worker], LockStep | None]:
        """A worker of `pool` that starts now, rank by rank, and what steps them together.

        The first rank has the given id, the others follow.
        """
        spec, number = pool.engine, pool.ranks.number
        place = self._launched.get(pool.name, 0)
        self._launched[pool.name] = place + 1
        if not pool.ranks.in_lock_step:
            workers = [
                self._engine(WorkerId(worker_id + i), pool, i, place, now_ms) for i in range(number)
            ]
            return workers, None
        ranks: list[RankEngine] = []
        workers = []
        for i in range(number):
            one, engine = self._rank(WorkerId(worker_id + i), pool, i, place, now_ms)
            workers.append(one)
            ranks.append(engine)
        times = LockStepTimes(pool.times, pool.ranks.padded_up_to)
        return workers, LockStep(ranks, times, depth=spec.pipeline_depth)

    def _engine(
        self, worker_id: WorkerId, pool: PoolSpec, rank: int, place: int, now_ms: float
    ) -> Worker:
        """An engine that nobody waits for.

        Its front end hears of it after every step, if it has one that balances ranks.
        """
        core, token_log, recorder = self._parts(worker_id, pool)
        engine = Engine(
            core,
            pool.times,
            recorder,
            depth=pool.engine.pipeline_depth,
            steps_singly=self._steps_singly or pool.ranks.rule is not None,
            stamps_events=self._routing_of(pool).stamps_events,
        )
        if pool.tiers is not None:
            engine.lanes = CopyLanes(pool.tiers.lanes())
        return Worker(worker_id, pool, engine, token_log, now_ms, rank, place)

    def _rank(
        self, worker_id: WorkerId, pool: PoolSpec, rank: int, place: int, now_ms: float
    ) -> tuple[Worker, RankEngine]:
        """An engine that others wait for."""
        core, token_log, recorder = self._parts(worker_id, pool)
        engine = RankEngine(
            core,
            pool.times,
            recorder,
            depth=pool.engine.pipeline_depth,
            stamps_events=self._routing_of(pool).stamps_events,
        )
        return Worker(worker_id, pool, engine, token_log, now_ms, rank, place), engine

    def _parts(self, worker_id: WorkerId, pool: PoolSpec) -> tuple[Core, TokenLog, Recorder]:
        """The core of one engine, and who notes what it does."""
        spec, routing = pool.engine, self._routing_of(pool)
        core = CORES[spec.kind](
            spec,
            self._extent_blocks,
            keep_rows=self._steps_singly or self._trail is not None,
            publish_events=routing.publishes_events and spec.enable_prefix_caching,
            announced=self._announced(routing),
            retains=self._retains,
        )
        token_log = _LOGS[pool.role](
            self._journal,
            worker_id,
            core,
            pool.times,
            is_pipelined=spec.pipeline_depth > 1,
            reports_first_tokens=routing.needs_router,
        )
        if self._trail is None:
            return core, token_log, token_log
        return core, token_log, TrailRecorder(token_log, self._trail, worker_id)

    def _routing_of(self, pool: PoolSpec) -> RoutingSpec:
        """How requests get to the workers of a pool."""
        return self._decode_routing if pool.role == "decode" else self._routing

    def _announced(self, routing: RoutingSpec) -> list[bool] | None:
        """Extents that events are about; None: all.

        Only other requests' blocks matter to a router; a hash index receives all, as in reality.
        """
        if routing.stamps_events or routing.uses_hashes:
            return None
        if self._shared_extents is None:
            self._shared_extents = self._extents.shared_extents()
        return self._shared_extents
