"""How well requests met their cached prefixes, how evenly they were spread, and at what effort.

`router_overlap_ratio` is what the routers believed to be cached when they placed the requests, over
all prompt tokens; compare it with `prefix_cache_reused_ratio`, what the engines found. Numbers of
the index are those of the first frontend; one of extents receives only blocks that requests share.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.records import RoutingStats, RunResult

COUNTERS = (
    "stored_blocks",
    "removed_blocks",
    "duplicate_blocks",
    "unknown_parents",
    "unknown_blocks",
    "queries",
    "lookups",
)
EVENT_COUNTERS = ("events_lost", "event_gaps", "event_replays", "event_dumps")
ROUTER_KEYS = (
    "router_overlap_ratio",
    "mean_overlap_error_tokens",
    "router_queued_requests",
    "mean_router_queue_ms",
    "p99_router_queue_ms",
    "refused_busy_requests",
    "refused_queue_full_requests",
    "index_blocks",
    *(f"index_{name}" for name in COUNTERS),
    *(f"kv_{name}" for name in EVENT_COUNTERS),
)


def hit_keys(result: RunResult, completed: NDArray[np.bool_]) -> dict[str, Any]:
    """Hits per request and per token, and prompt tokens read from the cache per token computed."""
    log = result.requests
    cached = log.cached_tokens[completed]
    rates = cached / log.input_tokens[completed]
    written = int(result.steps.prefill_tokens.sum())
    return {
        "mean_request_hit_rate": rates.mean() if len(rates) else None,
        "requests_with_hit_share": (cached > 0).mean() if len(rates) else None,
        "kv_read_write_ratio": int(cached.sum()) / written if written else None,
    }


def retention_keys(result: RunResult) -> dict[str, Any]:
    """What became of pinned blocks. None where no request says anything of its blocks."""
    log = result.retention
    return {
        "peak_pinned_blocks": log and log.peak_pinned_blocks,
        "evicted_pinned_blocks": log and log.broken_blocks,
    }


def share_keys(result: RunResult) -> dict[str, Any]:
    """How requests were spread over the workers that were ever ready to have some."""
    placed = result.requests.worker_id[result.requests.worker_id >= 0]
    counts = np.bincount(placed, minlength=len(result.workers))
    was_ready = np.zeros(len(counts), np.bool_)
    was_ready[: len(result.workers)] = ~np.isnan(result.workers.ready_ms)
    counts = counts[was_ready | (counts > 0)]
    if not len(placed):
        return {"busiest_worker_request_share": None, "worker_request_cv": None}
    return {
        "busiest_worker_request_share": counts.max() / len(placed),
        "worker_request_cv": counts.std() / counts.mean(),
    }


def router_keys(result: RunResult) -> dict[str, Any]:
    """What the routers believed, made wait and refused; None where load alone decided."""
    stats = result.routing
    if stats is None:
        return dict.fromkeys(ROUTER_KEYS)
    queued_ms = stats.queued_ms[stats.queued_ms > 0]
    counters = stats.counters
    values = [
        *_belief(result, stats),
        stats.num_queued,
        queued_ms.mean() if len(queued_ms) else 0.0,
        np.percentile(queued_ms, 99) if len(queued_ms) else 0.0,
        stats.refused.get(503, 0),
        stats.refused.get(529, 0),
        stats.index_blocks,
        *(counters[name] for name in COUNTERS),
        *(counters.get(name, 0) for name in EVENT_COUNTERS),
    ]
    return dict(zip(ROUTER_KEYS, values, strict=True))


def _belief(result: RunResult, stats: RoutingStats) -> tuple[float | None, float | None]:
    log = result.requests
    met = ~np.isnan(log.scheduled_ms)
    if not met.any():
        return None, None
    believed = stats.overlap_blocks[met] * result.block_size
    error = np.abs(believed - log.cached_tokens[met]).mean()
    return float(believed.sum() / log.input_tokens[met].sum()), float(error)
