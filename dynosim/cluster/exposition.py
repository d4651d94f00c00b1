"""The frontend's metrics of the twin, as the live frontend would expose them at a moment.

Same names, labels and buckets (`dynosim.planner.frontend_metrics`). What is known of KV event
streams and indexes is left out: the twin takes events in when somebody asks. Requests are in the
stage `preprocess`, and without a worker in `route` and `dispatch`, for as long as the cluster's
`FrontendSpec` says. What `ingress_ms` has of that is in no stage; durations have it, and
`egress_ms`, as clients measure them.

A scrape costs what has happened since the last one, and what is in flight. Of steps that go by in
bulk those count that have ended, each at its own length. A length within the tolerance of an
instant above a bucket's bound counts as that bound.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from dynosim.cluster.frontend_stages import StagedLoad
from dynosim.cluster.journal import Journal
from dynosim.cluster.pool import Worker
from dynosim.cluster.run_steps import GapTally, NewSteps
from dynosim.engine.instant import RELATIVE_TOLERANCE, TOLERANCE_MS
from dynosim.engine.pace import NEVER
from dynosim.planner import frontend_metrics as names
from dynosim.planner.frontend_metrics import BucketCounts, HistogramNames, sample_name
from dynosim.planner.observation import Scrape
from dynosim.records import RequestStatus, packed
from dynosim.workers.lifecycle import Phase

UNFINISHED: Final = int(RequestStatus.UNFINISHED)
REJECTED: Final = int(RequestStatus.REJECTED)
_TOTALS = (names.ROUTER_CACHED_TOKENS, names.ENGINE_CACHED_TOKENS, names.PROMPT_TOKENS)
_OUTCOMES: dict[int, tuple[str, str]] = {
    int(RequestStatus.COMPLETED): ("success", "completed"),
    int(RequestStatus.FAILED): ("error", "failed"),
    REJECTED: ("error", "rejected"),
    int(RequestStatus.TIMED_OUT): ("cancelled", "cancelled"),
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
    """Observations by bucket, under the names of its samples."""

    __slots__ = ("_counts", "_is_new", "_names")

    def __init__(self, name: str, labels: dict[str, str]) -> None:
        self._counts = BucketCounts(names.BUCKETS[name])
        self._names = HistogramNames(name, labels)
        self._is_new = True

    def observe(self, value: float, slack: float = 0.0) -> None:
        """One observation; up to `slack` above a bound it counts as that bound."""
        counts = self._counts
        counts.counts[bisect_left(counts.bounds, value - slack)] += 1
        counts.total += value
        self._is_new = True

    def write(self, values: dict[str, float]) -> None:
        """Its samples, if they have changed."""
        if self._is_new:
            self._is_new = False
            self._names.write(self._counts.cumulative(), self._counts.total, values)


class Exposition:
    """The metrics of one run. `overlap_blocks` are what routers took to be cached, by request;
    `frontend` is what has its stages, if they take time."""

    def __init__(
        self,
        journal: Journal,
        path: FrontendPath,
        labels: FrontendLabels,
        *,
        block_size: int,
        overlap_blocks: "array[float] | None",
        frontend: StagedLoad | None = None,
    ) -> None:
        if journal.arrived is None:
            journal.arrived = array("q")
        self._journal = journal
        self._arrived = journal.arrived
        self._input_tokens = packed(journal.trace.input_tokens)
        self._num_arrived = 0
        self._num_stalled = 0
        self._path = path
        self._outside_ms = path.ingress_ms + path.egress_ms
        self._block_size = block_size
        self._overlap_blocks = overlap_blocks
        self._frontend = frontend
        # Requests in flight: all, those that no worker has had, and those without a token.
        self._open: list[int] = []
        self._unplaced: list[int] = []
        self._awaiting_first: list[int] = []
        self._uncounted: list[int] = []  # over, and their tokens are still to be observed
        common = labels.common
        self._values: dict[str, float] = {}  # of the last scrape
        self._input = _Histogram(names.INPUT_TOKENS, common)
        self._output = _Histogram(names.OUTPUT_TOKENS, common)
        self._wait = _Histogram(names.ROUTER_WAIT, common)
        self._ttft = _Histogram(names.TTFT, common)
        self._duration = _Histogram(names.DURATION, common)
        self._gaps = GapTally(names.ITL_BUCKETS)
        self._gap_names = HistogramNames(names.ITL, common)
        self._names = _Names(labels, is_disaggregated=path.is_disaggregated)
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._ended: dict[int, int] = {}
        self._num_refused_at_once = 0  # prompts that are too long

    def scrape(
        self, workers: Sequence[Worker], num_queued: int, steps: NewSteps, now_ms: float
    ) -> Scrape:
        """The metrics at `now_ms`; all that happened by then has been done.

        `workers` are those alive, `num_queued` requests wait to be placed, and `steps` are new
        since the last scrape.
        """
        slack_ms = TOLERANCE_MS + RELATIVE_TOLERANCE * now_ms  # what rounding may do to a duration
        self._take_arrivals()
        self._take_placements()
        self._take_first_tokens(slack_ms)
        self._take_ends(slack_ms)
        values = self._values
        self._write_gauges(workers, num_queued, now_ms, values)
        self._write_counters(values)
        for histogram in (self._input, self._output, self._wait, self._ttft, self._duration):
            histogram.write(values)
        counts, total_ms = self._gaps.take(steps, self._new_stalls(), slack_ms)
        self._gap_names.write(list(accumulate(counts)), total_ms / 1e3, values)
        return Scrape(now_ms, values.copy())

    # ---- what has happened ---------------------------------------------------------------------

    def _take_arrivals(self) -> None:
        new = self._arrived[self._num_arrived :].tolist()
        self._num_arrived += len(new)
        self._open += new
        self._unplaced += new
        self._awaiting_first += new
        limit, num_tokens = self._path.max_model_len, 0
        for index in new:
            tokens = self._input_tokens[index]
            if tokens < limit:  # the frontend itself refuses others
                num_tokens += tokens
                self._input.observe(tokens)
        self._totals[names.PROMPT_TOKENS] += num_tokens

    def _take_placements(self) -> None:
        """Those that have gone to their first worker: how long they waited, what is cached."""
        journal, overlap_blocks = self._journal, self._overlap_blocks
        unplaced, num_cached = [], 0
        for index in self._unplaced:
            if journal.worker_id[index] < 0:
                if journal.status[index] == UNFINISHED:
                    unplaced.append(index)
                continue
            arrival_ms = journal.arrival_ms[index]
            waited_ms = journal.dispatch_ms.get(index, arrival_ms) - arrival_ms
            self._wait.observe((waited_ms + self._path.ingress_ms) / 1e3)
            if overlap_blocks is not None:
                cached = int(overlap_blocks[index] * self._block_size)
                num_cached += min(cached, self._input_tokens[index])
        self._unplaced = unplaced
        self._totals[names.ROUTER_CACHED_TOKENS] += num_cached

    def _take_first_tokens(self, slack_ms: float) -> None:
        journal, outside_ms = self._journal, self._outside_ms
        waiting = []
        for index in self._awaiting_first:
            first_ms = journal.first_token_ms[index]
            if first_ms != first_ms:
                if journal.status[index] == UNFINISHED:
                    waiting.append(index)
            elif first_ms <= self._over_ms(index, NEVER):  # else for nobody
                ttft_ms = first_ms - journal.arrival_ms[index] + outside_ms
                self._ttft.observe(ttft_ms / 1e3, slack_ms / 1e3)
        self._awaiting_first = waiting

    def _take_ends(self, slack_ms: float) -> None:
        journal = self._journal
        status = journal.status
        ended = [index for index in self._open if status[index] != UNFINISHED]
        if ended:
            self._open = [index for index in self._open if status[index] == UNFINISHED]
            self._note_ends(ended, slack_ms)
        if self._uncounted:
            self._count_tokens()

    def _note_ends(self, ended: list[int], slack_ms: float) -> None:
        journal = self._journal
        status = journal.status
        num_cached = 0
        for index in ended:
            outcome = status[index]
            self._ended[outcome] = self._ended.get(outcome, 0) + 1
            end_ms = self._over_ms(index, journal.finish_ms[index])
            e2e_ms = end_ms - journal.arrival_ms[index] + self._outside_ms
            self._duration.observe(e2e_ms / 1e3, slack_ms / 1e3)
            if self._input_tokens[index] < self._path.max_model_len:
                self._uncounted.append(index)
                num_cached += self._cached(index)
            else:
                self._num_refused_at_once += 1
        self._totals[names.ENGINE_CACHED_TOKENS] += num_cached

    def _count_tokens(self) -> None:
        """How many tokens the ended have got; of who was given up, once its engine has counted."""
        journal = self._journal
        leaving = journal.leaving
        for index in self._uncounted:
            if index not in leaving:
                self._output.observe(journal.produced_tokens[index])
        self._uncounted = [index for index in self._uncounted if index in leaving]

    def _over_ms(self, index: int, usual_ms: float) -> float:
        """When a request was refused, failed or given up; if nothing of that, as usual."""
        journal = self._journal
        return journal.gave_up_ms.get(index, journal.refused_ms.get(index, usual_ms))

    def _cached(self, index: int) -> int:
        """Prompt tokens that engines had cached, as `RequestLog.cached_tokens` says it."""
        cached, tiers = self._journal.cached_tokens[index], self._journal.tiers
        if tiers is None:
            return cached
        return min(cached + tiers.onboarded_tokens[index], self._input_tokens[index] - 1)

    def _new_stalls(self) -> "array[float]":
        stalled_ms = self._journal.stalled_gaps_ms[self._num_stalled :]
        self._num_stalled += len(stalled_ms)
        return stalled_ms

    # ---- what is told --------------------------------------------------------------------------

    def _write_gauges(
        self, workers: Sequence[Worker], num_queued: int, now_ms: float, values: dict[str, float]
    ) -> None:
        known, num_open, frontend = self._names, len(self._open), self._frontend
        preprocessed, routed, dispatched = (
            (0, 0, 0) if frontend is None else frontend.in_stages(now_ms)
        )
        values[known.active] = float(num_open + preprocessed + routed + dispatched)
        values[known.preprocess] = float(preprocessed)
        if known.dispatch_prefill is None:
            values[known.route] = float(num_queued + routed)
            values[known.dispatch] = float(num_open - num_queued + dispatched)
        else:
            num_prefilling, num_decoding = self._by_phase(workers)
            values[known.route] = float(num_open - num_prefilling - num_decoding + routed)
            values[known.dispatch_prefill] = float(num_prefilling + dispatched)
            values[known.dispatch] = float(num_decoding)
        num_ready = sum([worker.phase is Phase.READY and worker.rank == 0 for worker in workers])
        values[known.workers] = float(num_ready)
        values[known.workers_fenced] = 0.0
        values[known.queued] = float(num_queued)

    def _by_phase(self, workers: Sequence[Worker]) -> tuple[int, int]:
        """Requests that a prefill worker has and no decode worker yet; and those of others.

        Who has lost its worker is with none until it is placed anew.
        """
        prefills: dict[int, bool] = {worker.worker_id: worker.is_prefill for worker in workers}
        worker_id = self._journal.worker_id
        on = [prefills.get(worker_id[index]) for index in self._open]
        num_prefilling = on.count(True)
        return num_prefilling, on.count(False)

    def _write_counters(self, values: dict[str, float]) -> None:
        known = self._names
        for name, total in self._totals.items():
            values[known.totals[name]] = float(total)
        migrations = sum(self._journal.migrations.values()) if self._journal.migrations else 0
        values[known.totals[names.MIGRATIONS]] = float(migrations)
        by_status: dict[str, int] = {}
        for outcome, number in self._ended.items():
            status, ended_as = _OUTCOMES[outcome]
            by_status[status] = by_status.get(status, 0) + number
            if outcome == REJECTED:
                number -= self._num_refused_at_once
            if number:
                values[known.generations[ended_as]] = float(number)
        for status, number in by_status.items():
            values[known.requests[status]] = float(number)


class _Names:
    """The names of gauges and counters, made once."""

    def __init__(self, labels: FrontendLabels, *, is_disaggregated: bool) -> None:
        common = labels.common

        def of(name: str, **more: str) -> str:
            return sample_name(name, common | more)

        def stage(stage: str, phase: str = "") -> str:
            of_stage = {"stage": stage, "phase": phase}
            labels_of = {names.NAMESPACE_LABEL: labels.namespace, **of_stage}
            return sample_name(names.STAGE_REQUESTS, labels_of)

        self.active = of(names.ACTIVE_REQUESTS)
        self.preprocess, self.route = stage("preprocess"), stage("route")
        self.dispatch = stage("dispatch", "decode" if is_disaggregated else "")
        self.dispatch_prefill = stage("dispatch", "prefill") if is_disaggregated else None
        self.workers = of(names.WORKERS)
        self.workers_fenced = of(names.WORKERS_FENCED)
        self.queued = of(names.QUEUED_REQUESTS)
        self.totals = {name: of(f"{name}_total") for name in (*_TOTALS, names.MIGRATIONS)}
        self.generations = {
            ended_as: of(f"{names.GENERATIONS}_total", outcome=ended_as)
            for _, ended_as in _OUTCOMES.values()
        }
        self.requests = {
            status: of(
                f"{names.REQUESTS}_total",
                endpoint=labels.endpoint,
                request_type=labels.request_type,
                status=status,
            )
            for status, _ in _OUTCOMES.values()
        }
