"""Whether a cluster kept up with the load it was offered.

A queue that is served slower than it fills grows: a request that arrives at time t waits about
t * (offered / sustained - 1). So the growth of the wait over the arrivals, not its size, tells
overload from a busy but stable run. The rule:

* The time of arrivals is cut into 20 equal slices; the growth is the median of the slopes between
  the mean waits of every two slices (Theil-Sen). A burst fills a slice or two, and a median does
  not follow them.
* The run is saturated when the wait grows by more than 1/0.95 - 1 ms per ms, that is when less than
  95 % of the offered load was served as it came, and at the last arrival at least 2 % of all
  requests were still waiting for their first step (a backlog that was worked off during the
  arrivals was sustained).
* A request that a cut-off left unscheduled has no known wait: it counts in the backlog, not in the
  growth.
* It is saturated, too, when more and more requests are in the system at once, waiting or not
  (`in_system`): batches that grow slow down whoever is in them long before anyone waits.
* Arrivals that fill fewer than six slices (all at once, a few bursts) have no rate to keep up with.
  Then the run is saturated when the median request waited longer than the arrivals lasted and
  longer than it took to serve: the backlog, not the work, makes its latency.
* Where clients give up, a queue cannot grow: the run is saturated when more than 2 % of the
  requests were given up.

Waiting is from arrival to the start of the first step that computes one of the request's tokens.
Requests that were rejected are not offered load. Requests that arrive because another one ended
(later turns of a session, a closed loop) slow down with the cluster, so only those that the trace's
clock brings are judged; a run without any, a closed loop, cannot be saturated.

What a cluster sustains is what its workers make while something waits for them (`load_of`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.in_system import growth_in_system, measuring_window
from dynosim.metrics.lives import lived_shares
from dynosim.metrics.percentiles import median
from dynosim.records import FloatArray, IntArray, RequestLog, RequestStatus, RunResult, StepLog

NUM_SLICES = 20
MIN_SLICES = 6
SUSTAINED_SHARE = 0.95
BACKLOG_SHARE = 0.02
MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class Saturation:
    """The verdict and what it rests on; None where the run has no such number."""

    is_saturated: bool
    reason: str
    wait_growth: float | None  # ms of waiting gained per ms of arrivals
    backlog_share: float | None  # of offered requests: unscheduled at the last arrival
    drain_ms: float | None  # last arrival to last completion
    more_in_system: float | None = None  # requests, at the end of the arrivals

    def report_keys(self) -> dict[str, object]:
        """The verdict under the report's key names."""
        return {
            "saturated": self.is_saturated,
            "saturation_reason": self.reason,
            "saturation_wait_growth": self.wait_growth,
            "saturation_backlog_share": self.backlog_share,
            "saturation_drain_ms": self.drain_ms,
            "saturation_more_in_system": self.more_in_system,
        }


@dataclass(frozen=True, slots=True)
class Load:
    """Whether a run kept up, and what it sustained while requests waited."""

    verdict: Saturation
    sustained_tok_s: float | None  # output tokens a second; None: nothing ever waited
    collapse_ms: float | None  # since when a queue did not empty before the last arrival

    @property
    def is_saturated(self) -> bool:
        """Whether more load was offered than sustained."""
        return self.verdict.is_saturated

    @property
    def reason(self) -> str:
        """What the verdict rests on, in words."""
        return self.verdict.reason

    def report_keys(self) -> dict[str, object]:
        """Verdict and figures under the report's key names."""
        return {
            **self.verdict.report_keys(),
            "saturation_sustained_tok_s": self.sustained_tok_s,
            "saturation_collapse_ms": self.collapse_ms,
        }

    def to_dict(self) -> dict[str, Any]:
        """For a JSON document about a prediction."""
        return {
            "saturated": self.is_saturated,
            "reason": self.reason,
            "sustained_output_tok_s": self.sustained_tok_s,
            "time_to_collapse_ms": self.collapse_ms,
        }


def load_of(result: RunResult) -> Load:
    """The verdict on a run, with what its workers sustained.

    Each worker counts with its output while requests waited for it, there or in the router; one for
    which none ever did, with all its output (it could have made more); each for the share of the
    run that it lived. The cluster collapses when the first of its queues no longer empties.
    """
    verdict = judge_saturation(result)
    rows = _WorkerRows.of(result.steps)
    is_waited_for = rows.wait_at_worker() | _waits_in_router(result, rows.start_ms)
    if not is_waited_for.any():
        return Load(verdict, None, None)
    sustained, since_ms = 0.0, []
    last_ms = float(np.nanmax(result.requests.arrival_ms))
    stepping_ms = float((rows.start_ms + rows.duration_ms).max())
    shares = lived_shares(result.workers, 0.0, stepping_ms)
    num_first = _first_tokens_by_worker(result)
    for worker, of_worker in rows.spans():
        share = float(shares[worker])
        own, is_full = rows.take(of_worker), is_waited_for[of_worker]
        sustained += share * _sustained_tok_s(
            own, is_full, num_first=int(num_first[worker]), lived_ms=stepping_ms * share
        )
        if result.workers.ended_ms[worker] <= last_ms:
            continue  # its queue ended with it
        start_ms = _full_since_ms(own.start_ms, is_full, last_ms)
        since_ms += [] if start_ms is None else [start_ms]
    collapse_ms = min(since_ms) if verdict.is_saturated and since_ms else None
    return Load(verdict, sustained, collapse_ms)


