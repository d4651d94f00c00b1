"""What a report says of workers that started during the run. All None if none did."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dynosim.records import RunResult, StartupLog
from dynosim.workers.startup import PHASES

if TYPE_CHECKING:
    import polars as pl

STARTUP_KEYS: Final = (
    "num_startups",
    "mean_startup_ms",
    "max_startup_ms",
    *(f"mean_startup_{phase}_ms" for phase in PHASES),
)


def startup_keys(result: RunResult) -> dict[str, Any]:
    """How long workers took that came up, and with what: a phase that none of them had is None.

    Where a worker has several nodes, a phase is from its first node's begin to its last one's end.
    """
    keys: dict[str, Any] = dict.fromkeys(STARTUP_KEYS)
    log, workers = result.startups, result.workers
    if log is None:
        return keys
    launched = np.unique(log.worker_id)
    up = launched[np.isfinite(workers.ready_ms[launched])]
    keys["num_startups"] = len(up)
    if not len(up):
        return keys
    took_ms = workers.ready_ms[up] - workers.launched_ms[up]
    keys["mean_startup_ms"], keys["max_startup_ms"] = took_ms.mean(), took_ms.max()
    spans = _spans_ms(log)
    for phase in PHASES:
        found = [spans.get((worker, phase)) for worker in up.tolist()]
        if any(span is not None for span in found):
            keys[f"mean_startup_{phase}_ms"] = sum(filter(None, found)) / len(up)
    return keys


def startup_table(log: StartupLog) -> "pl.DataFrame":
    """A row per phase of a node of a worker: the columns of startups.parquet."""
    import polars as pl

    return pl.DataFrame(
        {
            "worker_id": log.worker_id,
            "node": log.node,
            "phase": list(log.phase),
            "start_ms": log.start_ms,
            "end_ms": log.end_ms,
            "num_bytes": log.num_bytes,
            "source_worker_id": log.source,
            "is_complete": log.is_complete,
        },
        schema_overrides={"phase": pl.String},
    ).with_columns(
        pl.col("end_ms").fill_nan(None),
        pl.col("source_worker_id").replace(-1, None),
    )


def _spans_ms(log: StartupLog) -> dict[tuple[int, str], float]:
    """From the first begin to the last end, by worker and phase."""
    starts: dict[tuple[int, str], float] = {}
    ends: dict[tuple[int, str], float] = {}
    rows = zip(
        log.worker_id.tolist(), log.phase, log.start_ms.tolist(), log.end_ms.tolist(), strict=True
    )
    for worker, phase, start_ms, end_ms in rows:
        key = worker, phase
        starts[key] = min(start_ms, starts.get(key, start_ms))
        ends[key] = max(end_ms, ends.get(key, end_ms))
    return {key: ends[key] - start_ms for key, start_ms in starts.items()}
