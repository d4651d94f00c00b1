"""Curves out of columns: distributions, percentiles per interval, and numbers for JSON."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.timeline import cut_at_borders
from dynosim.records import FloatArray, IntArray, StepLog

MAX_CURVE_POINTS = 400
_SIGNIFICANT_DIGITS = 6


def rounded(values: NDArray[Any]) -> list[float | int | None]:
    """The values for JSON, to six significant digits; None for NaN."""
    if np.issubdtype(values.dtype, np.integer):
        return [int(value) for value in values.tolist()]
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    return int(short) if short.is_integer() else short


def distribution(values: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Points of the cumulative distribution: values, ascending, and shares at or below each.

    At most MAX_CURVE_POINTS points of the exact curve, evenly spaced in share, denser at the upper
    end; both ends included.
    """
    known = ~np.isnan(values) & (weights > 0)
    order = np.argsort(values[known], kind="stable")
    ordered, cumulative = values[known][order], np.cumsum(weights[known][order])
    if len(ordered) == 0:
        return ordered, cumulative
    shares = cumulative / cumulative[-1]
    half = MAX_CURVE_POINTS // 2
    wanted = np.concatenate((np.linspace(0, 1, half), 1 - np.geomspace(1e-5, 0.5, half)))
    picked = np.unique(np.minimum(np.searchsorted(shares, np.sort(wanted)), len(shares) - 1))
    picked = np.unique(np.concatenate(([0], picked, [len(shares) - 1])))
    return ordered[picked], shares[picked]


def interval_percentiles(
    interval: IntArray,
    values: FloatArray,
    weights: FloatArray,
    *,
    num_intervals: int,
    percents: tuple[float, ...],
) -> list[FloatArray]:
    """Per percent, the weighted percentile of the values in each interval; NaN in empty ones."""
    order = np.lexsort((values, interval))
    ordered, cumulative = values[order], np.cumsum(weights[order])
    totals = np.bincount(interval, weights, num_intervals)
    before = np.cumsum(totals) - totals
    filled = totals > 0
    curves = []
    for percent in percents:
        target = before + totals * (percent / 100)
        position = np.searchsorted(cumulative, target * (1 - 1e-12), side="left")
        curve = np.full(num_intervals, np.nan)
        curve[filled] = ordered[np.minimum(position[filled], len(ordered) - 1)]
        curves.append(curve)
    return curves


def mean_row_gaps(steps: StepLog) -> tuple[FloatArray, FloatArray]:
    """Mean gap and number of gaps of every row that decodes; inside a run gaps differ little."""
    decoding = steps.num_decodes > 0
    gaps = steps.duration_ms[decoding] / steps.num_steps[decoding]
    weights = (steps.num_decodes * steps.num_steps)[decoding].astype(np.float64)
    return gaps, weights


def gaps_by_interval(
    steps: StepLog, interval_ms: float, num_intervals: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Interval, mean gap and number of gaps of every piece of a decoding row."""
    pieces = cut_at_borders(steps, interval_ms, num_intervals)
    count = steps.num_decodes * steps.num_steps
    kept = (count[pieces.row] > 0) & (pieces.share > 0)
    row = pieces.row[kept]
    gaps = steps.duration_ms[row] / steps.num_steps[row]
    return pieces.interval[kept], gaps, count[row] * pieces.share[kept]


def every_nth(count: int, limit: int) -> slice:
    """A slice that keeps at most `limit` of `count` points, evenly."""
    return slice(None, None, max(1, -(-count // limit)))
