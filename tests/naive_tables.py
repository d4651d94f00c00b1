"""The tables of a run computed a second time, plainly: requests, and workers over time.

`requests.parquet` is a row per request. `timeline.parquet` is a row per worker and interval, made
from the step log: a row of the log counts in each interval for the share of its time it spends
there.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from naive_latencies import e2e_ms, tpot_ms, ttft_ms
from naive_run import Request, Row, Run, Worker

Record = dict[str, Any]


def request_rows(run: Run) -> list[Record]:
    """One record per request, in the trace's order."""
    return [_record(request, run) for request in run.requests]


def _record(request: Request, run: Run) -> Record:
    rank = None if request.worker is None else 0  # workers of these runs have one each
    hit_rate = None
    if run.routing is not None and request.dispatch_ms is not None:
        believed = round(request.overlap_blocks * run.block_size)
        hit_rate = min(1.0, believed / request.input_tokens)
    return {
        "request_id": request.request_id,
        "session_id": request.session_id,
        "arrival_ms": request.arrival_ms,
        "dispatch_ms": request.dispatch_ms,
        "first_token_ms": request.first_ms,
        "finish_ms": request.finish_ms,
        "input_tokens": request.input_tokens,
        "output_tokens": len(request.token_ms),
        "cached_tokens": request.cached_tokens,
        "prefill_worker_id": request.worker,
        "decode_worker_id": request.worker,
        "prefill_wait_time_ms": between(request.arrival_ms, request.scheduled_ms),
        "prefill_time_ms": between(request.scheduled_ms, request.first_ms),
        "transfer_ms": None,
        "handoff_ms": None,
        "onboarded_tokens": None,
        "onboard_ms": None,
        "ttft_ms": ttft_ms(request),
        "itl_mean_ms": tpot_ms(request),
        "tpot_ms": tpot_ms(request),
        "e2e_ms": e2e_ms(request),
        "preemptions": request.preemptions,
        "migrations": request.migrations,
        "status": request.status,
        "error": request.error,
        "prefill_dp_rank": rank,
        "decode_dp_rank": rank,
        "kv_hit_rate": hit_rate,
        "total_time_ms": e2e_ms(request),
    }


def between(earlier_ms: float | None, later_ms: float | None) -> float | None:
    """From one time to another, if both exist."""
    return None if earlier_ms is None or later_ms is None else later_ms - earlier_ms


def round_interval_ms(end_ms: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50, ... ms of which 300 cover the run."""
    scale = 1.0
    while True:
        for factor in (1.0, 2.0, 5.0):
            if 300 * factor * scale >= end_ms:
                return factor * scale
        scale *= 10


@dataclass
class Cell:
    """Sums over one worker's interval: times in ms, levels as level times ms."""

    start_ms: float
    length_ms: float
    busy_ms: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    blocks: float = 0.0
    batch: float = 0.0
    steps: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    admitted: list[Request] = field(default_factory=list)


def timeline_rows(run: Run) -> list[Record]:
    """One record per worker and interval, workers in order, time ascending."""
    interval_ms = round_interval_ms(run.end_ms)
    count = max(1, math.ceil(run.end_ms / interval_ms))
    last_ms = run.end_ms - (count - 1) * interval_ms  # the last interval ends with the run
    lengths_ms = [interval_ms] * (count - 1) + [last_ms if last_ms > 0 else interval_ms]
    cells = [
        [Cell(number * interval_ms, lengths_ms[number]) for number in range(count)]
        for _ in run.workers
    ]
    for row in run.rows:
        _spread(row, cells[row.worker], interval_ms)
    for request in run.requests:
        if request.worker is not None:
            _count(request, cells[request.worker], interval_ms)
    return [
        _told(worker, cell, run.workers[worker])
        for worker, of_worker in enumerate(cells)
        for cell in of_worker
    ]


def _number(time_ms: float, cells: list[Cell], interval_ms: float) -> int:
    """The interval that a time is in; the last one takes its end too."""
    return min(int(time_ms / interval_ms), len(cells) - 1)


def _spread(row: Row, cells: list[Cell], interval_ms: float) -> None:
    """Count a row in each interval for the share of its time that it spends there."""
    first, last = (_number(ms, cells, interval_ms) for ms in (row.start_ms, row.end_ms))
    for number in range(first, last + 1):
        cell = cells[number]
        until_ms = row.end_ms if number == last else (number + 1) * interval_ms
        spent_ms = max(0.0, until_ms - max(row.start_ms, cell.start_ms))
        share = spent_ms / row.duration_ms if row.duration_ms > 0 else 1.0
        cell.busy_ms += spent_ms
        cell.running += spent_ms * row.running
        cell.waiting += spent_ms * row.waiting
        cell.blocks += spent_ms * row.used_blocks
        cell.batch += spent_ms * (row.num_decodes + row.num_prefills)
        cell.steps += share * row.num_steps
        cell.prompt_tokens += share * row.prefill_tokens
        cell.output_tokens += share * row.num_decodes * row.num_steps


def _count(request: Request, cells: list[Cell], interval_ms: float) -> None:
    """Count a request where it was scheduled, its first token where that came."""
    if request.scheduled_ms is not None:
        cells[_number(request.scheduled_ms, cells, interval_ms)].admitted.append(request)
    if request.first_ms is not None:
        cells[_number(request.first_ms, cells, interval_ms)].output_tokens += 1


def _told(number: int, cell: Cell, worker: Worker) -> Record:
    """Levels are means over the time that the worker was there, in which it may have been idle."""
    lived_ms = worker.lived_ms(cell.start_ms, cell.start_ms + cell.length_ms)

    def mean(level: float) -> float | None:
        return level / lived_ms if lived_ms > 0 else None

    return {
        "worker_id": number,
        "start_ms": cell.start_ms,
        "interval_ms": cell.length_ms,
        "busy_share": mean(cell.busy_ms),
        "steps": cell.steps,
        "mean_batch": cell.batch / cell.busy_ms if cell.busy_ms > 0 else None,
        "running": mean(cell.running),
        "waiting": mean(cell.waiting),
        "kv_blocks_used": mean(cell.blocks),
        "kv_used_share": mean(cell.blocks / worker.usable_blocks),
        "onboarding": mean(0.0),
        "prefill_tokens": cell.prompt_tokens,
        "output_tokens": cell.output_tokens,
        "admitted": len(cell.admitted),
        "admitted_input_tokens": sum(request.input_tokens for request in cell.admitted),
        "admitted_cached_tokens": sum(request.cached_tokens for request in cell.admitted),
    }
