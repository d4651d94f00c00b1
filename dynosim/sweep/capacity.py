"""Searches the largest load that a layout carries: which loads to try, and what they tell.

Loads are multiples of the workload's own, or requests in flight. The search asks for one load after
another and is told whether the layout carried it; it runs nothing itself, so the same answers give
the same questions whoever gives them.

1. From a guess up or down by a factor of 1.6, until one load is carried and the next is not; by
   more where the attainment of the last two loads, going on as it does, meets the target further
   away. Where it would not meet it at all on the way down, the smallest load is next.
2. Between them by the secant of the attainment's log odds over the load's logarithm, along which
   they fall almost in line; where the odds say nothing (a probe that was stopped early, an
   attainment of 1), or the secant has not halved the bracket in two steps, by the middle.
3. Until the bracket is as narrow as asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, log, sqrt

STEP = 1.6
MAX_STEPS = 8
"""Of the first part; what lies beyond is tried at the end of the range at once."""
LEAP = 8.0
"""The largest step of the first part."""
PAST = 1.05
"""A step to where the target should be met goes so much further, so as to be past it."""
MAX_EXPONENT = 50.0
MARGIN = 0.1
"""The secant keeps so much of the bracket's (logarithmic) width away from its ends."""


@dataclass(frozen=True, slots=True)
class LoadRange:
    """Where the capacity is sought, and how closely.

    `tolerance` is how much larger the smallest load that fails may be than the capacity, as a share
    of it. With `is_whole` loads are whole numbers, and neighbours are close enough.
    """

    low: float
    high: float
    tolerance: float = 0.03
    is_whole: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.low <= self.high:
            raise ValueError(f"an empty range of loads: {self.low:g} to {self.high:g}")

    def within(self, load: float) -> float:
        """The load of the range, and of its kind, that is next to this one."""
        load = min(max(load, self.low), self.high)
        return float(round(load)) if self.is_whole else load

    def is_narrow(self, carried: float, failed: float) -> bool:
        """Whether a bracket needs no further load."""
        if self.is_whole and failed - carried <= 1.0:
            return True
        return failed <= carried * (1.0 + self.tolerance)


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """What a load told.

    `attainment` is None where the probe was stopped before it was known; `guess` is about what it
    would have been then.
    """

    is_carried: bool
    attainment: float | None = None
    guess: float | None = None


@dataclass(frozen=True, slots=True)
class LoadCapacity:
    """The largest load that was carried, as all smaller ones were, and the next that was not.

    `low` is None if none was carried, `high` if none failed: then the capacity is at least `low`.
    `is_monotone` tells that no load was carried above one that failed.
    """

    low: float | None
    high: float | None
    is_monotone: bool = True


def capacity_of(outcomes: Mapping[float, LoadOutcome]) -> LoadCapacity:
    """What all loads that were tried say together; contradictions end at the smaller one."""
    low: float | None = None
    high: float | None = None
    is_monotone = True
    for load in sorted(outcomes):
        if not outcomes[load].is_carried:
            high = load if high is None else high
        elif high is None:
            low = load
        else:
            is_monotone = False
    return LoadCapacity(low, high, is_monotone)


@dataclass(slots=True)
class CapacitySearch:
    """Ask `next_load`, tell `told`, until the next load is None. Asking changes nothing."""

    range: LoadRange
    target: float  # attainment: of how many requests the SLA must be kept
    start: float  # the first load to try
    outcomes: dict[float, LoadOutcome] = field(default_factory=dict)

    @property
    def capacity(self) -> LoadCapacity:
        """What is known so far."""
        return capacity_of(self.outcomes)

    def told(self, load: float, outcome: LoadOutcome) -> None:
        """A load has been tried, this one or any other."""
        self.outcomes[load] = outcome

    def next_load(self) -> float | None:
        """The load to try next; None: the search is at its end."""
        known = self.capacity
        if known.low is None and known.high is None:
            return self.range.within(self.start)
        if known.high is None:
            return self._beyond(STEP, self.range.high)
        if known.low is None:
            return self._beyond(1.0 / STEP, self.range.low)
        if self.range.is_narrow(known.low, known.high):
            return None
        return self._between(known.low, known.high)

    def _beyond(self, factor: float, end: float) -> float | None:
        """Upwards from the highest load, or downwards from the lowest."""
        is_up = factor > 1.0
        ordered = sorted(self.outcomes, reverse=is_up)
        last, end = ordered[0], self.range.within(end)
        if last >= end if is_up else last <= end:
            return None  # the first load may lie beyond the range
        load = last * factor
        crossing = self._crossing(*ordered[:2]) if len(ordered) > 1 else None
        if crossing is not None and is_up:
            load = max(load, min(crossing * PAST, last * LEAP))
        elif crossing is not None:
            load = min(load, max(crossing / PAST, last / LEAP))
        load = self.range.within(load)
        is_out_of_reach = not is_up and crossing is not None and crossing < end
        is_slow = len(self.outcomes) > MAX_STEPS or is_out_of_reach
        return end if is_slow or load == last else load

    def _crossing(self, last: float, before: float) -> float | None:
        """Where attainment, as it went from the load `before` to the `last`, meets the target.

        0 where it goes away from it on the way down; None where it is not known.
        """
        told = [self.outcomes[load] for load in (before, last)]
        odds = [_log_odds(o.guess if o.attainment is None else o.attainment) for o in told]
        target = _log_odds(self.target)
        if odds[0] is None or odds[1] is None or target is None:
            return None
        way = log(last / before)
        is_towards = (odds[1] - odds[0]) * (target - odds[1]) > 0.0
        if not is_towards:
            return 0.0 if way < 0.0 else None
        exponent = way * (target - odds[1]) / (odds[1] - odds[0])
        return last * exp(min(max(exponent, -MAX_EXPONENT), MAX_EXPONENT))

    def _between(self, carried: float, failed: float) -> float:
        """A load inside the bracket."""
        widths = self._widths()
        middle = sqrt(carried * failed)
        is_slow = len(widths) > 2 and widths[-1] > widths[-3] / 2
        load = middle if is_slow else self._secant(carried, failed, middle)
        if not self.range.is_whole:
            return load
        return min(max(float(round(load)), carried + 1.0), failed - 1.0)

    def _widths(self) -> list[float]:
        """Of the bracket since there is one, after each load, on the logarithm's scale."""
        told: dict[float, LoadOutcome] = {}
        widths: list[float] = []
        for load, outcome in self.outcomes.items():
            told[load] = outcome
            known = capacity_of(told)
            if known.low is not None and known.high is not None:
                widths.append(log(known.high / known.low))
        return widths

    def _secant(self, carried: float, failed: float, middle: float) -> float:
        """Where the attainment would be the target, if its log odds fell in line."""
        above = _log_odds(self.outcomes[carried].attainment)
        below = _log_odds(self.outcomes[failed].attainment)
        target = _log_odds(self.target)
        if above is None or below is None or target is None or not above > target > below:
            return middle
        share = (above - target) / (above - below)
        share = min(max(share, MARGIN), 1.0 - MARGIN)
        return carried * exp(share * log(failed / carried))


def _log_odds(share: float | None) -> float | None:
    return None if share is None or not 0.0 < share < 1.0 else log(share / (1.0 - share))