class _WorkerRows(NamedTuple):
    """Rows of a step log, worker by worker, those of one in the log's order: (rows,) each."""

    worker_id: IntArray
    start_ms: FloatArray
    duration_ms: FloatArray
    num_prefills: IntArray
    num_decoded: IntArray  # tokens of all steps
    num_waiting: IntArray

    @classmethod
    def of(cls, steps: StepLog) -> "_WorkerRows":
        """All rows."""
        # The smallest type that holds the ids: numpy sorts those of 16 bits by radix.
        highest = steps.worker_id.max(initial=0)
        order = np.argsort(steps.worker_id.astype(np.min_scalar_type(highest)), kind="stable")
        return cls(
            steps.worker_id[order],
            steps.start_ms[order],
            steps.duration_ms[order],
            steps.num_prefills[order],
            (steps.num_decodes * steps.num_steps)[order],
            steps.num_waiting[order],
        )

    def take(self, rows: NDArray[np.bool_] | slice) -> "_WorkerRows":
        """Some of the rows."""
        return _WorkerRows(
            self.worker_id[rows],
            self.start_ms[rows],
            self.duration_ms[rows],
            self.num_prefills[rows],
            self.num_decoded[rows],
            self.num_waiting[rows],
        )

    def spans(self) -> list[tuple[int, slice]]:
        """Each worker that has rows, with where they are."""
        starts = np.flatnonzero(np.append(True, self.worker_id[1:] != self.worker_id[:-1]))
        bounds = [*starts.tolist(), len(self.worker_id)]
        workers = self.worker_id[starts].tolist()
        return [(worker, slice(*bounds[i : i + 2])) for i, worker in enumerate(workers)]

    def wait_at_worker(self) -> NDArray[np.bool_]:
        """Whether a request was queued at the row's worker all through it.

        What came during a row is in its count: only with a queue in the row before, too, is it
        full.
        """
        has_queue = self.num_waiting > 0
        waits = np.zeros(len(has_queue), np.bool_)
        waits[1:] = has_queue[1:] & has_queue[:-1] & (self.worker_id[1:] == self.worker_id[:-1])
        return waits


def _first_tokens_by_worker(result: RunResult) -> IntArray:
    log = result.requests
    made = ~np.isnan(log.first_token_ms) & (log.worker_id >= 0)
    return np.bincount(log.worker_id[made], minlength=len(result.workers)).astype(np.int64)


def _sustained_tok_s(
    rows: _WorkerRows, is_waited_for: NDArray[np.bool_], *, num_first: int, lived_ms: float
) -> float:
    """Output tokens a second of one worker while something waited; else over all of its life.

    A prompt makes a token in its last chunk only: chunks count as much as they do on average.
    """
    chosen, busy_ms = rows, lived_ms
    if is_waited_for.any():
        chosen = rows.take(is_waited_for)
        busy_ms = float(chosen.duration_ms.sum())
    num_chunks = max(int(rows.num_prefills.sum()), 1)
    first_tokens = float(chosen.num_prefills.sum()) * min(1.0, num_first / num_chunks)
    tokens = first_tokens + float(chosen.num_decoded.sum())
    return tokens * MS_PER_S / busy_ms if busy_ms else 0.0


def _full_since_ms(
    start_ms: FloatArray, is_waited_for: NDArray[np.bool_], last_arrival_ms: float
) -> float | None:
    """Start of one worker's first step behind its last one for which nothing waited."""
    idle = np.flatnonzero((start_ms <= last_arrival_ms) & ~is_waited_for)
    since = int(idle[-1]) + 1 if len(idle) else 0
    if since == len(start_ms) or not is_waited_for[since]:
        return None
    return float(start_ms[since])


def _waits_in_router(result: RunResult, at_ms: FloatArray) -> NDArray[np.bool_]:
    """Whether a request was queued in the router at each of these times."""
    routing = result.routing
    if routing is None:
        return np.zeros(len(at_ms), np.bool_)
    log = result.requests
    queued = (routing.queued_ms > 0) & ~np.isnan(log.dispatch_ms)
    left_ms = np.sort(log.dispatch_ms[queued])
    came_ms = log.dispatch_ms[queued] - routing.queued_ms[queued]
    # Requests still queued when the run was cut off never left.
    waits_still = (log.status == RequestStatus.UNFINISHED) & np.isnan(log.dispatch_ms)
    waits_still &= ~np.isnan(log.arrival_ms)
    came_ms = np.sort(np.concatenate((came_ms, log.arrival_ms[waits_still])))
    num_queued = np.searchsorted(came_ms, at_ms, side="right")
    num_queued -= np.searchsorted(left_ms, at_ms, side="right")
    return np.asarray(num_queued > 0)


