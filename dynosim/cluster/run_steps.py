"""Engine steps since somebody looked last, also those of runs under way, each at its own length.

The journal has a row for each step or run that is over. What of a run under way has ended by now is
asked of its engine. So it is the same whether steps go by in bulk or singly.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.cluster.journal import NAN, Journal
from dynosim.cluster.pool import Worker
from dynosim.engine.engine import RunSoFar
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

PLACE: Final = 2  # of a known range, see `StepPlaces`


StepRow = tuple[float, float, int, int, int, int, int, int, int, int, int, int]
"""A step, or a run of uniform steps: what `StepRows.append` gets of it, in that order. A duration
of NaN is for the step times to say."""

NUM_TIMES: Final = 2  # fields of a row that are times; counts follow
DURATION: Final = 1
WORKER: Final = 2
NUM_STEPS: Final = 3
NUM_PREFILLS: Final = 4
PREFILL_TOKENS: Final = 5
NUM_DECODES: Final = 7
CONTEXT: Final = 8


class NewSteps(NamedTuple):
    """What is new since the last look, in the order in which it ended."""

    over: NDArray[np.void]  # of `STEP_TYPE`
    under_way: list[StepRow]  # what of runs under way has been delivered
    workers: Sequence[Worker]  # all there have been, by id


Runs = dict[int, RunSoFar]
"""How far the runs under way are, by worker id."""


def runs_under_way(workers: Sequence[Worker], now_ms: float) -> Runs:
    """Those of some workers; who does single steps has none."""
    runs: Runs = {}
    for worker in workers:
        engine = worker.engine
        if engine.run_steps:
            so_far = engine.run_so_far(now_ms)
            if so_far is not None:
                runs[worker.worker_id] = so_far
    return runs


class StepFeed:
    """The journal's step log as it grows; two who read the same get the same list."""

    def __init__(self, journal: Journal) -> None:
        self._rows = journal.steps
        self._read = journal.steps.since(0)
        self._span = (0, len(self._read))

    def since(self, first: int) -> NDArray[np.void]:
        """The rows from that one on."""
        span = (first, len(self._rows))
        if span != self._span:
            self._read, self._span = self._rows.since(first), span
        return self._read


class StepReader:
    """Reads a feed: what is new each time."""

    def __init__(self, feed: StepFeed) -> None:
        self._feed = feed
        self._num_seen = 0

    def read(self, runs: Runs, workers: Sequence[Worker]) -> NewSteps:
        """What is new, while `runs` are under way; `workers` are all there have been."""
        over = self._feed.since(self._num_seen)
        self._num_seen += len(over)
        return NewSteps(over, _delivered(runs), workers)


def rows_of(over: NDArray[np.void]) -> list[StepRow]:
    """The same as rows by themselves."""
    times, counts = over["times"].T.tolist(), over["counts"].T.tolist()
    return list(zip(*times, *counts, strict=True))


def _delivered(runs: Runs) -> list[StepRow]:
    """What of runs has been delivered, as the journal will tell it but for counts at its end."""
    rows: list[StepRow] = []
    for worker_id, run in runs.items():
        first = run.first
        if first is not None:
            length_ms, number = first.end_ms - first.start_ms, first.num_decodes
            context = first.decode_context_tokens
            rows.append((0.0, length_ms, worker_id, 1, 0, 0, 0, number, context, 0, 0, 0))
        if run.num_steps:
            number, context = run.num_decodes, run.context_tokens
            rows.append((0.0, NAN, worker_id, run.num_steps, 0, 0, 0, number, context, 0, 0, 0))
    return rows


