"""The frontend's metrics of the twin, as the live frontend would expose them at a moment.

Same names, labels and buckets (`dynosim.planner.frontend_metrics`). What is known of KV event
streams and indexes is left out: the twin takes events in when somebody asks. The HTTP layer has no
part in the twin, so no request is ever in its stage `preprocess`; the time spent there is part of
`ingress_ms`, and durations have it, and `egress_ms`, as clients measure them.

A scrape costs what has happened since the last one, and what is in flight. Of steps that go by in
bulk those count that have ended, each at its own length. A length within the tolerance of an
instant above a bucket's bound counts as that bound.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynosim.cluster.journal import Journal
from dynosim.cluster.pool import Worker
from dynosim.cluster.run_steps import NewSteps, StepTally
from dynosim.engine.instant import RELATIVE_TOLERANCE, TOLERANCE_MS
from dynosim.planner import frontend_metrics as names
from dynosim.planner.frontend_metrics import BucketCounts, HistogramNames, sample_name
from dynosim.planner.observation import Scrape
from dynosim.records import FloatArray, IntArray, RequestStatus
from dynosim.workers.lifecycle import Phase

_UNFINISHED = int(RequestStatus.UNFINISHED)
_SUM_DIGITS = 6  # of seconds: sums in two orders of adding are the same then
_OUTCOMES = {
    RequestStatus.COMPLETED: ("success", "completed"),
    RequestStatus.FAILED: ("error", "failed"),
    RequestStatus.REJECTED: ("error", "rejected"),
    RequestStatus.TIMED_OUT: ("cancelled", "cancelled"),
}


@dataclass(frozen=True, slots=True)
class FrontendLabels:
    """What the metrics say of the deployment, and of all requests."""

    namespace: str = "dynosim"
    model: str = "model"
    endpoint: str = "chat_completions"
    request_type: str = "stream"

    @property
    def common(self) -> dict[str, str]:
        """Those of every metric but the stages'."""
        return {names.NAMESPACE_LABEL: self.namespace, names.MODEL_LABEL: self.model}


@dataclass(frozen=True, slots=True)
class FrontendPath:
    """What a frontend adds to a request: `ingress_ms` before a router sees it, `egress_ms` after
    each token. Prompts of `max_model_len` tokens it refuses itself."""

    ingress_ms: float
    egress_ms: float
    max_model_len: int
    is_disaggregated: bool


class _Histogram:
    """Observations by bucket under the names of its samples."""

    __slots__ = ("_bounds", "_names", "counts")

    def __init__(self, name: str, labels: dict[str, str]) -> None:
        bounds = names.BUCKETS[name]
        self.counts = BucketCounts(bounds)
        self._names = HistogramNames(name, labels)
        self._bounds = np.array(bounds)

    def observe_all(self, values: FloatArray, slack: float = 0.0) -> None:
        """Some observations; those up to `slack` above a bound count as that bound."""
        if not len(values):
            return
        places = np.searchsorted(self._bounds, values - slack)
        counts = self.counts
        for place, number in enumerate(np.bincount(places, minlength=len(counts.counts)).tolist()):
            counts.counts[place] += number
        counts.total += float(values.sum())

    def write(self, values: dict[str, float]) -> None:
        """Its samples."""
        cumulative = self.counts.cumulative()
        for name, count in zip(self._names.buckets, cumulative, strict=True):
            values[name] = float(count)
        values[self._names.count] = float(cumulative[-1])
        values[self._names.sum] = round(self.counts.total, _SUM_DIGITS)


class _GapHistogram:
    """Inter-token latencies: those of steps that are over for good, and of runs under way."""

    def __init__(self, labels: dict[str, str]) -> None:
        self._names = HistogramNames(names.ITL, labels)
        self._tally = StepTally(names.BUCKETS[names.ITL])

    def write(
        self, steps: NewSteps, stalled_ms: FloatArray, now_ms: float, values: dict[str, float]
    ) -> None:
        """Take in new steps and stretched gaps; the samples at `now_ms`."""
        tally = self._tally
        slack_ms = _slack_ms(now_ms)
        tally.add_rows(steps, slack_ms)
        tally.add_gaps(stalled_ms, slack_ms)
        counts, total_ms = tally.with_runs(steps.runs, slack_ms)
        cumulative = np.cumsum(counts).tolist()
        for name, count in zip(self._names.buckets, cumulative, strict=True):
            values[name] = float(count)
        values[self._names.count] = float(cumulative[-1])
        values[self._names.sum] = round(total_ms / 1e3, _SUM_DIGITS)


