"""Makes workers: an engine core with its step times and its token log, as a pool's spec says."""

from dynosim.cluster.journal import Journal
from dynosim.cluster.pool import Worker
from dynosim.cluster.spec import PoolSpec
from dynosim.cluster.token_log import TokenLog
from dynosim.cluster.trail import TrailColumns, TrailRecorder
from dynosim.engine.cores import CORES
from dynosim.engine.engine import Engine
from dynosim.router.spec import RoutingSpec
from dynosim.workers.ids import WorkerId
from dynosim.workload.extents import PrefixExtents


class Launcher:
    """What all workers of a run have in common: its requests' prefixes, its journal, its routing.

    `steps_singly` decides every engine step on its own; `trail` takes what requests do in steps.
    """

    def __init__(
        self,
        extents: PrefixExtents,
        journal: Journal,
        routing: RoutingSpec,
        *,
        steps_singly: bool,
        trail: TrailColumns | None = None,
    ) -> None:
        self._extent_blocks: list[int] = extents.extent_blocks.tolist()
        self._journal = journal
        self._routing = routing
        self._steps_singly = steps_singly
        self._trail = trail
        # Only other requests' blocks matter to a router; a hash index receives all, as in reality.
        receives_all = routing.stamps_events or routing.uses_hashes
        self._announced = None if receives_all else extents.shared_extents()

    def launch(self, worker_id: WorkerId, pool: PoolSpec, now_ms: float) -> Worker:
        """A worker of `pool` that starts now."""
        spec, routing = pool.engine, self._routing
        core = CORES[spec.kind](
            spec,
            self._extent_blocks,
            keep_rows=self._steps_singly or self._trail is not None,
            publish_events=routing.publishes_events and spec.enable_prefix_caching,
            announced=self._announced,
        )
        token_log = TokenLog(
            self._journal,
            worker_id,
            core,
            pool.times,
            is_pipelined=spec.pipeline_depth > 1,
            reports_first_tokens=routing.needs_router,
        )
        engine = Engine(
            core,
            pool.times,
            token_log if self._trail is None else TrailRecorder(token_log, self._trail, worker_id),
            depth=spec.pipeline_depth,
            steps_singly=self._steps_singly,
            stamps_events=routing.stamps_events,
        )
        return Worker(worker_id, pool, engine, token_log, now_ms)
