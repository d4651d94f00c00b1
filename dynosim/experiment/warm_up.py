"""Warm-up: the first requests of a run are served like all others and left out of its results."""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynosim.errors import ConfigError
from dynosim.metrics.parts import rows_of
from dynosim.records import (
    FloatArray,
    IntArray,
    RequestLog,
    RequestTrail,
    RunResult,
    StartupLog,
    StepLog,
    Trace,
    WorkerLog,
)

if TYPE_CHECKING:
    from dynosim.config.schema import RunConfig
    from dynosim.config.workload import WorkloadConfig

MS_PER_S = 1000.0
_TIMES = ("dispatch_ms", "scheduled_ms", "first_token_ms", "second_token_ms", "finish_ms")


class MeasuredRun(NamedTuple):
    """What of a run counts, on a clock that is 0 at `from_ms` of the load's."""

    result: RunResult
    trace: Trace
    from_ms: float


def measured_run(result: RunResult, trace: Trace, workload: "WorkloadConfig") -> MeasuredRun:
    """The run from the end of its warm-up on: its requests, and the steps that began since.

    Raises: ConfigError if no request is left.
    """
    log, num_requests = result.requests, workload.warm_up_requests
    order = np.argsort(log.arrival_ms, kind="stable")  # what never came is last
    if num_requests:
        rows = np.sort(order[num_requests:])
        came_ms = log.arrival_ms[rows][~np.isnan(log.arrival_ms[rows])]
        from_ms = float(came_ms.min()) if len(came_ms) else np.nan
    else:
        from_ms = workload.warm_up_s * MS_PER_S
        rows = np.flatnonzero(~(log.arrival_ms < from_ms))
        came_ms = log.arrival_ms[rows][~np.isnan(log.arrival_ms[rows])]
    if not len(came_ms):
        key = "warm_up_requests" if num_requests else "warm_up_s"
        raise ConfigError(
            f"workload.{key}: {num_requests or workload.warm_up_s:,} leaves none of the "
            f"{len(log.status):,} requests (lower it, or send more)"
        )
    counted = result_of(result, rows, from_ms)
    return MeasuredRun(counted, trace.take(rows).at(trace.arrival_ms[rows] - from_ms), from_ms)


def result_of(result: RunResult, rows: IntArray, from_ms: float = 0.0) -> RunResult:
    """What a run says of some requests, numbered anew; steps, lives and times from `from_ms` on."""
    log = _moved(rows_of(result.requests, rows), from_ms)
    place = np.full(len(result.requests.status), -1)
    place[rows] = np.arange(len(rows))
    errors = {int(place[i]): why for i, why in result.requests.errors.items() if place[i] >= 0}
    routing, events, trail = result.routing, result.kv_events, result.trail
    if routing is not None:
        queued_ms = routing.queued_ms[rows]
        overlap_blocks, num_queued = routing.overlap_blocks[rows], int((queued_ms > 0).sum())
        routing = replace(
            routing, overlap_blocks=overlap_blocks, queued_ms=queued_ms, num_queued=num_queued
        )
    if events is not None:
        kept = events.time_ms >= from_ms
        events = replace(
            events,
            time_ms=events.time_ms[kept] - from_ms,
            worker_id=events.worker_id[kept],
            num_blocks=events.num_blocks[kept],
            tier=None if events.tier is None else events.tier[kept],
        )
    return replace(
        result,
        requests=replace(log, errors=errors),
        steps=_steps_since(result.steps, from_ms),
        workers=_lives_since(result.workers, from_ms),
        end_ms=result.end_ms - from_ms,
        num_preemptions=int(log.preemptions.sum()),
        routing=routing,
        kv_events=events,
        startups=None if result.startups is None else _startups_since(result.startups, from_ms),
        trail=None if trail is None else _trail_since(trail, place, from_ms),
    )


def _moved(log: RequestLog, from_ms: float) -> RequestLog:
    moved = {name: getattr(log, name) - from_ms for name in ("arrival_ms", *_TIMES)}
    gave_up = None if log.gave_up_ms is None else log.gave_up_ms - from_ms
    handoffs = None if log.handoffs is None else log.handoffs.later(-from_ms)
    onboards = None if log.onboards is None else log.onboards.later(-from_ms)
    return replace(log, **moved, gave_up_ms=gave_up, handoffs=handoffs, onboards=onboards)


def _steps_since(steps: StepLog, from_ms: float) -> StepLog:
    kept = steps.start_ms >= from_ms
    columns = {name: getattr(steps, name)[kept] for name in StepLog.__slots__}
    columns["start_ms"] = columns["start_ms"] - from_ms
    return StepLog(**columns)


def _lives_since(workers: WorkerLog, from_ms: float) -> WorkerLog:
    """Lives that began before are there from the start."""

    def later(times_ms: FloatArray) -> FloatArray:
        return np.maximum(times_ms - from_ms, 0.0)

    return replace(
        workers,
        launched_ms=later(workers.launched_ms),
        ready_ms=later(workers.ready_ms),
        ended_ms=later(workers.ended_ms),
    )


def _startups_since(startups: StartupLog, from_ms: float) -> StartupLog:
    """Those phases that were not over before."""
    kept = np.flatnonzero(~(startups.end_ms < from_ms))
    columns = {
        name: getattr(startups, name)[kept] for name in StartupLog.__slots__ if name != "phase"
    }
    columns["start_ms"] = np.maximum(columns["start_ms"] - from_ms, 0.0)
    columns["end_ms"] = columns["end_ms"] - from_ms
    return StartupLog(phase=tuple(startups.phase[row] for row in kept.tolist()), **columns)


def _trail_since(trail: RequestTrail, place: IntArray, from_ms: float) -> RequestTrail:
    chunks, seats = trail.chunks, trail.seats
    kept, sat = place[chunks.request] >= 0, place[seats.request] >= 0
    return RequestTrail(
        replace(
            chunks,
            request=place[chunks.request[kept]],
            worker_id=chunks.worker_id[kept],
            start_ms=chunks.start_ms[kept] - from_ms,
            end_ms=chunks.end_ms[kept] - from_ms,
            num_tokens=chunks.num_tokens[kept],
            num_computed_before=chunks.num_computed_before[kept],
        ),
        replace(
            seats,
            request=place[seats.request[sat]],
            worker_id=seats.worker_id[sat],
            at_ms=seats.at_ms[sat] - from_ms,
            is_taken=seats.is_taken[sat],
        ),
    )


def without_warm_up(config: "RunConfig") -> "RunConfig":
    """The same run with all of its requests in its results."""
    none = {"warm_up_requests": 0, "warm_up_s": 0.0}
    return config.model_copy(update={"workload": config.workload.model_copy(update=none)})
