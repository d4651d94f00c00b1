"""The frontend's metrics of the twin, as the live frontend would expose them at a moment.

Same names, labels and buckets (`dynosim.planner.frontend_metrics`). What is known of KV event
streams and indexes is left out: the twin takes events in when somebody asks. Requests are in the
stage `preprocess`, and without a worker in `route` and `dispatch`, for as long as the cluster's
`FrontendSpec` says. What `ingress_ms` has of that is in no stage; durations have it, and
`egress_ms`, as clients measure them.

A scrape costs what has happened since the last one, and what is in flight; its samples are worked
out as they are read. Of steps that go by in bulk those count that have ended, each at its own
length. A length within the tolerance of an instant above a bucket's bound counts as that bound.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from dynosim.cluster.frontend_stages import StagedLoad
from dynosim.cluster.gap_tally import GapTally
from dynosim.cluster.journal import Journal
from dynosim.cluster.late_samples import LateSamples
from dynosim.cluster.pool import Worker
from dynosim.cluster.run_steps import Runs
from dynosim.engine.instant import RELATIVE_TOLERANCE, TOLERANCE_MS
from dynosim.engine.pace import NEVER
from dynosim.planner import frontend_metrics as names
from dynosim.planner.frontend_metrics import HistogramNames, sample_name
from dynosim.planner.observation import Scrape
from dynosim.records import RequestStatus, packed
from dynosim.workers.lifecycle import Phase

SCALAR: Final = -1  # of gauges and counters, in place of a histogram's number
SUM: Final = -2
ALL: Final = -1
MANY: Final = 4096
"""Observations that wait to be counted by bucket, before they are whether anybody asks or not."""
UNFINISHED: Final = int(RequestStatus.UNFINISHED)
REJECTED: Final = int(RequestStatus.REJECTED)
_TOTALS = (names.ROUTER_CACHED_TOKENS, names.ENGINE_CACHED_TOKENS, names.PROMPT_TOKENS)
_HISTOGRAMS = (
    names.INPUT_TOKENS,
    names.OUTPUT_TOKENS,
    names.ROUTER_WAIT,
    names.TTFT,
    names.DURATION,
    names.ITL,
)
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


class _Mark:
    """How far a histogram was at a scrape: observations, their sum, and once it is asked for, how
    many lay in each bucket and below it."""

    __slots__ = ("cumulative", "number", "total")

    def __init__(self, number: int, total: float) -> None:
        self.number = number
        self.total = total
        self.cumulative: list[int] | None = None


class _Histogram:
    """Observations, counted by bucket when somebody asks for that, or when they are many."""

    __slots__ = ("_bounds", "_counts", "_mark", "_marks", "_new", "_num_placed", "_total")

    def __init__(self, name: str) -> None:
        self._bounds = names.BUCKETS[name]
        self._counts = [0] * (len(self._bounds) + 1)
        self._num_placed = 0  # of all observations, those that are counted
        self._new: list[float] = []  # the others
        self._total = 0.0
        self._mark = _Mark(0, 0.0)  # of the last scrape
        self._marks = [self._mark]  # those whose observations are not counted, in order

    def observe(self, value: float, slack: float = 0.0) -> None:
        """One observation; up to `slack` above a bound it counts as that bound."""
        self._new.append(value - slack)
        self._total += value

    def mark(self) -> _Mark:
        """What there is now."""
        number = self._num_placed + len(self._new)
        if number != self._mark.number:
            self._mark = _Mark(number, self._total)
            self._marks.append(self._mark)
            if len(self._new) > MANY:
                self._count()
        return self._mark

    def cumulative(self, mark: _Mark) -> list[int]:
        """Observations up to each bound, at a mark; the last number is that of all."""
        if mark.cumulative is None:
            self._count()
        assert mark.cumulative is not None
        return mark.cumulative

    def _count(self) -> None:
        """Count what has been observed up to the last mark."""
        bounds, counts = self._bounds, self._counts
        first = 0
        for mark in self._marks:
            end = mark.number - self._num_placed
            for i in range(first, end):
                counts[bisect_left(bounds, self._new[i])] += 1
            first = end
            mark.cumulative = list(accumulate(counts))
        self._marks.clear()
        self._num_placed += first
        del self._new[:first]


class _Gaps:
    """The gaps between tokens at a scrape; `under_way` are runs that had not ended."""

    __slots__ = ("_counts", "_slack_ms", "_tally", "_total_ms", "_under_way")

    def __init__(self, tally: GapTally, runs: Runs, slack_ms: float) -> None:
        self._tally = tally
        self._counts = tally.counts()
        self._total_ms = tally.total_ms()
        self._slack_ms = slack_ms
        # Worker; length and sequences of a step before the run's own, sequences, contexts, steps.
        self._under_way: list[tuple[int, float, int, int, int, int]] = []
        for worker_id, run in runs.items():
            length_ms, number, first = 0.0, 0, run.first
            if first is not None:
                length_ms, number = first.end_ms - first.start_ms, first.num_decodes
            if number or run.num_steps:
                told = (run.num_decodes, run.context_tokens, run.num_steps)
                self._under_way.append((worker_id, length_ms, number, *told))

    def _finish(self) -> None:
        """Add what of runs under way had been delivered."""
        tally, under_way_ms = self._tally, 0.0
        counts, slack_ms = self._counts, self._slack_ms
        for worker_id, length_ms, first, number, context, num_steps in self._under_way:
            if first:
                under_way_ms += tally.add_one(length_ms, first, counts, slack_ms)
            if number and num_steps:
                under_way_ms += tally.add_run(
                    worker_id, number, context, num_steps, counts, slack_ms
                )
        self._total_ms += under_way_ms
        self._under_way = []

    def cumulative(self) -> list[int]:
        """Gaps up to each bound; the last number is that of all."""
        if self._under_way:
            self._finish()
        return list(accumulate(self._counts))

    def total(self) -> float:
        """Their sum in seconds."""
        if self._under_way:
            self._finish()
        return self._total_ms / 1e3


class ScrapedMoment:
    """What a scrape found: gauges and counters, how far histograms were; see `Readings`."""

    __slots__ = ("_catalogue", "_gaps", "_marks", "_scalars", "num_names")

    def __init__(
        self, catalogue: "_Catalogue", scalars: list[float], marks: list[_Mark], gaps: _Gaps
    ) -> None:
        self._catalogue = catalogue
        self._scalars = scalars
        self._marks = marks
        self._gaps = gaps
        self.num_names = len(catalogue.places)

    def value(self, name: str) -> float:
        """See `Readings`."""
        family, part = self._catalogue.places[name]
        if family == SCALAR:
            if part >= len(self._scalars):  # a counter that began later
                raise KeyError(name)
            return self._scalars[part]
        is_gaps = family == len(self._marks)
        if part == SUM:
            return round(self._gaps.total() if is_gaps else self._marks[family].total, 6)
        if is_gaps:
            return float(self._gaps.cumulative()[part])
        mark = self._marks[family]
        if part == ALL:
            return float(mark.number)
        return float(self._catalogue.histograms[family].cumulative(mark)[part])

    def get(self, name: str, default: Any) -> Any:
        """See `Readings`."""
        place = self._catalogue.places.get(name)
        if place is None or (place[0] == SCALAR and place[1] >= len(self._scalars)):
            return default
        return self.value(name)

    def names(self) -> dict[str, None]:
        """See `Readings`."""
        every = self._catalogue.names
        if len(every) == self.num_names:
            return every
        return dict.fromkeys(list(every)[: self.num_names])

    def all(self) -> dict[str, float]:
        """See `Readings`."""
        found: dict[str, float] = {}
        for name in self.names():
            found[name] = self.value(name)
        return found


class _Catalogue:
    """Where each sample is found, in the order in which they first came."""

    __slots__ = ("histograms", "names", "num_scalars", "places")

    def __init__(self, histograms: list[_Histogram]) -> None:
        self.histograms = histograms
        self.names: dict[str, None] = {}
        self.places: dict[str, tuple[int, int]] = {}
        self.num_scalars = 0

    def add_scalar(self, name: str) -> int:
        """A gauge or counter, if it is new; returns its place among them."""
        place = self.places.get(name)
        if place is None:
            place = self.places[name] = (SCALAR, self.num_scalars)
            self.names[name] = None
            self.num_scalars += 1
        return place[1]

    def add_histogram(self, family: int, name: str, labels: dict[str, str]) -> None:
        """The samples of a histogram."""
        samples = HistogramNames(name, labels)
        for part, bucket in enumerate(samples.buckets):
            self.places[bucket] = (family, part)
        self.places[samples.count] = (family, ALL)
        self.places[samples.sum] = (family, SUM)
        for sample in (*samples.buckets, samples.count, samples.sum):
            self.names[sample] = None


class Exposition:
    """The metrics of one run, from before anything arrives. `overlap_blocks` are what routers took
    to be cached, by request; `frontend` is what has its stages, if they take time. `workers` are
    all there will have been, by id."""

    def __init__(
        self,
        journal: Journal,
        path: FrontendPath,
        labels: FrontendLabels,
        *,
        block_size: int,
        overlap_blocks: "array[float] | None",
        workers: Sequence[Worker],
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
        self._input = _Histogram(names.INPUT_TOKENS)
        self._output = _Histogram(names.OUTPUT_TOKENS)
        self._wait = _Histogram(names.ROUTER_WAIT)
        self._ttft = _Histogram(names.TTFT)
        self._duration = _Histogram(names.DURATION)
        self._gaps = GapTally(names.ITL_BUCKETS, workers)
        journal.steps.tallies.append(self._gaps)
        self._catalogue = _Catalogue(
            [self._input, self._output, self._wait, self._ttft, self._duration]
        )
        self._common = labels.common
        self._names = _Names(labels, is_disaggregated=path.is_disaggregated)
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._ended: dict[int, int] = {}
        self._outcomes: list[float] = []  # how many ended how, in the catalogue's order
        self._num_fixed = 0  # gauges and counters that are there from the beginning
        self._has_new_ends = False
        self._num_refused_at_once = 0  # prompts that are too long

    def scrape(
        self, workers: Sequence[Worker], num_queued: int, runs: Runs, now_ms: float
    ) -> Scrape:
        """The metrics at `now_ms`; all that happened by then has been done.

        `workers` are those alive, `num_queued` requests wait to be placed, and `runs` are under
        way.
        """
        slack_ms = TOLERANCE_MS + RELATIVE_TOLERANCE * now_ms  # what rounding may do to a duration
        self._take_arrivals()
        self._take_placements()
        self._take_first_tokens(slack_ms)
        self._take_ends(slack_ms)
        for gap_ms in self._new_stalls():
            self._gaps.add_stretched(gap_ms, slack_ms)
        scalars = self._gauges(workers, num_queued, now_ms)
        self._add_counters(scalars)
        if not self._num_fixed:
            self._list_fixed(len(scalars))
        self._add_outcomes(scalars)
        catalogue = self._catalogue
        if len(catalogue.names) == catalogue.num_scalars:
            for family, name in enumerate(_HISTOGRAMS):
                catalogue.add_histogram(family, name, self._common)
        marks = [histogram.mark() for histogram in catalogue.histograms]
        moment = ScrapedMoment(catalogue, scalars, marks, _Gaps(self._gaps, runs, slack_ms))
        return Scrape(now_ms, LateSamples(moment))

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
        dispatch_ms, ingress_ms = journal.dispatch_ms, self._path.ingress_ms
        unplaced, num_cached = [], 0
        for index in self._unplaced:
            if journal.worker_id[index] < 0:
                if journal.status[index] == UNFINISHED:
                    unplaced.append(index)
                continue
            waited_ms = 0.0
            if dispatch_ms:
                arrival_ms = journal.arrival_ms[index]
                waited_ms = dispatch_ms.get(index, arrival_ms) - arrival_ms
            self._wait.observe((waited_ms + ingress_ms) / 1e3)
            if overlap_blocks is not None:
                cached = int(overlap_blocks[index] * self._block_size)
                num_cached += min(cached, self._input_tokens[index])
        self._unplaced = unplaced
        self._totals[names.ROUTER_CACHED_TOKENS] += num_cached

    def _take_first_tokens(self, slack_ms: float) -> None:
        journal, outside_ms = self._journal, self._outside_ms
        all_stay = not journal.gave_up_ms and not journal.refused_ms
        waiting = []
        for index in self._awaiting_first:
            first_ms = journal.first_token_ms[index]
            if first_ms != first_ms:
                if journal.status[index] == UNFINISHED:
                    waiting.append(index)
            elif all_stay or first_ms <= self._over_ms(index, NEVER):  # else for nobody
                ttft_ms = first_ms - journal.arrival_ms[index] + outside_ms
                self._ttft.observe(ttft_ms / 1e3, slack_ms / 1e3)
        self._awaiting_first = waiting

    def _take_ends(self, slack_ms: float) -> None:
        journal = self._journal
        status = journal.status
        in_flight: list[int] = []
        ended: list[int] = []
        for index in self._open:
            if status[index] == UNFINISHED:
                in_flight.append(index)
            else:
                ended.append(index)
        if ended:
            self._open = in_flight
            self._note_ends(ended, slack_ms)
        if self._uncounted:
            self._count_tokens()

    def _note_ends(self, ended: list[int], slack_ms: float) -> None:
        journal = self._journal
        status = journal.status
        num_cached, limit = 0, self._path.max_model_len
        all_stay = not journal.gave_up_ms and not journal.refused_ms
        self._has_new_ends = True
        for index in ended:
            outcome = status[index]
            self._ended[outcome] = self._ended.get(outcome, 0) + 1
            end_ms = journal.finish_ms[index]
            if not all_stay:
                end_ms = self._over_ms(index, end_ms)
            e2e_ms = end_ms - journal.arrival_ms[index] + self._outside_ms
            self._duration.observe(e2e_ms / 1e3, slack_ms / 1e3)
            if self._input_tokens[index] < limit:
                self._uncounted.append(index)
                num_cached += self._cached(index)
            else:
                self._num_refused_at_once += 1
        self._totals[names.ENGINE_CACHED_TOKENS] += num_cached

    def _count_tokens(self) -> None:
        """How many tokens the ended have got; of who was given up, once its engine has counted."""
        journal = self._journal
        leaving = journal.leaving
        still: list[int] = []
        for index in self._uncounted:
            if leaving and index in leaving:
                still.append(index)
            else:
                self._output.observe(journal.produced_tokens[index])
        self._uncounted = still

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

    def _gauges(self, workers: Sequence[Worker], num_queued: int, now_ms: float) -> list[float]:
        """In the order of `_Names.gauges`."""
        num_open, frontend = len(self._open), self._frontend
        preprocessed, routed, dispatched = (
            (0, 0, 0) if frontend is None else frontend.in_stages(now_ms)
        )
        gauges = [float(num_open + preprocessed + routed + dispatched), float(preprocessed)]
        if self._path.is_disaggregated:
            num_prefilling, num_decoding = self._by_phase(workers)
            gauges.append(float(num_open - num_prefilling - num_decoding + routed))
            gauges.append(float(num_prefilling + dispatched))
            gauges.append(float(num_decoding))
        else:
            gauges.append(float(num_queued + routed))
            gauges.append(float(num_open - num_queued + dispatched))
        num_ready = 0
        for worker in workers:
            if worker.rank == 0 and worker.phase is Phase.READY:
                num_ready += 1
        gauges += [float(num_ready), 0.0, float(num_queued)]
        return gauges

    def _by_phase(self, workers: Sequence[Worker]) -> tuple[int, int]:
        """Requests that a prefill worker has and no decode worker yet; and those of others.

        Who has lost its worker is with none until it is placed anew.
        """
        prefills: dict[int, bool] = {worker.worker_id: worker.is_prefill for worker in workers}
        worker_id = self._journal.worker_id
        on = [prefills.get(worker_id[index]) for index in self._open]
        num_prefilling = on.count(True)
        return num_prefilling, on.count(False)

    def _add_counters(self, scalars: list[float]) -> None:
        for total in self._totals.values():
            scalars.append(float(total))
        migrations = sum(self._journal.migrations.values()) if self._journal.migrations else 0
        scalars.append(float(migrations))

    def _list_fixed(self, number: int) -> None:
        self._num_fixed = number
        known = self._names
        for name in (*known.gauges, *known.totals.values()):
            self._catalogue.add_scalar(name)
        assert self._catalogue.num_scalars == number

    def _add_outcomes(self, scalars: list[float]) -> None:
        """How many requests ended how; what has not happened yet has no sample."""
        if self._has_new_ends:
            self._has_new_ends = False
            self._count_outcomes()
        scalars += self._outcomes

    def _count_outcomes(self) -> None:
        known, outcomes = self._names, self._outcomes
        by_status: dict[str, int] = {}
        for outcome, number in self._ended.items():
            status, ended_as = _OUTCOMES[outcome]
            by_status[status] = by_status.get(status, 0) + number
            if outcome == REJECTED:
                number -= self._num_refused_at_once
            if number:
                self._set_outcome(known.generations[ended_as], number, outcomes)
        for status, number in by_status.items():
            self._set_outcome(known.requests[status], number, outcomes)

    def _set_outcome(self, name: str, number: int, outcomes: list[float]) -> None:
        place = self._catalogue.add_scalar(name) - self._num_fixed
        if place == len(outcomes):
            outcomes.append(0.0)
        outcomes[place] = float(number)


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

        dispatched = [stage("dispatch")]
        if is_disaggregated:
            dispatched = [stage("dispatch", "prefill"), stage("dispatch", "decode")]
        self.gauges = [
            of(names.ACTIVE_REQUESTS),
            stage("preprocess"),
            stage("route"),
            *dispatched,
            of(names.WORKERS),
            of(names.WORKERS_FENCED),
            of(names.QUEUED_REQUESTS),
        ]
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
