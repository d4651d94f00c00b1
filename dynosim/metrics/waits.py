"""What a request waited for before its first token: read from the logs of requests and steps.

Exact where the run kept chunks of prompts (`RunResult.trail`): one ahead counts as a whole, also
if its step began before. Without them a prompt counts as computed evenly between its first step
and its first token.
"""

from dataclasses import dataclass
from math import isnan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.handoffs import prefill_time_ms
from dynosim.records import FloatArray, IntArray, RequestLog, RunResult, StepLog

BoolArray = NDArray[np.bool_]


class Ahead(NamedTuple):
    """A prompt that was computed while a request waited."""

    request: int  # index
    num_tokens: int  # computed in the steps of that time
    during_ms: float  # of the steps that did


@dataclass(frozen=True, slots=True)
class Wait:
    """The parts of the time to a request's first token, in ms: they add up to `ttft_ms`.

    The worker's queue is told by the steps that went by: `behind_prefill_ms` in those that computed
    prompts; of the others `seat_ms` where all seats were taken, else `blocks_ms`, since then KV
    blocks are all that can be missing; `step_ms` until the end of the step under way at first.
    """

    request: int  # index
    worker_id: int
    ttft_ms: float
    outside_ms: float  # on the way to an engine
    router_ms: float  # queued in the router
    behind_prefill_ms: float
    seat_ms: float
    blocks_ms: float
    step_ms: float
    prefill_ms: float  # from its first step on, to the end of its prompt
    prefill_tokens: int  # of its prompt, that were not cached
    cached_tokens: int
    ahead: tuple[Ahead, ...]  # most tokens first
    idle_workers: tuple[int, ...]  # had no request when this one was placed
    handoff_ms: float = 0.0  # from there on, to a decode worker's first token
    decode_worker_id: int | None = None  # to whom its KV went

    @property
    def queue_ms(self) -> float:
        """In the worker's queue."""
        return self.behind_prefill_ms + self.seat_ms + self.blocks_ms + self.step_ms


class Spans(NamedTuple):
    """Parts of prompts with the time in which each was computed, by worker and start."""

    request: IntArray
    worker_id: IntArray
    start_ms: FloatArray
    end_ms: FloatArray
    num_tokens: IntArray


class Waits:
    """Answers for the requests of one run."""

    def __init__(self, result: RunResult) -> None:
        self._log = result.requests
        self._queued_ms = None if result.routing is None else result.routing.queued_ms
        self._seats = result.workers.seats
        self._ready_ms = result.workers.ready_ms
        self._ended_ms = result.workers.ended_ms
        self._roles = np.array(result.workers.role)
        self._worker_id = first_worker_id(result.requests)
        self._prefill_ms = prefill_time_ms(result.requests)
        self._left_ms = _left_first_ms(result.requests)
        self.rows = WorkerRows(result.steps)
        self._spans = _spans(result)
        self._is_even = result.trail is None
        starts = np.arange(len(result.workers) + 1)
        self._span_starts = np.searchsorted(self._spans.worker_id, starts)

    def of(self, index: int) -> Wait | None:
        """What the request of this index waited for; None if it has no first token."""
        log = self._log
        worker_id = int(self._worker_id[index])
        first_ms = float(log.first_token_ms[index])
        if worker_id < 0 or isnan(first_ms):
            return None
        arrival_ms, dispatch_ms = float(log.arrival_ms[index]), float(log.dispatch_ms[index])
        scheduled_ms = float(log.scheduled_ms[index])
        router_ms = 0.0 if self._queued_ms is None else float(self._queued_ms[index])
        queue_ms = scheduled_ms - dispatch_ms
        steps = self.rows.between(worker_id, dispatch_ms, scheduled_ms)
        behind_ms, seat_ms, blocks_ms = self._parts(steps, dispatch_ms, scheduled_ms)
        cached = int(log.cached_tokens[index])
        return Wait(
            request=index,
            worker_id=worker_id,
            ttft_ms=first_ms - arrival_ms,
            outside_ms=max(dispatch_ms - arrival_ms - router_ms, 0.0),
            router_ms=router_ms,
            behind_prefill_ms=behind_ms,
            seat_ms=seat_ms,
            blocks_ms=blocks_ms,
            step_ms=max(queue_ms - behind_ms - seat_ms - blocks_ms, 0.0),
            prefill_ms=float(self._prefill_ms[index]),
            prefill_tokens=int(log.input_tokens[index]) - cached,
            cached_tokens=cached,
            ahead=self._ahead(index, worker_id, dispatch_ms, scheduled_ms),
            idle_workers=tuple(np.flatnonzero(self._is_idle(index, dispatch_ms)).tolist()),
            handoff_ms=max(first_ms - scheduled_ms - float(self._prefill_ms[index]), 0.0),
            decode_worker_id=None
            if worker_id == log.worker_id[index]
            else int(log.worker_id[index]),
        )

    def _parts(
        self, steps: IntArray, from_ms: float, until_ms: float
    ) -> tuple[float, float, float]:
        """Of a time in a queue, that behind prompts, that without a seat, that without blocks.

        A step that was under way at its beginning could not have taken anybody.
        """
        log = self.rows.steps
        start_ms, duration_ms = log.start_ms[steps], log.duration_ms[steps]
        inside_ms = np.minimum(start_ms + duration_ms, until_ms) - np.maximum(start_ms, from_ms)
        has_prefill = log.num_prefills[steps] > 0
        one_ms = duration_ms / log.num_steps[steps]
        under_way = start_ms < from_ms
        blocked_ms = np.where(under_way, np.maximum(inside_ms - one_ms, 0.0), inside_ms)
        is_full = log.num_running[steps] >= self._seats[log.worker_id[steps]]
        return (
            float(inside_ms[has_prefill].sum()),
            float(blocked_ms[~has_prefill & is_full].sum()),
            float(blocked_ms[~has_prefill & ~is_full].sum()),
        )

    def _ahead(
        self, index: int, worker_id: int, from_ms: float, until_ms: float
    ) -> tuple[Ahead, ...]:
        """The prompts computed on a worker in that time, with their tokens."""
        spans = self._spans
        mine = slice(self._span_starts[worker_id], self._span_starts[worker_id + 1])
        start_ms, end_ms = spans.start_ms[mine], spans.end_ms[mine]
        inside_ms = np.minimum(end_ms, until_ms) - np.maximum(start_ms, from_ms)
        found: dict[int, tuple[float, float]] = {}
        for row in np.flatnonzero((inside_ms > 0) & (spans.request[mine] != index)).tolist():
            share = inside_ms[row] / (end_ms[row] - start_ms[row]) if self._is_even else 1.0
            request = int(spans.request[mine][row])
            tokens, during_ms = found.get(request, (0.0, 0.0))
            tokens += share * float(spans.num_tokens[mine][row])
            found[request] = (tokens, during_ms + float(inside_ms[row]))
        ahead = [Ahead(request, round(n), ms) for request, (n, ms) in found.items() if round(n)]
        return tuple(sorted(ahead, key=lambda one: (-one.num_tokens, one.request)))

    def _is_idle(self, index: int, at_ms: float) -> BoolArray:
        """By worker whether it was there and had no request when this one was placed."""
        log = self._log
        placed_before = (log.dispatch_ms < at_ms) | (
            (log.dispatch_ms == at_ms) & (np.arange(len(log.dispatch_ms)) < index)
        )
        ours = self._worker_id
        is_open = placed_before & ~(self._left_ms <= at_ms) & (ours >= 0)
        load = np.bincount(ours[is_open], minlength=len(self._ready_ms))
        is_there = (self._ready_ms <= at_ms) & ~(self._ended_ms <= at_ms)
        idle: BoolArray = (load == 0) & is_there & (self._roles == self._roles[ours[index]])
        return idle


