"""Workers that have nothing to do with each other, followed one after the other.

Where neither loads nor caches decide who gets a request, and no end of a request brings about
another, a worker's life depends on its own requests alone. Followed all at once, hundreds of
workers push each other out of the processor's caches at every event; so the cluster's loop goes
through the whole life of one, then of the next.
"""

from collections.abc import Iterator

import numpy as np

from dynosim.cluster.cluster import Cluster
from dynosim.cluster.placement import LoadPlacer
from dynosim.cluster.pool import Worker
from dynosim.cluster.spec import ClusterSpec, RunOptions
from dynosim.records import IntArray, Trace
from dynosim.router.modes import BLIND_MODES, RoundRobin
from dynosim.router.spec import RoutingSpec
from dynosim.router.workers import WorkerTable
from dynosim.workload.load import Arrivals, LoadDriver


def can_go_apart(
    cluster: ClusterSpec, routing: RoutingSpec, options: RunOptions, load: Arrivals
) -> bool:
    """Whether workers that neither come nor go can be followed one by one."""
    is_blind = not routing.needs_router and routing.settings.mode in BLIND_MODES
    return (
        is_blind
        and not load.reacts
        and sum([pool.workers for pool in cluster.pools]) > 1
        and cluster.ranks.number == 1
        and cluster.ranks.rule is None
        and options.client_timeout_ms is None
        and cluster.disagg is None
        and cluster.frontend is None
        and not any([pool.tiers and pool.tiers.goes_elsewhere for pool in cluster.pools])
    )


def one_by_one(
    running: Cluster, placer: LoadPlacer, trace: Trace, max_model_len: int
) -> Iterator[Worker]:
    """Has a cluster whose run has not begun follow each worker, with the requests that it gets."""
    workers = running.workers
    rows = rows_by_worker(placer, trace.input_tokens, max_model_len, len(workers))
    for worker, mine in zip(workers, rows, strict=True):
        alone = LoadPlacer(RoundRobin(), WorkerTable(worker.card.block_size))
        alone.join(worker, 0.0)
        running.follow(LoadDriver(trace, rows=mine), alone)
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