class Exposition:
    """The metrics of one run. `overlap_blocks` are what routers took to be cached, by request."""

    def __init__(
        self,
        journal: Journal,
        path: FrontendPath,
        labels: FrontendLabels,
        *,
        block_size: int,
        overlap_blocks: "array[float] | None",
    ) -> None:
        if journal.arrived is None:
            journal.arrived = array("q")
        self._journal = journal
        self._arrived = journal.arrived
        self._num_arrived = 0
        self._num_stalled = 0
        self._path = path
        self._labels = labels
        self._block_size = block_size
        self._input_tokens = journal.trace.input_tokens
        self._columns = _Columns(journal, overlap_blocks)
        # In flight: their indexes, and what of them has been counted.
        self._open: IntArray = np.zeros(0, np.int64)
        self._has_first: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._is_placed: NDArray[np.bool_] = np.zeros(0, np.bool_)
        common = labels.common
        self._histograms = {
            name: _Histogram(name, common) for name in names.BUCKETS if name != names.ITL
        }
        self._gaps = _GapHistogram(common)
        self._totals = dict.fromkeys(
            (names.ROUTER_CACHED_TOKENS, names.ENGINE_CACHED_TOKENS, names.PROMPT_TOKENS), 0
        )
        self._ended: dict[RequestStatus, int] = {}
        self._num_refused_at_once = 0  # prompts that are too long

    def scrape(
        self, workers: Sequence[Worker], num_queued: int, steps: NewSteps, now_ms: float
    ) -> Scrape:
        """The metrics at `now_ms`; all that happened by then has been done.

        `workers` are those that ever had a request that is in flight; `steps` are new since the
        last scrape.
        """
        self._take_arrivals()
        self._take_placements()
        self._take_first_tokens(now_ms)
        self._take_ends(now_ms)
        values: dict[str, float] = {}
        self._write_gauges(workers, num_queued, values)
        self._write_counters(values)
        for histogram in self._histograms.values():
            histogram.write(values)
        self._gaps.write(steps, self._new_stalls(), now_ms, values)
        return Scrape(now_ms, values)

    # ---- what has happened ---------------------------------------------------------------------

    def _take_arrivals(self) -> None:
        new = np.array(self._arrived[self._num_arrived :], np.int64)
        if not len(new):
            return
        self._num_arrived += len(new)
        tokens = self._input_tokens[new]
        tokens = tokens[tokens < self._path.max_model_len]  # the frontend itself refuses others
        self._histograms[names.INPUT_TOKENS].observe_all(tokens.astype(np.float64))
        self._totals[names.PROMPT_TOKENS] += int(tokens.sum())
        nothing = np.zeros(len(new), np.bool_)
        self._open = np.concatenate((self._open, new))
        self._has_first = np.concatenate((self._has_first, nothing))
        self._is_placed = np.concatenate((self._is_placed, nothing))

    def _take_placements(self) -> None:
        """Those that have gone to their first worker: how long they waited, what is cached."""
        is_new = (self._columns.worker_id[self._open] >= 0) & ~self._is_placed
        new = self._open[is_new]
        if not len(new):
            return
        self._is_placed |= is_new
        waited_ms = self._columns.since_arrival_ms(new, self._journal.dispatch_ms)
        wait_s = (waited_ms + self._path.ingress_ms) / 1e3
        self._histograms[names.ROUTER_WAIT].observe_all(wait_s)
        overlap_blocks = self._columns.overlap_blocks
        if overlap_blocks is not None:
            cached = np.minimum(overlap_blocks[new] * self._block_size, self._input_tokens[new])
            self._totals[names.ROUTER_CACHED_TOKENS] += int(cached.sum())

    def _take_first_tokens(self, now_ms: float) -> None:
        first_ms = self._columns.first_token_ms[self._open]
        is_new = ~np.isnan(first_ms) & ~self._has_first
        if not is_new.any():
            return
        self._has_first |= is_new
        new, first_ms = self._open[is_new], first_ms[is_new]
        if self._journal.gave_up_ms:  # a token made for nobody counts for nobody
            gave_up_ms = self._journal.gave_up_ms
            limits = [gave_up_ms.get(index, np.inf) for index in new.tolist()]
            heard = first_ms <= np.array(limits)
            new, first_ms = new[heard], first_ms[heard]
        outside_ms = self._path.ingress_ms + self._path.egress_ms
        ttft_ms = first_ms - self._columns.arrival_ms[new] + outside_ms
        self._histograms[names.TTFT].observe_all(ttft_ms / 1e3, _slack_ms(now_ms) / 1e3)

    def _take_ends(self, now_ms: float) -> None:
        columns, journal = self._columns, self._journal
        status = columns.status[self._open]
        has_ended = status != _UNFINISHED
        ended = self._open[has_ended]
        if not len(ended):
            return
        status = status[has_ended]
        left = ~has_ended
        self._open, self._has_first, self._is_placed = (
            self._open[left],
            self._has_first[left],
            self._is_placed[left],
        )
        for outcome in _OUTCOMES:
            number = int((status == outcome).sum())
            self._ended[outcome] = self._ended.get(outcome, 0) + number
        ends_ms = columns.finish_ms[ended]
        for times_ms in (journal.refused_ms, journal.gave_up_ms):
            if times_ms:
                known = [times_ms.get(index, np.nan) for index in ended.tolist()]
                ends_ms = np.where(np.isnan(known), ends_ms, known)
        outside_ms = self._path.ingress_ms + self._path.egress_ms
        e2e_ms = ends_ms - columns.arrival_ms[ended] + outside_ms
        self._histograms[names.DURATION].observe_all(e2e_ms / 1e3, _slack_ms(now_ms) / 1e3)
        is_generation = self._input_tokens[ended] < self._path.max_model_len
        self._num_refused_at_once += int((~is_generation).sum())
        ended = ended[is_generation]
        tokens = columns.produced_tokens[ended]
        self._histograms[names.OUTPUT_TOKENS].observe_all(tokens.astype(np.float64))
        self._totals[names.ENGINE_CACHED_TOKENS] += int(columns.cached(ended).sum())

    def _new_stalls(self) -> FloatArray:
        stalled_ms = np.array(self._journal.stalled_gaps_ms[self._num_stalled :])
        self._num_stalled += len(stalled_ms)
        return stalled_ms

    # ---- what is told --------------------------------------------------------------------------

    def _write_gauges(
        self, workers: Sequence[Worker], num_queued: int, values: dict[str, float]
    ) -> None:
        common = self._labels.common
        values[sample_name(names.ACTIVE_REQUESTS, common)] = float(len(self._open))
        num_prefilling, num_dispatched = self._on_workers(workers)
        num_routing = len(self._open) - num_prefilling - num_dispatched
        stages = {("preprocess", ""): 0, ("route", ""): num_routing}
        if self._path.is_disaggregated:
            stages["dispatch", "prefill"] = num_prefilling
            stages["dispatch", "decode"] = num_dispatched
        else:
            stages["dispatch", ""] = num_dispatched
        namespace = self._labels.namespace
        for (stage, phase), number in stages.items():
            labels = {names.NAMESPACE_LABEL: namespace, "stage": stage, "phase": phase}
            values[sample_name(names.STAGE_REQUESTS, labels)] = float(number)
        num_ready = sum(worker.phase is Phase.READY and worker.rank == 0 for worker in workers)
        values[sample_name(names.WORKERS, common)] = float(num_ready)
        values[sample_name(names.WORKERS_FENCED, common)] = 0.0
        values[sample_name(names.QUEUED_REQUESTS, common)] = float(num_queued)

    def _on_workers(self, workers: Sequence[Worker]) -> tuple[int, int]:
        """Requests that a prefill worker has and no decode worker yet; and those of others.

        Who has lost its worker is with none until it is placed anew.
        """
        on = self._columns.worker_id[self._open]
        on = on[on >= 0]
        if not len(on):
            return 0, 0
        by_worker = np.bincount(on)
        num_prefilling = num_others = 0
        for worker in workers:
            if worker.is_alive and worker.worker_id < len(by_worker):
                number = int(by_worker[worker.worker_id])
                if worker.is_prefill:
                    num_prefilling += number
                else:
                    num_others += number
        return num_prefilling, num_others

    def _write_counters(self, values: dict[str, float]) -> None:
        labels, common = self._labels, self._labels.common
        for name, total in self._totals.items():
            values[sample_name(f"{name}_total", common)] = float(total)
        migrations = sum(self._journal.migrations.values()) if self._journal.migrations else 0
        values[sample_name(f"{names.MIGRATIONS}_total", common)] = float(migrations)
        of_requests = {"endpoint": labels.endpoint, "request_type": labels.request_type}
        by_status: dict[str, int] = {}
        for outcome, number in self._ended.items():
            if outcome is RequestStatus.REJECTED:
                number_of_generations = number - self._num_refused_at_once
            else:
                number_of_generations = number
            status, ended_as = _OUTCOMES[outcome]
            by_status[status] = by_status.get(status, 0) + number
            if number_of_generations:
                name = sample_name(f"{names.GENERATIONS}_total", {**common, "outcome": ended_as})
                values[name] = float(number_of_generations)
        for status, number in by_status.items():
            if number:
                name = sample_name(
                    f"{names.REQUESTS}_total", {**common, **of_requests, "status": status}
                )
                values[name] = float(number)


