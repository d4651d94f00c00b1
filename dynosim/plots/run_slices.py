"""The life of requests and workers as slices of time on tracks, for traces of runs.

Requests that are somewhere at once lie on tracks of their own, reused when free. Times are whole
nanoseconds, so that what lies inside another slice stays inside whatever reads it.
"""

from heapq import heappush, heapreplace
from typing import NamedTuple

import numpy as np

from dynosim.metrics.story import egress_ms
from dynosim.records import ChunkLog, FloatArray, IntArray, OnboardLog, RequestTrail, RunResult

FRONTEND_PID = 1
FIRST_WORKER_PID = 2
STEPS_TID = 1
QUEUE_TID, SEAT_TID = 100, 100_000  # the first track of each
_NS_PER_MS = 1e6
_LEAST_NS = 1000  # of a slice that an arrow must find

# Kinds of events, in the order in which they must stand at one time: what lies inside comes later.
ROUTED, WAITED, LOADED, SEATED, PREFILLED, DECODED, STEPPED, ARROW, COUNTED = range(9)


class Slices(NamedTuple):
    """Columns of slices: where, from when until when, of what kind, and which item of its log."""

    pid: IntArray
    tid: IntArray
    start_ns: IntArray
    end_ns: IntArray
    kind: IntArray
    item: IntArray  # request, chunk or row of steps


class Periods(NamedTuple):
    """Columns of seats: whose, where, since when it waited, from when and until when it had it."""

    request: IntArray
    worker_id: IntArray
    since_ms: FloatArray
    at_ms: FloatArray
    until_ms: FloatArray


