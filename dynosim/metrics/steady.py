"""The part of a run with warm-up and tail cut off.

The window opens when 10 % of the requests have arrived and closes at the last arrival: caches and
batches have filled, and the load still comes. Rates count what happened inside the window,
latencies those of the completed requests that arrived in it. A run whose window is empty (all
requests at once) has None everywhere.
"""

from typing import Any

import numpy as np

from dynosim.metrics.decode_runs import DecodeTimes
from dynosim.metrics.lives import mean_gpus, step_time_scales
from dynosim.metrics.percentiles import summarize_sample
from dynosim.records import FloatArray, RequestLog, RequestStatus, RunResult

WARM_UP_SHARE = 0.1
MS_PER_S = 1000.0
LATENCY_STATISTICS: tuple[str, ...] = ("mean", "median", "p90", "p99")
_METRICS = ("ttft_ms", "tpot_ms", "e2e_latency_ms")


def steady_window(log: RequestLog) -> tuple[float, float]:
    """Start and end of the window in ms; (0, 0) when nothing arrived."""
    arrivals = np.sort(log.arrival_ms[~np.isnan(log.arrival_ms)])
    if len(arrivals) == 0:
        return 0.0, 0.0
    return float(arrivals[int(len(arrivals) * WARM_UP_SHARE)]), float(arrivals[-1])


def steady_keys(
    result: RunResult,
    timing: DecodeTimes,
    ttft_ms: FloatArray,
    tpot_ms: FloatArray,
    e2e_ms: FloatArray,
) -> dict[str, Any]:
    """The `steady_*` keys of the report.

    Output tokens are first tokens and tokens of decode steps that come inside the window; tokens
    that end a gap stretched by preemption are left out.
    `steady_mean_itl_ms` is over all gaps of the window's requests.
    """
    start_ms, end_ms = steady_window(result.requests)
    latency = {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms, "e2e_latency_ms": e2e_ms}
    if end_ms <= start_ms:
        return _empty_keys()
    return {
        "steady_start_ms": start_ms,
        "steady_end_ms": end_ms,
        **_rates(result, timing, start_ms, end_ms),
        **_latencies(result.requests, latency, start_ms, end_ms),
    }


def _empty_keys() -> dict[str, Any]:
    rates = ("offered_rps", "request_throughput_rps", "output_throughput_tok_s")
    names = ("start_ms", "end_ms", *rates, "output_tok_s_per_gpu", "num_requests", "mean_itl_ms")
    latencies = (f"{statistic}_{m}" for m in _METRICS for statistic in LATENCY_STATISTICS)
    return dict.fromkeys(f"steady_{name}" for name in (*names, *latencies))


def _rates(
    result: RunResult, timing: DecodeTimes, start_ms: float, end_ms: float
) -> dict[str, Any]:
    log = result.requests
    gpus = mean_gpus(result.workers, start_ms, end_ms)
    per_second = MS_PER_S / (end_ms - start_ms)
    tokens = _between(log.first_token_ms, start_ms, end_ms)
    tokens += _decoded_tokens(result, timing, start_ms, end_ms)
    completed = log.finish_ms[log.status == RequestStatus.COMPLETED]
    return {
        "steady_offered_rps": _between(log.arrival_ms, start_ms, end_ms) * per_second,
        "steady_request_throughput_rps": _between(completed, start_ms, end_ms) * per_second,
        "steady_output_throughput_tok_s": tokens * per_second,
        "steady_output_tok_s_per_gpu": tokens * per_second / gpus if gpus else None,
    }


def _between(times_ms: FloatArray, start_ms: float, end_ms: float) -> int:
    return int(((times_ms > start_ms) & (times_ms <= end_ms)).sum())


def _decoded_tokens(result: RunResult, timing: DecodeTimes, start_ms: float, end_ms: float) -> int:
    """Decode tokens of the steps that end inside the window."""
    steps, scale = result.steps, step_time_scales(result.workers)
    row_end_ms = steps.start_ms + steps.duration_ms
    inside = (steps.start_ms >= start_ms) & (row_end_ms <= end_ms)
    tokens = int((steps.num_decodes * steps.num_steps)[inside].sum())
    is_cut = ~inside & (row_end_ms > start_ms) & (steps.start_ms < end_ms)
    for row in np.flatnonzero(is_cut & (steps.num_decodes > 0)).tolist():
        num_decodes, num_steps = int(steps.num_decodes[row]), int(steps.num_steps[row])
        if num_steps == 1:
            step_ends_ms = row_end_ms[row : row + 1]
        else:
            counts = np.full(num_steps, num_decodes)
            contexts = steps.decode_context_tokens[row] + np.arange(num_steps) * num_decodes
            step_ms = timing.decode_step_ms_array(counts, contexts)
            if scale is not None:
                step_ms = step_ms * scale[steps.worker_id[row]]
            step_ends_ms = steps.start_ms[row] + np.cumsum(step_ms)
        tokens += num_decodes * _between(step_ends_ms, start_ms, end_ms)
    return tokens


def _latencies(
    log: RequestLog, latency: dict[str, FloatArray], start_ms: float, end_ms: float
) -> dict[str, Any]:
    inside = (log.arrival_ms >= start_ms) & (log.arrival_ms <= end_ms)
    inside &= log.status == RequestStatus.COMPLETED
    gaps = int((log.output_tokens[inside] - 1).sum())
    decoding_ms = float((log.finish_ms[inside] - log.first_token_ms[inside]).sum())
    keys: dict[str, Any] = {
        "steady_num_requests": int(inside.sum()),
        "steady_mean_itl_ms": decoding_ms / gaps if gaps else None,
    }
    for metric, values in latency.items():
        statistics = summarize_sample(values[inside]).statistics
        for statistic in LATENCY_STATISTICS:
            keys[f"steady_{statistic}_{metric}"] = statistics[statistic]
    return keys
