"""A run by the classes of its requests, where the trace names them: what each found in the caches.

Two hit rates, which differ where prompts differ in length: per request the mean of the cached parts
of prompts, per token all cached tokens over all prompt tokens.
"""

from typing import Any

import numpy as np

from dynosim.metrics.percentiles import summarize_sample
from dynosim.metrics.report import Latencies
from dynosim.records import RequestStatus, RunResult, Trace

UNNAMED = "other"
"""What requests of no class are called, beside others that have one."""
STATISTICS = ("mean", "p99")


def class_rows(result: RunResult, trace: Trace) -> list[dict[str, Any]] | None:
    """A row for each class by name, ready for JSON; None if no request has one."""
    if trace.classes is None:
        return None
    names = np.array([name or UNNAMED for name in trace.classes])
    latencies = Latencies.of(result.requests)
    return [
        {"request_class": str(name), **_row(result, names == name, latencies)}
        for name in np.unique(names)
    ]


def _row(result: RunResult, mine: Any, latencies: Latencies) -> dict[str, Any]:
    log = result.requests
    served = mine & (log.status == RequestStatus.COMPLETED)
    inputs, cached = log.input_tokens[served], log.cached_tokens[served]
    total, hit = int(inputs.sum()), int(cached.sum())
    ttft = summarize_sample(latencies.ttft_ms[served]).statistics
    tpot = summarize_sample(latencies.tpot_ms[served]).statistics
    e2e = summarize_sample(latencies.e2e_ms[served]).statistics
    return {
        "num_requests": int(mine.sum()),
        "completed_requests": int(served.sum()),
        "total_input_tokens": total,
        "total_output_tokens": int(log.output_tokens[served].sum()),
        "mean_request_hit_rate": float((cached / inputs).mean()) if len(inputs) else None,
        "prefix_cache_reused_ratio": hit / total if total else None,
        "kv_read_write_ratio": hit / (total - hit) if total > hit else None,
        **{f"{name}_ttft_ms": ttft[name] for name in STATISTICS},
        "mean_tpot_ms": tpot["mean"],
        **{f"{name}_e2e_latency_ms": e2e[name] for name in STATISTICS},
    }
