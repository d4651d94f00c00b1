"""How far a difference between two runs may be off: the bootstrap by sessions.

With the same requests in both, the same sessions are drawn in both, so what they have in common
drops out; else each run's are drawn on their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.percentiles import nearest_rank
from dynosim.metrics.resampling import session_draws
from dynosim.records import FloatArray, IntArray

LEVEL = (2.5, 97.5)
_MIN_SESSIONS = 10  # fewer tell no interval
Statistic = Callable[[FloatArray, FloatArray], float]
"""Of ascending values, each with how often it counts; NaN if none does."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of requests, each with the number of its session."""

    values: FloatArray
    session: IntArray

    def of(self, kept: NDArray[np.bool_]) -> "Sample":
        """Some of the requests."""
        return Sample(self.values[kept], self.session[kept])

    def ascending(self) -> "Sample":
        """The requests by their values."""
        order = np.argsort(self.values, kind="stable")
        return Sample(self.values[order], self.session[order])


def interval_of_change(
    a: Sample, b: Sample, statistic: Statistic, *, is_paired: bool
) -> tuple[float, float] | None:
    """95 % interval of what `statistic` is in `b` more than in `a`; None if sessions are too few.

    Paired samples have the same sessions under the same numbers.
    """
    num_sessions = [_num_sessions(sample) for sample in (a, b)]
    if min(len(np.unique(sample.session)) for sample in (a, b)) < _MIN_SESSIONS:
        return None
    draws_a = session_draws(max(num_sessions) if is_paired else num_sessions[0])
    draws_b = draws_a if is_paired else session_draws(num_sessions[1], stream=1)
    a, b = a.ascending(), b.ascending()
    changes = [
        statistic(b.values, drawn_b[b.session]) - statistic(a.values, drawn_a[a.session])
        for drawn_a, drawn_b in zip(draws_a, draws_b, strict=True)
    ]
    low, high = np.nanpercentile(changes, LEVEL).tolist()
    return low, high


def _num_sessions(sample: Sample) -> int:
    return int(sample.session.max(initial=-1)) + 1


def mean(values: FloatArray, counts: FloatArray) -> float:
    """The weighted mean."""
    total = float(counts.sum())
    return float(values @ counts) / total if total else float("nan")


def rank_statistic(percent: int) -> Statistic:
    """The percentile as reports have it: the nearest rank, each value as often as it counts."""

    def statistic(values: FloatArray, counts: FloatArray) -> float:
        ends = np.cumsum(counts)
        if not len(ends) or ends[-1] == 0:
            return float("nan")
        rank = nearest_rank(int(ends[-1]), percent)
        return float(values[np.searchsorted(ends, rank, side="right")])

    return statistic