class WorkerRows:
    """The step log by worker."""

    def __init__(self, steps: StepLog) -> None:
        self.steps = steps
        self._order = np.lexsort((steps.start_ms, steps.worker_id))
        self._worker = steps.worker_id[self._order]
        self._start_ms = steps.start_ms[self._order]

    def of(self, worker_id: int) -> IntArray:
        """The rows of a worker, in order of time."""
        low, high = np.searchsorted(self._worker, (worker_id, worker_id + 1))
        rows: IntArray = self._order[low:high]
        return rows

    def between(self, worker_id: int, from_ms: float, until_ms: float) -> IntArray:
        """Those that have a part in a time, in order."""
        low, high = np.searchsorted(self._worker, (worker_id, worker_id + 1)).tolist()
        starts = self._start_ms[low:high]
        first = low + max(int(np.searchsorted(starts, from_ms, side="right")) - 1, 0)
        last = low + int(np.searchsorted(starts, until_ms, side="left"))
        rows: IntArray = self._order[first:last]
        ends_ms = self.steps.start_ms[rows] + self.steps.duration_ms[rows]
        return rows[ends_ms > from_ms]


def slowest(log: RequestLog, count: int) -> list[int]:
    """Indices of the requests whose first token came last after their arrival, slowest first."""
    ttft_ms = log.first_token_ms - log.arrival_ms
    order = np.argsort(-np.nan_to_num(ttft_ms, nan=-1.0), kind="stable")[:count]
    return [index for index in order.tolist() if not isnan(ttft_ms[index])]


def first_worker_id(log: RequestLog) -> IntArray:
    """The worker that computed each prompt; the last that did, -1 if none."""
    if log.handoffs is None:
        return log.worker_id
    ours = log.handoffs.prefill_worker_id
    return np.where(ours >= 0, ours, log.worker_id)


def _left_first_ms(log: RequestLog) -> FloatArray:
    """When a request was done with that worker."""
    if log.handoffs is None:
        return log.finish_ms
    has_moved = log.handoffs.prefill_worker_id >= 0
    return np.where(has_moved, log.handoffs.prefill_end_ms, log.finish_ms)


def _spans(result: RunResult) -> Spans:
    log, trail = result.requests, result.trail
    if trail is not None:
        chunks = trail.chunks
        return _sorted_spans(
            chunks.request, chunks.worker_id, chunks.start_ms, chunks.end_ms, chunks.num_tokens
        )
    rows = np.flatnonzero(~np.isnan(log.first_token_ms))
    tokens = log.input_tokens[rows] - log.cached_tokens[rows]
    start_ms = log.scheduled_ms[rows]
    end_ms = start_ms + prefill_time_ms(log)[rows]
    return _sorted_spans(rows, first_worker_id(log)[rows], start_ms, end_ms, tokens)


def _sorted_spans(
    request: IntArray,
    worker_id: IntArray,
    start_ms: FloatArray,
    end_ms: FloatArray,
    num_tokens: IntArray,
) -> Spans:
    order = np.lexsort((start_ms, worker_id))
    return Spans(
        request[order], worker_id[order], start_ms[order], end_ms[order], num_tokens[order]
    )
