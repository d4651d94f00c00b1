"""Workers that are alike, and the life of each: launched, ready, draining, gone or failed."""

from collections.abc import Sequence

import numpy as np

from dynosim.cluster.spec import PoolSpec, worker_card
from dynosim.cluster.token_log import TokenLog
from dynosim.engine.engine import Engine
from dynosim.engine.host_cache import HostCache
from dynosim.engine.sequence import Sequence as EngineSequence
from dynosim.records import IntArray, WorkerLog
from dynosim.router.workers import WorkerCard
from dynosim.workers.ids import WorkerId
from dynosim.workers.lifecycle import Phase, WorkerEvent, next_phase

NAN = float("nan")


class Worker:
    """An engine under the number that reports use, and its life. Times in ms, NaN: not yet.

    Of a worker with several data-parallel ranks each rank is one, and `rank` is its place among
    them; their ids follow each other. They live and die together. `place` is that of the worker
    among all that its pool has had. `is_prefill`: it computes prompts for others; `is_decode`: it
    takes over what others have computed.
    """

    __slots__ = (
        "_left",
        "draining_ms",
        "ended_ms",
        "engine",
        "is_decode",
        "is_prefill",
        "launched_ms",
        "nearest_tier",
        "num_ranks",
        "phase",
        "place",
        "pool",
        "pool_name",
        "rank",
        "ready_ms",
        "since_ms",
        "station_id",
        "token_log",
        "usable_blocks",
        "worker_id",
    )

    def __init__(
        self,
        worker_id: WorkerId,
        pool: PoolSpec,
        engine: Engine,
        token_log: TokenLog,
        launched_ms: float,
        rank: int = 0,
        place: int = 0,
    ) -> None:
        self.worker_id = worker_id
        self.pool = pool
        self.pool_name = pool.name
        self.num_ranks = pool.ranks.number
        self.usable_blocks = pool.engine.usable_blocks
        self.is_prefill = pool.role == "prefill"
        self.is_decode = pool.role == "decode"
        self.engine = engine
        self.token_log = token_log
        self.phase = Phase.STARTING
        self.launched_ms = launched_ms
        self.since_ms = launched_ms  # when it came to its phase
        self.ready_ms = NAN
        self.draining_ms = NAN
        self.ended_ms = NAN
        self.rank = rank
        self.place = place
        self.station_id = -1  # of its engine, in the cluster's loop
        self.nearest_tier: HostCache | None = None
        self._left: list[tuple[EngineSequence, int]] | None = None  # what it had when it hung

    @property
    def first_id(self) -> int:
        """The id of the first of its ranks."""
        return self.worker_id - self.rank

    @property
    def card(self) -> WorkerCard:
        """What it says of itself when it joins."""
        return worker_card(self.worker_id, self.pool, self.place)

    @property
    def is_alive(self) -> bool:
        """Whether it holds its GPUs."""
        return self.phase is not Phase.GONE and self.phase is not Phase.FAILED

    @property
    def num_requests(self) -> int:
        """Requests placed on it that have not ended."""
        core = self.engine.core
        return core.num_running + core.num_waiting if self.is_alive else 0

    @property
    def is_hung(self) -> bool:
        """Whether it does nothing any more, and nobody has noticed."""
        return self._left is not None and self.is_alive

    def hang(self, now_ms: float) -> None:
        """Let its engine do nothing any more."""
        self._left = self.stop(now_ms)

    def stop(self, now_ms: float) -> list[tuple[EngineSequence, int]]:
        """Stop its engine; returns its requests, each with the tokens it has got by then."""
        if self._left is None:
            left = self.engine.stop(now_ms)
            self.token_log.stopped(left)
            return left.requests
        known = [sequence for sequence, _ in self._left]
        came_later = [one for one, _ in self.engine.core.unfinished() if one not in known]
        return [*self._left, *[(one, one.generated_tokens) for one in came_later]]

    def move(self, event: WorkerEvent, now_ms: float) -> None:
        """Go to the next phase of its life.

        Raises: ValueError if that cannot happen in its phase; nothing is changed then.
        """
        phase = next_phase(self.phase, event)
        if phase is None:
            raise ValueError(f"worker {self.worker_id} is {self.phase.value}: not {event.value}")
        if phase is not self.phase:
            self.since_ms = now_ms
        self.phase = phase
        if phase is Phase.READY:
            self.ready_ms = now_ms
        elif phase is Phase.DRAINING:
            self.draining_ms = self.since_ms
        elif not self.is_alive:
            self.ended_ms = now_ms


def still_alive(workers: Sequence[Worker]) -> list[Worker]:
    """Those that hold their GPUs."""
    return [worker for worker in workers if worker.is_alive]


def worker_log(workers: Sequence[Worker]) -> WorkerLog:
    """The lives of all workers, in the order of their ids."""
    pools = [worker.pool for worker in workers]
    return WorkerLog(
        pool=tuple(pool.name for pool in pools),
        role=tuple(pool.role for pool in pools),
        gpus=np.array([pool.gpus_per_worker // pool.ranks.number for pool in pools], np.int64),
        usable_blocks=np.array([pool.engine.usable_blocks for pool in pools], np.int64),
        step_time_scale=np.array([pool.step_time_scale for pool in pools], np.float64),
        launched_ms=np.array([worker.launched_ms for worker in workers], np.float64),
        ready_ms=np.array([worker.ready_ms for worker in workers], np.float64),
        ended_ms=np.array([worker.ended_ms for worker in workers], np.float64),
        seats=np.array([pool.engine.max_active for pool in pools], np.int64),
        ranks_per_worker=pools[0].ranks.number if pools else 1,
        held_blocks=np.array(
            [
                worker.engine.core.used_blocks if worker.is_alive and not worker.is_hung else 0
                for worker in workers
            ],
            np.int64,
        ),
        generation=_generations(pools),
        draining_ms=np.array([worker.draining_ms for worker in workers], np.float64),
    )


def _generations(pools: Sequence[PoolSpec]) -> IntArray | None:
    generations = [pool.generation for pool in pools]
    return np.array(generations, np.int64) if any(generations) else None
