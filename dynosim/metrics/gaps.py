"""Statistics over every inter-token gap of a run, without keeping one number per gap.

A run of a few thousand requests has millions of gaps, in the forms that `gap_pool` tells. Sums over
smooth pieces have a closed form, percentiles look only at the steps next to them. Every number is
exact (up to the rounding of a sum), whatever the shape of the step-time model, and memory does not
grow with the number of steps.
"""

from typing import NamedTuple

import numpy as np

from dynosim.metrics.decode_runs import DecodeTimes
from dynosim.metrics.gap_pool import GapPool, pool_of
from dynosim.metrics.gap_ranks import GapRanks
from dynosim.metrics.percentiles import (
    PERCENTILES,
    STATISTICS,
    Summary,
    median,
    nearest_rank,
)
from dynosim.records import FloatArray, StepLog

MS_PER_S = 1000.0


class GapSummary(NamedTuple):
    """Statistics over all gaps (ms) and over tokens per second per user, 1000 / gap of gaps > 0."""

    gap_ms: Summary
    token_rate: Summary


def summarize_gaps(
    steps: StepLog,
    stalled_gaps_ms: FloatArray,
    timing: DecodeTimes,
    step_time_scale: FloatArray | None = None,
) -> GapSummary:
    """Exact statistics of all gaps between consecutive tokens.

    The pool holds `num_decodes` gaps per step of `steps` plus `stalled_gaps_ms`. It includes gaps
    of requests that failed or were cut off, because steps do not tell whose tokens they made; a run
    in which every admitted request completed has no such gaps. `step_time_scale` is by worker.
    """
    pool = pool_of(steps, stalled_gaps_ms, timing, step_time_scale)
    count = pool.num_gaps
    if not count:
        return GapSummary(Summary.empty(), Summary.empty())
    totals = _Totals(pool)
    positive = count - totals.zeros
    gap_ranks = {name: nearest_rank(count, q) for name, q in PERCENTILES.items()}
    # The q-th percentile of 1000 / gap is at the mirrored rank among the gaps > 0.
    rate_ranks = {
        name: count - 1 - nearest_rank(positive, q) for name, q in PERCENTILES.items() if positive
    }
    ranks = GapRanks(pool, totals.lowest_ms, totals.highest_ms)
    found = ranks.select({*gap_ranks.values(), *rate_ranks.values()})
    gaps = _assembled(
        totals.gaps.mean_and_std(count),
        (totals.lowest_ms, totals.highest_ms),
        {name: found[rank] for name, rank in gap_ranks.items()},
    )
    if not positive:
        return GapSummary(Summary(count, gaps), Summary.empty())
    rates = _assembled(
        totals.rates.mean_and_std(positive),
        (MS_PER_S / totals.highest_ms, MS_PER_S / totals.lowest_positive_ms),
        {name: MS_PER_S / found[rank] for name, rank in rate_ranks.items()},
    )
    return GapSummary(Summary(count, gaps), Summary(positive, rates))


def _assembled(
    mean_and_std: tuple[float, float],
    extremes: tuple[float, float],
    percentiles: dict[str, float],
) -> dict[str, float | None]:
    mean, std = mean_and_std
    low, high = extremes
    # A mean of equal numbers may round to just outside their range.
    known = {"mean": min(max(mean, low), high), "min": low, "max": high, "std": std}
    return {name: (known | percentiles)[name] for name in STATISTICS}


class _Moments:
    """Weighted sums of deviations from a fixed shift, which keeps the variance well conditioned."""

    __slots__ = ("first", "second", "shift")

    def __init__(self, shift: float) -> None:
        self.shift = shift
        self.first = 0.0
        self.second = 0.0

    def add(self, values: FloatArray, weights: FloatArray) -> None:
        # Plain products and sums: BLAS dot products differ between processors in the last bit.
        deviations = values - self.shift
        products = weights * deviations
        self.first += float(products.sum())
        products *= deviations
        self.second += float(products.sum())

    def mean_and_std(self, count: float) -> tuple[float, float]:
        mean = self.first / count
        variance = max(0.0, self.second / count - mean * mean)
        return self.shift + mean, float(np.sqrt(variance))


class _Totals:
    """Sums and extremes of a pool that is not empty."""

    def __init__(self, pool: GapPool) -> None:
        typical_ms = median(pool.sample_ms())
        self.gaps = _Moments(typical_ms)
        self.rates = _Moments(MS_PER_S / typical_ms if typical_ms > 0 else 0.0)
        self.zeros = 0  # gaps without length, which have no rate
        self.lowest_ms = self.lowest_positive_ms = np.inf
        self.highest_ms = 0.0
        for gaps_ms, weights in pool.single_gaps():
            self._add_single(gaps_ms, weights)
        for gaps_ms, weights in pool.stand_ins():
            self._add(gaps_ms, weights)
        if pool.pieces.runs.num_runs:
            self._reach(float(pool.pieces.low_ms.min()), float(pool.pieces.high_ms.max()))

    def _add_single(self, gaps_ms: FloatArray, weights: FloatArray) -> None:
        lowest_ms = float(gaps_ms.min())
        if lowest_ms <= 0:
            self.lowest_ms = min(self.lowest_ms, lowest_ms)
            is_zero = gaps_ms <= 0
            self.zeros += int(weights[is_zero].sum())
            self.gaps.add(gaps_ms[is_zero], weights[is_zero])
            gaps_ms, weights = gaps_ms[~is_zero], weights[~is_zero]
        if len(gaps_ms):
            self._reach(float(gaps_ms.min()), float(gaps_ms.max()))
            self._add(gaps_ms, weights)

    def _add(self, gaps_ms: FloatArray, weights: FloatArray) -> None:
        self.gaps.add(gaps_ms, weights)
        self.rates.add(MS_PER_S / gaps_ms, weights)

    def _reach(self, low_ms: float, high_ms: float) -> None:
        self.lowest_ms = min(self.lowest_ms, low_ms)
        self.lowest_positive_ms = min(self.lowest_positive_ms, low_ms)
        self.highest_ms = max(self.highest_ms, high_ms)
