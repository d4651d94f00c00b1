"""What a report says of a number of workers that somebody controls; and that number over time."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.metrics.lives import lived_shares
from dynosim.records import RunResult

if TYPE_CHECKING:
    import polars as pl

_KEYS = ("num_scale_ups", "num_scale_downs", "mean_workers")


def scaling_keys(result: RunResult) -> dict[str, Any]:
    """How often a pool was given more workers or fewer, and how many there were on average, those
    that start and drain included. All None where nobody controls that."""
    scaling, workers = result.scaling, result.workers
    if scaling is None:
        return dict.fromkeys(_KEYS)
    shares = lived_shares(workers, 0.0, result.end_ms)
    return {
        "num_scale_ups": int((scaling.after > scaling.before).sum()),
        "num_scale_downs": int((scaling.after < scaling.before).sum()),
        "mean_workers": float(shares.sum()) / workers.ranks_per_worker,
    }


def replica_table(result: RunResult) -> "pl.DataFrame":
    """The workers of each pool over time: a row per pool and moment at which something changed.

    Columns: `pool`, `at_ms`; `wanted`, as was last asked for (null where nobody does); `starting`,
    `ready` and `draining` from then on.
    """
    import polars as pl

    workers = result.workers
    rows: list[dict[str, Any]] = []
    for pool in dict.fromkeys(workers.pool):
        mine = np.flatnonzero(np.array([name == pool for name in workers.pool]))
        mine = mine[:: workers.ranks_per_worker]
        draining_ms = np.full(len(mine), np.nan)
        if workers.draining_ms is not None:
            draining_ms = workers.draining_ms[mine]
        lives = np.stack(
            (workers.launched_ms[mine], workers.ready_ms[mine], draining_ms, workers.ended_ms[mine])
        )
        wanted: dict[float, int] = {}
        if result.scaling is not None:
            log = result.scaling
            changes = zip(log.at_ms.tolist(), log.pool, log.after.tolist(), strict=True)
            wanted = {0.0: int((lives[0] == 0).sum())}
            wanted |= {at_ms: after for at_ms, name, after in changes if name == pool}
        now: int | None = None
        for at_ms in sorted({*lives[~np.isnan(lives)].tolist(), *wanted}):
            now = wanted.get(at_ms, now)
            rows.append({"pool": pool, "at_ms": at_ms, "wanted": now, **_phases(lives, at_ms)})
    schema = {"pool": pl.String, "at_ms": pl.Float64, "wanted": pl.Int64}
    phases = dict.fromkeys(("starting", "ready", "draining"), pl.Int64)
    return pl.DataFrame(rows, schema={**schema, **phases})


def _phases(lives: Any, at_ms: float) -> dict[str, int]:
    """Workers in each phase from a moment on; `lives` are launch, readiness, drain and end."""
    launched, ready, draining, ended = (lives <= at_ms) & ~np.isnan(lives)
    return {
        "starting": int((launched & ~ready & ~ended).sum()),
        "ready": int((ready & ~draining & ~ended).sum()),
        "draining": int((ready & draining & ~ended).sum()),
    }
