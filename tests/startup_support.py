"""Drives workers that start, without a cluster: acts at times, and what came up when."""

from collections.abc import Callable, Sequence

from dynosim.cluster.starting import StartUps
from dynosim.engine.pace import NEVER
from dynosim.workers.startup import Duration, ReadSpec, StartupSpec, WeightsSpec

GB = 1_000_000_000
POOL = "workers"
Act = tuple[float, Callable[[StartUps, float], None]]


def launch(
    worker_id: int, spec: StartupSpec, pool: str = POOL
) -> Callable[[StartUps, float], None]:
    return lambda starts, now_ms: starts.launch(worker_id, pool, spec, now_ms)


def leave(worker_id: int) -> Callable[[StartUps, float], None]:
    return lambda starts, now_ms: starts.leave(worker_id, now_ms)


def running(
    worker_id: int, spec: StartupSpec, pool: str = POOL
) -> Callable[[StartUps, float], None]:
    return lambda starts, now_ms: starts.add_running(worker_id, pool, spec, now_ms)


def came_up(acts: Sequence[Act], *, seed: int = 0) -> tuple[dict[int, float], StartUps]:
    """When each worker came up, in ms; acts at one time go in their order."""
    starts, up = StartUps(seed), dict[int, float]()
    todo = sorted(acts, key=lambda act: act[0])
    while todo or starts.next_ms < NEVER:
        act_ms = todo[0][0] if todo else NEVER
        now_ms = min(act_ms, starts.next_ms)
        up |= dict.fromkeys(starts.advance(now_ms), now_ms)
        while todo and todo[0][0] <= now_ms:
            todo.pop(0)[1](starts, now_ms)
    return up, starts


def many(number: int, spec: StartupSpec) -> list[Act]:
    """So many workers, all launched at 0."""
    return [(0.0, launch(worker_id, spec)) for worker_id in range(number)]


def from_storage(
    size_gb: float,
    *,
    node_gb_s: float,
    total_gb_s: float | None = None,
    boot_ms: float = 0.0,
    nodes: int = 1,
    peer_gb_s: float | None = None,
    receivers_per_source: int | None = None,
) -> StartupSpec:
    """Workers that only boot, perhaps, and read weights."""
    weights = WeightsSpec(
        num_bytes=int(size_gb * GB),
        storage=ReadSpec(node_gb_s=node_gb_s, total_gb_s=total_gb_s),
        peer_gb_s=peer_gb_s,
        receivers_per_source=receivers_per_source,
    )
    return StartupSpec(boot=Duration(boot_ms), weights=weights, nodes=nodes)
