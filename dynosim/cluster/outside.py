"""What requests spend outside engines: before a scheduler sees them, after a token is made.

Workers run on a clock that is 0 when the first request becomes visible to them. As every request
is delayed by the same amount, that clock differs from the clients' by a constant, which is added
once the run is over; only ends that cause arrivals need it earlier.
"""

from dataclasses import replace

import numpy as np

from dynosim.records import FloatArray, RequestTrail, RunResult, ScalingLog, WorkerLog


def as_clients_see(result: RunResult, *, ingress_ms: float, egress_ms: float) -> RunResult:
    """The run on the clients' clock: everything but arrivals is later, tokens by both delays."""
    log, steps = result.requests, result.steps
    both_ms = ingress_ms + egress_ms
    events = result.kv_events
    if events is not None:
        events = replace(events, time_ms=events.time_ms + ingress_ms)
    return replace(
        result,
        workers=_later(result.workers, ingress_ms),
        requests=replace(
            log,
            dispatch_ms=log.dispatch_ms + ingress_ms,
            scheduled_ms=log.scheduled_ms + ingress_ms,
            first_token_ms=log.first_token_ms + both_ms,
            second_token_ms=log.second_token_ms + both_ms,
            finish_ms=log.finish_ms + both_ms,
            handoffs=None if log.handoffs is None else log.handoffs.later(ingress_ms),
            onboards=None if log.onboards is None else log.onboards.later(ingress_ms),
            gave_up_ms=None if log.gave_up_ms is None else log.gave_up_ms + both_ms,
        ),
        steps=replace(steps, start_ms=steps.start_ms + ingress_ms),
        kv_events=events,
        scaling=None if result.scaling is None else _scaled_later(result.scaling, ingress_ms),
        startups=None if result.startups is None else result.startups.later(ingress_ms),
        trail=None if result.trail is None else _trail_later(result.trail, ingress_ms),
        end_ms=result.end_ms + both_ms,
    )


def _scaled_later(scaling: ScalingLog, delay_ms: float) -> ScalingLog:
    return replace(scaling, at_ms=scaling.at_ms + delay_ms)


def _trail_later(trail: RequestTrail, delay_ms: float) -> RequestTrail:
    chunks, seats = trail.chunks, trail.seats
    start_ms, end_ms = chunks.start_ms + delay_ms, chunks.end_ms + delay_ms
    return RequestTrail(
        replace(chunks, start_ms=start_ms, end_ms=end_ms),
        replace(seats, at_ms=seats.at_ms + delay_ms),
    )


def _later(workers: WorkerLog, delay_ms: float) -> WorkerLog:
    """Their lives; those of the run's start are there when the first client comes."""

    def later(times_ms: FloatArray) -> FloatArray:
        return np.where(times_ms > 0, times_ms + delay_ms, times_ms)

    return replace(
        workers,
        launched_ms=later(workers.launched_ms),
        ready_ms=later(workers.ready_ms),
        ended_ms=workers.ended_ms + delay_ms,
        draining_ms=None if workers.draining_ms is None else workers.draining_ms + delay_ms,
    )
