"""Gaps between tokens, counted by bucket as the steps that make them end.

Each sequence that decodes in a step has a gap as long as that. Of a run of steps each counts at its
own length, so it does not matter whether they went by in bulk.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynosim.engine.instant import RELATIVE_TOLERANCE, TOLERANCE_MS
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

if TYPE_CHECKING:
    from dynosim.cluster.pool import Worker


class _Range:
    """Contexts with which steps are known to be in one bucket, `place`."""

    __slots__ = ("high", "low", "place")

    def __init__(self, low: int, high: int, place: int) -> None:
        self.low = low
        self.high = high
        self.place = place


class StepPlaces:
    """In which bucket the decode steps of a model lie, with bounds in ms.

    Where steps only get longer with their contexts, all between two of one bucket are in it, too:
    what has been asked once is known for a range of contexts, by number of sequences.
    """

    def __init__(self, times: StepTimeModel, bounds_ms: list[float]) -> None:
        self._times = times
        self._bounds_ms = bounds_ms
        self._shape = StepShape()
        self._known: dict[int, list[_Range]] = {}

    def count(
        self, number: int, first: int, num_steps: int, counts: list[int], slack_ms: float
    ) -> None:
        """Add the gaps of a run, of so many sequences with that context at first, to the counts."""
        last = first + number * (num_steps - 1)
        known = self._known.get(number)
        if known is not None:
            for one in known:
                if one.low <= first and last <= one.high:
                    counts[one.place] += number * num_steps
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
            if one.low <= context <= one.high:
                return one.place
        place = self._find(number, context, slack_ms)
        for one in known:
            if one.place == place:
                one.low, one.high = min(one.low, context), max(one.high, context)
                return place
        known.append(_Range(context, context, place))
        return place

    def _find(self, number: int, context: int, slack_ms: float) -> int:
        shape = self._shape
        shape.num_decodes, shape.decode_context_tokens = number, context
        return bisect_left(self._bounds_ms, self._times.step_ms(shape) - slack_ms)


class GapTally:
    """Gaps by bucket (bounds in seconds), of all steps that are over.

    `workers` are all there have been, by id: their models say how long the steps of a run take.
    A length within the tolerance of an instant above a bound counts as that bound. The sum is added
    up in two stages, of all since `total_ms` was asked last and of all before.
    """

    def __init__(self, bounds_s: Sequence[float], workers: "Sequence[Worker]") -> None:
        self._bounds_ms = [bound * 1e3 for bound in bounds_s]
        self._workers = workers
        self._counts = [0] * (len(bounds_s) + 1)
        self._total_ms = 0.0
        self._new_ms = 0.0
        self._places: dict[int, StepPlaces] = {}  # by identity of step times
        self._places_at: list[StepPlaces | None] = []  # by worker
        # A single step is often as long as the one before: above this bound, up to that one.
        self._place = 0
        self._low_ms = self._high_ms = 0.0

    def add(
        self,
        end_ms: float,
        duration_ms: float,
        worker_id: int,
        num_steps: int,
        num_decodes: int,
        context_tokens: int,
    ) -> None:
        """A step or a run is over."""
        if num_decodes == 0:
            return
        self._new_ms += duration_ms * num_decodes
        slack_ms = TOLERANCE_MS + RELATIVE_TOLERANCE * end_ms
        if num_steps > 1:
            places = self._places_of(worker_id)
            places.count(num_decodes, context_tokens, num_steps, self._counts, slack_ms)
            return
        length_ms = duration_ms - slack_ms
        if not self._low_ms < length_ms <= self._high_ms:
            self._look_up(length_ms)
        self._counts[self._place] += num_decodes

    def _look_up(self, length_ms: float) -> None:
        bounds_ms = self._bounds_ms
        place = self._place = bisect_left(bounds_ms, length_ms)
        self._low_ms = bounds_ms[place - 1] if place else -1.0
        self._high_ms = bounds_ms[place] if place < len(bounds_ms) else float("inf")

    def add_stretched(self, gap_ms: float, slack_ms: float) -> None:
        """A gap of a sequence that missed a step; before `total_ms` is asked."""
        self._counts[bisect_left(self._bounds_ms, gap_ms - slack_ms)] += 1
        self._total_ms += gap_ms

    def counts(self) -> list[int]:
        """Gaps by bucket by now."""
        return self._counts.copy()

    def total_ms(self) -> float:
        """The sum of all gaps by now."""
        self._total_ms += self._new_ms
        self._new_ms = 0.0
        return self._total_ms

    def add_run(
        self,
        worker_id: int,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        counts: list[int],
        slack_ms: float,
    ) -> float:
        """Add what of a run under way has been delivered to some counts; returns the gaps' sum."""
        times = self._workers[worker_id].pool.times
        duration_ms = times.decode_run_ms(num_decodes, context_tokens, num_steps)
        places = self._places_of(worker_id)
        places.count(num_decodes, context_tokens, num_steps, counts, slack_ms)
        return duration_ms * num_decodes

    def add_one(self, length_ms: float, number: int, counts: list[int], slack_ms: float) -> float:
        """The same of a single step that a run under way began with."""
        counts[bisect_left(self._bounds_ms, length_ms - slack_ms)] += number
        return length_ms * number

    def _places_of(self, worker_id: int) -> StepPlaces:
        known = self._places_at
        while len(known) <= worker_id:
            known.append(None)
        places = known[worker_id]
        if places is None:
            times = self._workers[worker_id].pool.times
            places = self._places.setdefault(id(times), StepPlaces(times, self._bounds_ms))
            known[worker_id] = places
        return places
