"""A run by parts: its load stages, or equal windows of time.

A request belongs to the part in which it was sent. Latencies and attainment are of the requests of
a part, wherever they end; the served rate is of what ended within its time.
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.percentiles import summarize_sample
from dynosim.metrics.report import MS_PER_S, Latencies, Sla, meets_sla, per_second
from dynosim.metrics.saturation import judge_saturation
from dynosim.records import FloatArray, IntArray, RequestLog, RequestStatus, RunResult

WINDOWS_MAX = 10_000
BoolArray = NDArray[np.bool_]


class RunPart(NamedTuple):
    """A part of a run's time, and the requests that belong to it."""

    start_ms: float
    end_ms: float
    requests: BoolArray  # (n,)
    offered_rps: float | None = None  # as the load says; None: as many as came


def stage_parts(
    windows_s: Iterable[tuple[float, float, float]], stages: IntArray, *, from_ms: float = 0.0
) -> list[RunPart]:
    """A part for each load stage: its start, end and rate; `stages` tells each request's.

    The run's clock is 0 at `from_ms` of the load's.
    """
    return [
        RunPart(start_s * MS_PER_S - from_ms, end_s * MS_PER_S - from_ms, stages == place, rate_rps)
        for place, (start_s, end_s, rate_rps) in enumerate(windows_s)
    ]


def window_parts(log: RequestLog, length_ms: float) -> list[RunPart]:
    """A part for each window of that length, from 0 to the last arrival; at most WINDOWS_MAX.

    Raises: ValueError for more.
    """
    came = ~np.isnan(log.arrival_ms)
    last_ms = float(log.arrival_ms[came].max()) if came.any() else 0.0
    count = max(1, ceil((last_ms + 1e-9) / length_ms))
    if count > WINDOWS_MAX:
        raise ValueError(f"{count} windows are too many, at most {WINDOWS_MAX}")
    places = np.where(came, np.nan_to_num(log.arrival_ms) // length_ms, -1)
    return [
        RunPart(place * length_ms, (place + 1) * length_ms, places == place)
        for place in range(count)
    ]


def part_rows(result: RunResult, parts: Iterable[RunPart], sla: Sla | None) -> list[dict[str, Any]]:
    """A row for each part, ready for JSON."""
    log = result.requests
    latencies = Latencies.of(log)
    good = None if sla is None else meets_sla(latencies, _completed(log), sla)
    return [_row(result, part, latencies, good) for part in parts]


def _row(
    result: RunResult, part: RunPart, latencies: Latencies, good: BoolArray | None
) -> dict[str, Any]:
    log, mine = result.requests, part.requests & ~np.isnan(result.requests.arrival_ms)
    served = mine & _completed(log)
    length_ms = part.end_ms - part.start_ms
    ended = _completed(log) & (log.finish_ms >= part.start_ms) & (log.finish_ms < part.end_ms)
    num_came = int(mine.sum())
    gaps = int((log.output_tokens[served] - 1).sum())
    decoding_ms = float((log.finish_ms - log.first_token_ms)[served].sum())
    verdict = judge_saturation(replace(result, requests=rows_of(log, np.flatnonzero(mine))))
    ttft = summarize_sample(latencies.ttft_ms[served]).statistics
    e2e = summarize_sample(latencies.e2e_ms[served]).statistics
    return {
        "start_s": part.start_ms / MS_PER_S,
        "end_s": part.end_ms / MS_PER_S,
        "num_requests": num_came,
        "completed_requests": int(served.sum()),
        "timed_out_requests": int((mine & (log.status == RequestStatus.TIMED_OUT)).sum()),
        "offered_rps": part.offered_rps or per_second(num_came, length_ms),
        "served_rps": per_second(int(ended.sum()), length_ms),
        "output_throughput_tok_s": per_second(int(log.output_tokens[ended].sum()), length_ms),
        **{f"{name}_ttft_ms": ttft[name] for name in STATISTICS},
        "mean_itl_ms": decoding_ms / gaps if gaps else None,
        **{f"{name}_e2e_latency_ms": e2e[name] for name in STATISTICS},
        "sla_attainment": None if good is None or not num_came else float(good[mine].mean()),
        "saturated": verdict.is_saturated,
    }


STATISTICS = ("mean", "p90", "p99")
"""Of latencies, in each row."""


def rows_of(log: RequestLog, rows: IntArray) -> RequestLog:
    """The log of some requests, numbered anew; reasons of refusals are left out."""
    taken: dict[str, Any] = {"errors": {}}
    for column in fields(log):
        values: FloatArray | IntArray | None = getattr(log, column.name)
        if column.name not in ("errors", "handoffs", "onboards") and values is not None:
            taken[column.name] = values[rows]
    if log.handoffs is not None:
        taken["handoffs"] = log.handoffs.take(rows)
    if log.onboards is not None:
        taken["onboards"] = log.onboards.take(rows)
    return replace(log, **taken)


def _completed(log: RequestLog) -> BoolArray:
    return np.asarray(log.status == RequestStatus.COMPLETED)