class _Columns:
    """The journal's columns as numpy sees them, without copying."""

    def __init__(self, journal: Journal, overlap_blocks: "array[float] | None") -> None:
        self.arrival_ms: FloatArray = _floats(journal.arrival_ms)
        self.first_token_ms: FloatArray = _floats(journal.first_token_ms)
        self.finish_ms: FloatArray = _floats(journal.finish_ms)
        self.produced_tokens: IntArray = _ints(journal.produced_tokens)
        self.worker_id: IntArray = _ints(journal.worker_id)
        self.status: IntArray = _ints(journal.status)
        self.overlap_blocks = None if overlap_blocks is None else _floats(overlap_blocks)
        self._cached_tokens: IntArray = _ints(journal.cached_tokens)
        self._input_tokens = journal.trace.input_tokens
        self._onboarded: IntArray | None = None
        if journal.tiers is not None:
            self._onboarded = _ints(journal.tiers.onboarded_tokens)

    def since_arrival_ms(self, indexes: IntArray, later_ms: dict[int, float]) -> FloatArray:
        """From arrival until a time that is told only where it is later."""
        if not later_ms:
            return np.zeros(len(indexes))
        arrival_ms = self.arrival_ms[indexes]
        pairs: Iterable[tuple[int, float]] = zip(indexes.tolist(), arrival_ms.tolist(), strict=True)
        return np.array([later_ms.get(i, came_ms) for i, came_ms in pairs]) - arrival_ms

    def cached(self, indexes: IntArray) -> IntArray:
        """Prompt tokens that engines had cached, as `RequestLog.cached_tokens` says it."""
        cached: IntArray = self._cached_tokens[indexes]
        if self._onboarded is None:
            return cached
        found = cached + self._onboarded[indexes]
        limits: IntArray = self._input_tokens[indexes] - 1
        cached = np.minimum(found, limits)
        return cached


def _floats(column: "array[float]") -> FloatArray:
    return np.frombuffer(column, np.float64)


def _ints(column: "array[int]") -> IntArray:
    return np.frombuffer(column, np.int64)


def _slack_ms(now_ms: float) -> float:
    """How far rounding may take a duration that ends by now."""
    return TOLERANCE_MS + RELATIVE_TOLERANCE * now_ms