def slices_of(result: RunResult) -> Slices:
    """All slices of a run. Raises: ValueError if it kept no trail."""
    if result.trail is None:
        raise ValueError("a trace of a run needs its trail")
    periods = _periods(result, result.trail)
    seats = _laid_out(
        FIRST_WORKER_PID + periods.worker_id,
        SEAT_TID,
        (to_ns(periods.at_ms), to_ns(periods.until_ms)),
        SEATED,
        periods.request,
    )
    prefills, decodes = _inside_seats(result, result.trail.chunks, periods, seats.tid)
    waits, loads = _waited(periods, result.requests.onboards)
    parts = (_routed(result), waits, loads, seats, prefills, decodes, _steps(result))
    return Slices(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def to_ns(times_ms: FloatArray) -> IntArray:
    """Milliseconds as whole nanoseconds."""
    rounded: IntArray = np.rint(times_ms * _NS_PER_MS).astype(np.int64)
    return rounded


def _routed(result: RunResult) -> Slices:
    """From arrival until a worker has it; what was refused is seen, too."""
    log = result.requests
    index = np.flatnonzero(~np.isnan(log.arrival_ms))
    start_ns = to_ns(log.arrival_ms[index])
    placed_ms = np.where(np.isnan(log.dispatch_ms), log.arrival_ms, log.dispatch_ms)[index]
    end_ns = np.maximum(to_ns(placed_ms), start_ns + _LEAST_NS)
    pid = np.full(len(index), FRONTEND_PID)
    return _laid_out(pid, 1, (start_ns, end_ns), ROUTED, index)


def _periods(result: RunResult, trail: RequestTrail) -> Periods:
    """All seats; a preempted request has several, and waits for each."""
    seats, log = trail.seats, result.requests
    late_ms = egress_ms(log, trail.chunks)
    ended_ms = np.where(np.isnan(log.finish_ms), result.end_ms, log.finish_ms - late_ms)
    order = np.lexsort((seats.at_ms, seats.request))
    request, at_ms, is_taken = seats.request[order], seats.at_ms[order], seats.is_taken[order]
    goes_on = np.append(request[1:] == request[:-1], False)[: len(order)]
    follows = np.append(False, goes_on)[: len(order)]
    until_ms = np.where(goes_on, np.roll(at_ms, -1), ended_ms[request])
    since_ms = np.where(follows, np.roll(at_ms, 1), log.dispatch_ms[request])
    taken = np.flatnonzero(is_taken)
    return Periods(
        request[taken],
        seats.worker_id[order][taken],
        since_ms[taken],
        at_ms[taken],
        np.maximum(until_ms, at_ms)[taken],
    )


def _waited(periods: Periods, onboards: OnboardLog | None) -> tuple[Slices, Slices]:
    """The waits for seats, and inside them the loads of what prompts had in slower memory."""
    since_ns, at_ns = to_ns(periods.since_ms), to_ns(periods.at_ms)
    rows = np.flatnonzero(at_ns > since_ns)
    pid = FIRST_WORKER_PID + periods.worker_id[rows]
    request = periods.request[rows]
    waits = _laid_out(pid, QUEUE_TID, (since_ns[rows], at_ns[rows]), WAITED, request)
    if onboards is None:
        return waits, Slices(*[column[:0] for column in waits])
    begin_ms, end_ms = onboards.start_ms[request], onboards.end_ms[request]
    # Of several waits of a request one has the load; of one that was lost, none: NaN.
    is_in_it = (periods.since_ms[rows] <= begin_ms) & (end_ms <= periods.at_ms[rows])
    inside = np.flatnonzero(is_in_it & (end_ms > begin_ms))
    begin_ns, end_ns = to_ns(begin_ms[inside]), to_ns(end_ms[inside])
    kind = np.full(len(inside), LOADED)
    return waits, Slices(pid[inside], waits.tid[inside], begin_ns, end_ns, kind, request[inside])


def _inside_seats(
    result: RunResult, chunks: ChunkLog, periods: Periods, tid: IntArray
) -> tuple[Slices, Slices]:
    """The chunks of prompts on the tracks of their requests' seats, and the decoding after them."""
    seat_of = _seat_of(chunks, periods)
    pid = FIRST_WORKER_PID + periods.worker_id
    until_ns = to_ns(periods.until_ms)
    rows = np.lexsort((chunks.start_ms, chunks.request))
    seat = seat_of[rows]
    end_ns = np.minimum(to_ns(chunks.end_ms[rows]), until_ns[seat])
    kind = np.full(len(rows), PREFILLED)
    prefills = Slices(pid[seat], tid[seat], to_ns(chunks.start_ms[rows]), end_ns, kind, rows)
    begin_ns = to_ns(periods.at_ms)
    computed = np.zeros(len(pid), np.int64)
    begin_ns[seat] = end_ns  # the last of each seat stays
    computed[seat] = (chunks.num_computed_before + chunks.num_tokens)[rows]
    # A seat without chunks is that of one who lost it with a single token to compute anew.
    is_ready = (computed >= result.requests.input_tokens[periods.request]) | (computed == 0)
    rows = np.flatnonzero(is_ready & (until_ns > begin_ns))
    decodes = Slices(
        pid[rows],
        tid[rows],
        begin_ns[rows],
        until_ns[rows],
        np.full(len(rows), DECODED),
        periods.request[rows],
    )
    return prefills, decodes


def _seat_of(chunks: ChunkLog, periods: Periods) -> IntArray:
    """By chunk the seat in which it was computed: the last that its request took before."""
    num_seats = len(periods.request)
    request = np.concatenate((periods.request, chunks.request))
    at_ms = np.concatenate((periods.at_ms, chunks.start_ms))
    is_chunk = np.arange(len(request)) >= num_seats
    order = np.lexsort((is_chunk, at_ms, request))
    is_chunk = is_chunk[order]
    last_seat = order[np.maximum.accumulate(np.where(is_chunk, 0, np.arange(len(order))))]
    seat_of = np.zeros(len(chunks.request), np.int64)
    seat_of[order[is_chunk] - num_seats] = last_seat[is_chunk]
    return seat_of


def _steps(result: RunResult) -> Slices:
    """The steps of workers, runs of equal ones as one; rounding makes none overlap the next."""
    steps = result.steps
    order = np.lexsort((steps.start_ms, steps.worker_id))
    worker = steps.worker_id[order]
    start_ns = to_ns(steps.start_ms[order])
    end_ns = to_ns(steps.start_ms[order] + steps.duration_ms[order])
    is_same = worker[1:] == worker[:-1]
    end_ns[:-1][is_same] = np.minimum(end_ns[:-1], start_ns[1:])[is_same]
    pid, tid = FIRST_WORKER_PID + worker, np.full(len(order), STEPS_TID)
    return Slices(pid, tid, start_ns, end_ns, np.full(len(order), STEPPED), order)


def _laid_out(
    pid: IntArray, first_tid: int, times_ns: tuple[IntArray, IntArray], kind: int, item: IntArray
) -> Slices:
    """Slices from and until `times_ns` on as many tracks as it takes for none to overlap."""
    start_ns, end_ns = times_ns
    order = np.lexsort((item, end_ns, start_ns, pid))
    lanes = np.zeros(len(order), np.int64)
    free: list[tuple[int, int]] = []  # when each track of the process is free again
    last_pid = -1
    columns = (pid[order].tolist(), start_ns[order].tolist(), end_ns[order].tolist())
    for place, own_pid, start, end in zip(order.tolist(), *columns, strict=True):
        if own_pid != last_pid:
            free, last_pid = [], own_pid
        if free and free[0][0] <= start:
            lane = free[0][1]
            heapreplace(free, (end, lane))
        else:
            lane = len(free)
            heappush(free, (end, lane))
        lanes[place] = lane
    return Slices(pid, first_tid + lanes, start_ns, end_ns, np.full(len(order), kind), item)
