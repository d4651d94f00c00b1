"""Workers that have nothing to do with each other, followed one after the other.

Where neither loads nor caches decide who gets a request, and no end of a request brings about
another, a worker's life depends on its own requests alone. Followed all at once, hundreds of
workers push each other out of the processor's caches at every event; so the cluster's loop goes
through the whole life of one, then of the next.
"""

from collections.abc import Collection, Iterator

import numpy as np

from dynosim.cluster.cluster import Cluster
from dynosim.cluster.placement import LoadPlacer, Released
from dynosim.cluster.pool import Worker
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence
from dynosim.records import IntArray, Trace
from dynosim.router.modes import BLIND_MODES
from dynosim.router.spec import RoutingSpec
from dynosim.workload.load import LoadDriver


def can_go_apart(routing: RoutingSpec, load: LoadDriver, num_workers: int) -> bool:
    """Whether workers that neither come nor go can be followed one by one."""
    is_blind = not routing.needs_router and routing.settings.mode in BLIND_MODES
    return is_blind and not load.reacts and num_workers > 1


def one_by_one(
    running: Cluster, placer: LoadPlacer, trace: Trace, max_model_len: int
) -> Iterator[Worker]:
    """Has a cluster whose run has not begun follow each worker, with the requests that it gets."""
    workers = running.workers
    rows = rows_by_worker(placer, trace.input_tokens, max_model_len, len(workers))
    for worker, mine in zip(workers, rows, strict=True):
        running.follow(LoadDriver(trace, rows=mine), OnlyWorker(worker.worker_id))
        yield worker


def rows_by_worker(
    placer: LoadPlacer, input_tokens: IntArray, max_model_len: int, num_workers: int
) -> list[IntArray]:
    """The requests that each worker gets, in order; those that nobody takes, with the first."""
    placed: list[int] = []
    for index, num_tokens in enumerate(input_tokens.tolist()):
        is_placed = num_tokens < max_model_len
        placed.append(placer.place(index, num_tokens, 0, 0.0) if is_placed else 0)
    workers = np.array(placed, np.int64)
    counts = np.bincount(workers, minlength=num_workers)
    return np.split(np.argsort(workers, kind="stable"), np.cumsum(counts)[:-1])


class OnlyWorker:
    """Places everything on one worker: who goes there has been decided."""

    def __init__(self, worker_id: int) -> None:
        self.next_ms = NEVER
        self._worker_id = worker_id

    def join(self, worker: Worker, now_ms: float) -> None:
        """Nothing depends on it."""

    def leave(self, worker: Worker, now_ms: float) -> None:
        """Nothing depends on it."""

    def forget(self, indexes: Collection[int]) -> None:
        """Nothing is kept of requests."""

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
        """The worker."""
        return self._worker_id

    def receive(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """Nothing depends on it."""

    def releases(self, now_ms: float) -> Iterator[Released]:
        """Nothing ever waits."""
        return iter(())

    def stats(self) -> None:
        """Nothing was looked at."""

    def kv_events(self) -> None:
        """Engines publish no events."""
