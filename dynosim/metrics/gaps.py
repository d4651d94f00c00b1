"""Statistics over every inter-token gap of a run, without keeping one number per gap.

A run of a few thousand requests has millions of gaps. The step log tells them apart by rows: each
step of a row that decodes n sequences gives n gaps of that step's length. One pass over the steps,
a cache-sized chunk at a time, sums the moments and counts the gaps per bin of a fine histogram; the
percentiles then need only the gaps of the few bins that hold them, which are computed again and
sorted. Every number is exact (up to the rounding of a sum), whatever the shape of the step-time
model, and memory does not grow with the number of steps.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.decode_runs import Chunk, DecodeRuns, DecodeTimes, expand
from dynosim.metrics.percentiles import (
    PERCENTILES,
    STATISTICS,
    Summary,
    median,
    nearest_rank,
    weighted_order_statistic,
)
from dynosim.records import FloatArray, IntArray, StepLog

NUM_BINS = 4096
MS_PER_S = 1000.0


class GapSummary(NamedTuple):
    """Statistics over all gaps (ms) and over tokens per second per user, 1000 / gap of gaps > 0."""

    gap_ms: Summary
    token_rate: Summary


class _Bins(NamedTuple):
    """Equal bins between two gap lengths; the first and the last are open-ended."""

    low_ms: float
    per_ms: float

    def of(self, gaps_ms: FloatArray) -> IntArray:
        scaled = gaps_ms - self.low_ms
        scaled *= self.per_ms
        np.clip(scaled, 0, NUM_BINS - 1, out=scaled)
        return scaled.astype(np.int64)


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
    values, weights, runs = _split(steps, stalled_gaps_ms, step_time_scale)
    pool = _Pool(values, weights, runs, timing)
    if pool.count == 0:
        return GapSummary(Summary.empty(), Summary.empty())
    return pool.summary()


def _split(
    steps: StepLog, stalled_gaps_ms: FloatArray, step_time_scale: FloatArray | None
) -> tuple[FloatArray, FloatArray, DecodeRuns]:
    """Gaps whose length the log states, their weights, and the runs that must be computed."""
    decoding = steps.num_decodes > 0
    single = decoding & (steps.num_steps == 1)
    several = decoding & (steps.num_steps > 1)
    values = np.concatenate((steps.duration_ms[single], stalled_gaps_ms))
    weights = np.concatenate(
        (steps.num_decodes[single].astype(np.float64), np.ones(len(stalled_gaps_ms)))
    )
    runs = DecodeRuns(
        steps.num_decodes[several],
        steps.decode_context_tokens[several],
        steps.num_steps[several],
        None if step_time_scale is None else step_time_scale[steps.worker_id[several]],
    )
    return values, weights, runs


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


class _Pool:
    """The gaps of a run and what one pass over them yields."""

    def __init__(
        self, values: FloatArray, weights: FloatArray, runs: DecodeRuns, timing: DecodeTimes
    ) -> None:
        self._values = values
        self._weights = weights
        self._runs = runs
        self._timing = timing
        self.count = int(weights.sum()) + int((runs.num_decodes * runs.num_steps).sum())
        if self.count:
            self._pass()

    def _pass(self) -> None:
        """Fill the moments, the extremes of every row and the histogram."""
        firsts, lasts = self._run_ends()
        self._bins = self._choose_bins(firsts, lasts)
        typical_ms = self._typical_ms(firsts)
        self._moments = _Moments(typical_ms)
        self._rates = _Moments(MS_PER_S / typical_ms if typical_ms > 0 else 0.0)
        self._histogram = np.zeros(NUM_BINS)
        self._zeros = 0
        self._row_min = np.empty(len(self._runs.num_steps))
        self._row_max = np.empty(len(self._runs.num_steps))
        self._count_gaps(self._values, self._weights)
        for chunk in expand(self._runs, self._timing):
            self._count_gaps(chunk.gaps_ms, chunk.weights)
            self._row_min[chunk.rows] = np.minimum.reduceat(chunk.gaps_ms, chunk.row_starts)
            self._row_max[chunk.rows] = np.maximum.reduceat(chunk.gaps_ms, chunk.row_starts)
        self._cumulative = np.cumsum(self._histogram)

    def _count_gaps(self, gaps_ms: FloatArray, weights: FloatArray) -> None:
        if len(gaps_ms) == 0:
            return
        self._moments.add(gaps_ms, weights)
        self._histogram += np.bincount(self._bins.of(gaps_ms), weights=weights, minlength=NUM_BINS)
        if gaps_ms.min() <= 0:
            positive = gaps_ms > 0
            self._zeros += int(weights[~positive].sum())
            gaps_ms, weights = gaps_ms[positive], weights[positive]
        self._rates.add(MS_PER_S / gaps_ms, weights)

    def _run_ends(self) -> tuple[FloatArray, FloatArray]:
        runs = self._runs
        last_context = runs.context_tokens + (runs.num_steps - 1) * runs.num_decodes
        firsts = self._timing.decode_step_ms_array(runs.num_decodes, runs.context_tokens)
        lasts = self._timing.decode_step_ms_array(runs.num_decodes, last_context)
        return (firsts, lasts) if runs.scale is None else (firsts * runs.scale, lasts * runs.scale)

    def _choose_bins(self, firsts: FloatArray, lasts: FloatArray) -> _Bins:
        """Bins over the bulk of the runs' gaps; where they lie costs time, never exactness."""
        if len(firsts) == 0:
            return _Bins(0.0, 0.0)
        lows, highs = np.sort(np.minimum(firsts, lasts)), np.sort(np.maximum(firsts, lasts))
        tail = len(firsts) // 500
        low, high = float(lows[tail]), float(highs[-1 - tail])
        if high <= low:
            low, high = float(lows[0]), float(highs[-1])
        return _Bins(low, NUM_BINS / (high - low) if high > low else 0.0)

    def _typical_ms(self, firsts: FloatArray) -> float:
        sample = firsts if len(firsts) else self._values
        return median(sample)

    def summary(self) -> GapSummary:
        positive = self.count - self._zeros
        gap_ranks = {name: nearest_rank(self.count, q) for name, q in PERCENTILES.items()}
        # The q-th percentile of 1000 / gap is at the mirrored rank among the gaps > 0.
        rate_ranks = {
            name: self.count - 1 - nearest_rank(positive, q)
            for name, q in PERCENTILES.items()
            if positive
        }
        found = self._select({*gap_ranks.values(), *rate_ranks.values()})
        gaps = self._assemble(
            self._moments.mean_and_std(self.count),
            self._extremes(),
            {name: found[rank] for name, rank in gap_ranks.items()},
        )
        if not positive:
            return GapSummary(Summary(self.count, gaps), Summary.empty())
        low, high = self._positive_extremes()
        rates = self._assemble(
            self._rates.mean_and_std(positive),
            (MS_PER_S / high, MS_PER_S / low),
            {name: MS_PER_S / found[rank] for name, rank in rate_ranks.items()},
        )
        return GapSummary(Summary(self.count, gaps), Summary(positive, rates))

    @staticmethod
    def _assemble(
        mean_and_std: tuple[float, float],
        extremes: tuple[float, float],
        percentiles: dict[str, float],
    ) -> dict[str, float | None]:
        mean, std = mean_and_std
        low, high = extremes
        # A mean of equal numbers may round to just outside their range.
        known = {"mean": min(max(mean, low), high), "min": low, "max": high, "std": std}
        return {name: (known | percentiles)[name] for name in STATISTICS}

    def _extremes(self) -> tuple[float, float]:
        lows = np.concatenate((self._values, self._row_min))
        highs = np.concatenate((self._values, self._row_max))
        return float(lows.min()), float(highs.max())

    def _positive_extremes(self) -> tuple[float, float]:
        low, high = self._extremes()
        if low > 0:
            return low, high
        candidates = [self._values[self._values > 0]]
        candidates += [chunk.gaps_ms[chunk.gaps_ms > 0] for chunk in self._zero_rows()]
        candidates.append(self._row_min[self._row_min > 0])
        return float(min(part.min() for part in candidates if len(part))), high

    def _zero_rows(self) -> Iterator[Chunk]:
        return expand(self._runs.take((self._row_min <= 0) & (self._row_max > 0)), self._timing)

    def _select(self, ranks: set[int]) -> dict[int, float]:
        """The gaps at these indices of the sorted pool."""
        bins = {rank: int(np.searchsorted(self._cumulative, rank, side="right")) for rank in ranks}
        wanted = np.zeros(NUM_BINS, dtype=np.bool_)
        wanted[list(bins.values())] = True
        values, weights = self._collect(wanted)
        members = self._bins.of(values)
        found: dict[int, float] = {}
        for rank, index in bins.items():
            below = int(self._cumulative[index - 1]) if index else 0
            inside = members == index
            found[rank] = weighted_order_statistic(values[inside], weights[inside], rank - below)
        return found

    def _collect(self, wanted: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
        """All gaps, with their weights, that lie in the wanted bins."""
        inside = wanted[self._bins.of(self._values)]
        values, weights = [self._values[inside]], [self._weights[inside]]
        runs = self._runs
        flat = self._row_min == self._row_max  # one length for the whole row: no need to expand it
        flat_inside = flat & wanted[self._bins.of(self._row_min)]
        values.append(self._row_min[flat_inside])
        weights.append((runs.num_decodes * runs.num_steps)[flat_inside].astype(np.float64))
        before = np.concatenate(([0], np.cumsum(wanted)))
        low, high = self._bins.of(self._row_min), self._bins.of(self._row_max)
        touching = ~flat & (before[high + 1] > before[low])
        for chunk in expand(runs.take(touching), self._timing):
            inside = wanted[self._bins.of(chunk.gaps_ms)]
            values.append(chunk.gaps_ms[inside])
            weights.append(chunk.weights[inside])
        return np.concatenate(values), np.concatenate(weights)