class StepPlaces:
    """In which bucket the decode steps of a model lie, with bounds in ms.

    Where steps only get longer with their contexts, all between two of one bucket are in it, too:
    what has been asked once is known for a range of contexts, by number of sequences.
    """

    def __init__(self, times: StepTimeModel, bounds_ms: list[float]) -> None:
        self._times = times
        self._bounds_ms = bounds_ms
        self._shape = StepShape()
        self._known: dict[int, list[list[int]]] = {}  # lowest and highest context, and bucket

    def count(
        self, number: int, first: int, num_steps: int, counts: list[int], slack_ms: float
    ) -> None:
        """Add the gaps of a run, of so many sequences with that context at first, to the counts."""
        last = first + number * (num_steps - 1)
        for low, high, place in self._known.get(number, ()):
            if low <= first and last <= high:
                counts[place] += number * num_steps
                return
        if self._times.decode_is_monotone:
            self._count_between(number, first, last, num_steps, counts, slack_ms)
            return
        for context in range(first, last + 1, number):
            counts[self._find(number, context, slack_ms)] += number

    def _count_between(
        self, number: int, first: int, last: int, num_steps: int, counts: list[int], slack_ms: float
    ) -> None:
        place = self._of(number, first, slack_ms)
        if num_steps == 1 or self._of(number, last, slack_ms) == place:
            counts[place] += number * num_steps
            return
        half = num_steps // 2
        middle = first + number * half
        self._count_between(number, first, middle - number, half, counts, slack_ms)
        self._count_between(number, middle, last, num_steps - half, counts, slack_ms)

    def _of(self, number: int, context: int, slack_ms: float) -> int:
        """The bucket of a step of so many sequences with that context."""
        known = self._known.setdefault(number, [])
        for one in known:
            if one[0] <= context <= one[1]:
                return one[PLACE]
        place = self._find(number, context, slack_ms)
        for one in known:
            if one[PLACE] == place:
                one[0], one[1] = min(one[0], context), max(one[1], context)
                return place
        known.append([context, context, place])
        return place

    def _find(self, number: int, context: int, slack_ms: float) -> int:
        shape = self._shape
        shape.num_decodes, shape.decode_context_tokens = number, context
        return bisect_left(self._bounds_ms, self._times.step_ms(shape) - slack_ms)


class GapTally:
    """Gaps between tokens by bucket (bounds in seconds): each decoding sequence has one a step."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_ms = [bound * 1e3 for bound in bounds_s]
        self._bounds = np.array(self._bounds_ms)
        self._counts = [0] * (len(bounds_s) + 1)
        self._total_ms = 0.0
        self._places: dict[int, StepPlaces] = {}  # by identity of step times

    def take(
        self, steps: NewSteps, stalled_ms: "array[float]", slack_ms: float
    ) -> tuple[list[int], float]:
        """Count new rows and stretched gaps for good; returns counts and sum in ms, with what of
        runs under way has been delivered. Lengths up to `slack_ms` above a bound count as that."""
        bounds_ms, counts = self._bounds_ms, self._counts
        for gap_ms in stalled_ms:
            counts[bisect_left(bounds_ms, gap_ms - slack_ms)] += 1
            self._total_ms += gap_ms
        if len(steps.over):
            self._total_ms += self._add_over(steps.over, steps.workers, counts, slack_ms)
        if not steps.under_way:
            return counts, self._total_ms
        counts = counts.copy()
        under_way_ms = self._add(steps.under_way, steps.workers, counts, slack_ms)
        return counts, self._total_ms + under_way_ms

    def _add_over(
        self, over: NDArray[np.void], workers: Sequence[Worker], counts: list[int], slack_ms: float
    ) -> float:
        """Count the gaps of rows that are over; returns their sum, added up in order."""
        duration_ms, columns = over["times"][:, DURATION], over["counts"]
        num_decodes, is_run = (
            columns[:, NUM_DECODES - NUM_TIMES],
            columns[:, NUM_STEPS - NUM_TIMES] > 1,
        )
        places = np.searchsorted(self._bounds, duration_ms - slack_ms)
        of_single = np.bincount(places, np.where(is_run, 0, num_decodes), len(counts))
        for place, number in enumerate(of_single.tolist()):
            counts[place] += int(number)
        for row in columns[is_run].tolist():
            number = row[NUM_DECODES - NUM_TIMES]
            times = workers[row[WORKER - NUM_TIMES]].pool.times
            first, num_steps = row[CONTEXT - NUM_TIMES], row[NUM_STEPS - NUM_TIMES]
            self._places_of(times).count(number, first, num_steps, counts, slack_ms)
        return float(np.cumsum(duration_ms * num_decodes)[-1])

    def _add(
        self, rows: list[StepRow], workers: Sequence[Worker], counts: list[int], slack_ms: float
    ) -> float:
        """Count the gaps of what runs under way have delivered; returns their sum."""
        bounds_ms = self._bounds_ms
        total_ms = 0.0
        for row in rows:
            number = row[NUM_DECODES]
            if number == 0:
                continue
            duration_ms, num_steps = row[DURATION], row[NUM_STEPS]
            if num_steps == 1 and duration_ms == duration_ms:
                counts[bisect_left(bounds_ms, duration_ms - slack_ms)] += number
            else:
                times = workers[row[WORKER]].pool.times
                if duration_ms != duration_ms:
                    duration_ms = times.decode_run_ms(number, row[CONTEXT], num_steps)
                self._places_of(times).count(number, row[CONTEXT], num_steps, counts, slack_ms)
            total_ms += duration_ms * number
        return total_ms

    def _places_of(self, times: StepTimeModel) -> StepPlaces:
        places = self._places.get(id(times))
        if places is None:
            places = self._places[id(times)] = StepPlaces(times, self._bounds_ms)
        return places