def judge_saturation(result: RunResult) -> Saturation:
    """The verdict on a run by the rule of this module."""
    log = result.requests
    offered = (log.status != RequestStatus.REJECTED) & ~np.isnan(log.arrival_ms)
    if not offered.any():
        return Saturation(False, "no load was offered", None, None, None)
    if log.is_timed is not None:
        offered &= log.is_timed
    if not offered.any():
        return Saturation(False, "closed loop: the load follows the cluster", None, None, None)
    given_up_share = float((log.status[offered] == RequestStatus.TIMED_OUT).mean())
    if given_up_share > BACKLOG_SHARE:
        reason = f"{given_up_share:.1%} of the requests were given up by their clients"
        return Saturation(True, reason, None, None, None)
    arrival_ms = log.arrival_ms[offered]
    scheduled_ms = log.scheduled_ms[offered]
    known = ~np.isnan(scheduled_ms)
    last_arrival_ms = float(arrival_ms.max())
    backlog_share = float((~known | (scheduled_ms > last_arrival_ms)).mean())
    drain_ms = _drain_ms(log, result.end_ms, last_arrival_ms)
    growth = _wait_growth(arrival_ms[known], (scheduled_ms - arrival_ms)[known])
    if growth is None:
        wait_ms = np.where(known, scheduled_ms, result.end_ms) - arrival_ms
        is_saturated, reason = _judge_burst(log, arrival_ms, wait_ms)
        return Saturation(is_saturated, reason, growth, backlog_share, drain_ms)
    is_saturated, reason = _judge_growth(growth, backlog_share)
    more, limit = growth_in_system(log, *measuring_window(log))
    if not is_saturated and more is not None and more > limit:
        is_saturated, reason = True, f"{more:.0f} more requests were in the system at the end"
    return Saturation(is_saturated, reason, growth, backlog_share, drain_ms, more)


def _drain_ms(log: RequestLog, end_ms: float, last_arrival_ms: float) -> float:
    if (log.status == RequestStatus.UNFINISHED).any() or np.isnan(log.finish_ms).all():
        return max(0.0, end_ms - last_arrival_ms)
    return max(0.0, float(np.nanmax(log.finish_ms)) - last_arrival_ms)


def _wait_growth(arrival_ms: FloatArray, wait_ms: FloatArray) -> float | None:
    """Median slope between the mean waits of equal slices of time; None for too few slices."""
    if len(arrival_ms) < MIN_SLICES or arrival_ms.min() == arrival_ms.max():
        return None
    first_ms, last_ms = float(arrival_ms.min()), float(arrival_ms.max())
    scaled = (arrival_ms - first_ms) * (NUM_SLICES / (last_ms - first_ms))
    slices = np.minimum(scaled.astype(np.int64), NUM_SLICES - 1)
    counts = np.bincount(slices, minlength=NUM_SLICES)
    filled = counts > 0
    if int(filled.sum()) < MIN_SLICES:
        return None
    times = np.bincount(slices, arrival_ms, NUM_SLICES)[filled] / counts[filled]
    waits = np.bincount(slices, wait_ms, NUM_SLICES)[filled] / counts[filled]
    earlier, later = np.triu_indices(len(times), 1)
    return median((waits[later] - waits[earlier]) / (times[later] - times[earlier]))


def _judge_growth(growth: float, backlog_share: float) -> tuple[bool, str]:
    served = f"{1 / (1 + max(0.0, growth)):.0%} of the offered load was served as it came"
    if growth <= 1 / SUSTAINED_SHARE - 1:
        return False, f"the wait did not grow steadily: {served}"
    if backlog_share < BACKLOG_SHARE:
        return False, "a backlog was worked off before the last arrival"
    return True, f"the queue kept growing: {served}"


def _judge_burst(log: RequestLog, arrival_ms: FloatArray, wait_ms: FloatArray) -> tuple[bool, str]:
    service_ms = log.finish_ms - log.scheduled_ms
    known = service_ms[~np.isnan(service_ms)]
    typical_service_ms = median(known) if len(known) else 0.0
    span_ms = float(arrival_ms.max() - arrival_ms.min())
    if median(wait_ms) > max(span_ms, typical_service_ms):
        return True, "arrivals in a few bursts: most requests waited longer than they were served"
    return False, "arrivals in a few bursts, served without a long wait"
