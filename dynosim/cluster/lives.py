"""When each worker of a run was launched, became ready and ended."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynosim.cluster.spec import PoolSpec
from dynosim.records import WorkerLog

NAN = float("nan")


@dataclass(slots=True)
class Life:
    """One worker's life, on the workers' clock; NaN for what has not happened."""

    pool: PoolSpec
    launched_ms: float = 0.0
    ready_ms: float = 0.0
    ended_ms: float = NAN


def worker_log(lives: Sequence[Life]) -> WorkerLog:
    """The lives of all workers, in the order of their ids."""
    pools = [life.pool for life in lives]
    return WorkerLog(
        pool=tuple(pool.name for pool in pools),
        role=tuple(pool.role for pool in pools),
        gpus=np.array([pool.gpus_per_worker for pool in pools], np.int64),
        usable_blocks=np.array([pool.engine.usable_blocks for pool in pools], np.int64),
        step_time_scale=np.array([pool.step_time_scale for pool in pools], np.float64),
        launched_ms=np.array([life.launched_ms for life in lives]),
        ready_ms=np.array([life.ready_ms for life in lives]),
        ended_ms=np.array([life.ended_ms for life in lives]),
    )
