"""A finished run in plain Python: requests with every token's time, steps, and the step log.

Times of single tokens come from `naive_serving`, which served the requests again step by step. The
times that the run wrote down itself take the place of equal ones, so that comparisons at a border
(an SLA bound, a window's end) are made with the same floats on both sides.
"""

import math
from dataclasses import dataclass

from naive_serving import Served, Step

from dynosim.records import RequestStatus, RoutingStats, RunResult, Trace, WorkerLog


@dataclass
class Request:
    """What became of one request; None where a time does not exist."""

    index: int
    request_id: str
    session_id: str | None
    arrival_ms: float | None
    dispatch_ms: float | None
    scheduled_ms: float | None
    token_ms: list[float]  # of every token it got
    finish_ms: float | None
    input_tokens: int
    cached_tokens: int
    worker: int | None
    preemptions: int
    migrations: int
    status: str
    error: str | None
    is_timed: bool  # brought by the trace's clock
    overlap_blocks: float  # believed to be cached by the router
    queued_ms: float  # waited in the router

    @property
    def is_completed(self) -> bool:
        return self.status == "completed"

    @property
    def first_ms(self) -> float | None:
        return self.token_ms[0] if self.token_ms else None


@dataclass
class Worker:
    """A worker and when it was there; one without an end is there at the end of the run."""

    gpus: int
    usable_blocks: int
    launched_ms: float
    ready_ms: float | None
    ended_ms: float | None

    def lived_ms(self, start_ms: float, end_ms: float) -> float:
        """How long it was there between two times."""
        until_ms = end_ms if self.ended_ms is None else min(self.ended_ms, end_ms)
        return max(0.0, until_ms - max(self.launched_ms, start_ms))


@dataclass
class Row:
    """A row of the step log."""

    worker: int
    start_ms: float
    duration_ms: float
    num_steps: int
    num_prefills: int
    prefill_tokens: int
    prefix_tokens: int
    num_decodes: int
    context_tokens: int
    running: int
    waiting: int
    used_blocks: int

    @property
    def end_ms(self) -> float:
        return self.start_ms + self.duration_ms


@dataclass
class Run:
    """All that figures are made of."""

    requests: list[Request]
    steps: list[Step]
    rows: list[Row]
    workers: list[Worker]
    block_size: int
    end_ms: float
    routing: RoutingStats | None

    @property
    def completed(self) -> list[Request]:
        return [request for request in self.requests if request.is_completed]


def plain_run(result: RunResult, trace: Trace, served: Served) -> Run:
    """The run in plain Python."""
    steps = result.steps
    columns = [getattr(steps, name).tolist() for name in steps.__slots__]
    return Run(
        requests=[_request(index, result, trace, served) for index in range(len(trace))],
        steps=served.steps,
        rows=[Row(*values) for values in zip(*columns, strict=True)],
        workers=[_worker(result.workers, index) for index in range(len(result.workers))],
        block_size=result.block_size,
        end_ms=result.end_ms,
        routing=result.routing,
    )


def _worker(log: WorkerLog, index: int) -> Worker:
    return Worker(
        gpus=int(log.gpus[index]),
        usable_blocks=int(log.usable_blocks[index]),
        launched_ms=float(log.launched_ms[index]),
        ready_ms=known(log.ready_ms[index]),
        ended_ms=known(log.ended_ms[index]),
    )


def _request(index: int, result: RunResult, trace: Trace, served: Served) -> Request:
    log, routing = result.requests, result.routing
    worker = int(log.worker_id[index])
    return Request(
        index=index,
        request_id=str(index) if trace.request_ids is None else trace.request_ids[index],
        session_id=None if trace.session_ids is None else trace.session_ids[index],
        arrival_ms=known(log.arrival_ms[index]),
        dispatch_ms=known(log.dispatch_ms[index]),
        scheduled_ms=known(log.scheduled_ms[index]),
        token_ms=_token_ms(index, result, served),
        finish_ms=known(log.finish_ms[index]),
        input_tokens=int(trace.input_tokens[index]),
        cached_tokens=int(log.cached_tokens[index]),
        worker=None if worker < 0 else worker,
        preemptions=int(log.preemptions[index]),
        migrations=int(log.migrations[index]),
        status=RequestStatus(int(log.status[index])).name.lower(),
        error=log.errors.get(index),
        is_timed=log.is_timed is None or bool(log.is_timed[index]),
        overlap_blocks=0.0 if routing is None else float(routing.overlap_blocks[index]),
        queued_ms=0.0 if routing is None else float(routing.queued_ms[index]),
    )


def _token_ms(index: int, result: RunResult, served: Served) -> list[float]:
    """Times of all tokens; those that the run wrote down in the run's own floats."""
    log = result.requests
    times = list(served.token_ms.get(index, []))
    if len(times) > 1:
        times[1] = float(log.second_token_ms[index])
    if times and index in served.finished:
        times[-1] = float(log.finish_ms[index])
    if times:
        times[0] = float(log.first_token_ms[index])
    return times


def known(value: float) -> float | None:
    """The value, None for NaN."""
    return None if math.isnan(value) else float(value)
