"""Searches the fewest workers that hold a load: how many to try, and what they tell.

It asks for one number of workers after another and is told whether they held the load; it runs
nothing itself. More workers hold what fewer do, so this is the search for a capacity turned round:
sought is the largest number that does not hold the load, and the answer is the next one.
"""

from dataclasses import dataclass, field

from dynosim.sweep.capacity import CapacitySearch, LoadOutcome, LoadRange


@dataclass(slots=True)
class FewestWorkers:
    """Ask `next_workers`, tell `told`, until the next is None. Asking changes nothing.

    The first to try is whatever is told first, or the fewest there may be.
    """

    low: int
    high: int
    target: float  # attainment: of how many requests the SLA must be kept
    _search: CapacitySearch = field(init=False)

    def __post_init__(self) -> None:
        span = LoadRange(float(self.low), float(self.high), tolerance=0.0, is_whole=True)
        self._search = CapacitySearch(span, 1.0 - self.target, float(self.low))

    def told(self, workers: int, outcome: LoadOutcome) -> None:
        """So many workers have been tried at the load."""
        turned = LoadOutcome(
            not outcome.is_carried, _turned(outcome.attainment), _turned(outcome.guess)
        )
        self._search.told(float(workers), turned)

    def next_workers(self) -> int | None:
        """How many to try next; None: the search is at its end."""
        load = self._search.next_load()
        return None if load is None else int(load)

    @property
    def found(self) -> int | None:
        """The fewest that hold the load; None if none do, as far as has been tried."""
        high = self._search.capacity.high
        return None if high is None else int(high)

    @property
    def too_few(self) -> int | None:
        """The most that do not hold it; None if the fewest that were tried do."""
        low = self._search.capacity.low
        return None if low is None else int(low)


def _turned(share: float | None) -> float | None:
    return None if share is None else 1.0 - share
