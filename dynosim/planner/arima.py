"""One step ahead by an ARIMA(p, d, q) whose order is chosen anew each time, from a short series.

p up to 2, d and q up to 1, with a drift or without. Coefficients by the two regressions of Hannan
and Rissanen (Biometrika 69, 1982): a long autoregression gives the shocks, then values are
regressed on values and shocks before them. Among the orders the corrected AIC of the errors of one
step decides; all orders are judged on the same points. A choice whose values or shocks would grow
without end is none.
"""

from math import log, sqrt

import numpy as np

from dynosim.records import FloatArray

_MAX_P = 2
_LONG_ORDER = 4  # of the autoregression that the shocks are from
_SERIES = ((0, True), (1, False), (1, True))
"""d, and whether the values have a mean, or with d = 1 a drift"""
_LARGEST_ROOT = 0.98


def arima_forecast(values: FloatArray) -> float:
    """The value after `values`, of which there is at least one."""
    if values.max() == values.min():
        return float(values[-1])
    scale = float(np.mean((values - values.mean()) ** 2))
    best, foreseen = float("inf"), float(values[-1])
    for d, has_mean in _SERIES:
        series = _Series(values, d, has_mean)
        for p in range(_MAX_P + 1):
            for q in (0, 1):
                found = series.fit(p, q, scale)
                if found is not None and found[0] < best - 1e-9:
                    best, foreseen = found
    return foreseen


class _Series:
    """Values, or their differences, without their mean; and the shocks among them."""

    def __init__(self, values: FloatArray, d: int, has_mean: bool) -> None:
        num_values = len(values)
        series: FloatArray = np.diff(values) if d else values
        mean = float(series.mean()) if has_mean else 0.0
        self._series = series - mean
        self._listed: list[float] = self._series.tolist()
        self._long_order = min(_LONG_ORDER, num_values // 4)
        self._shocks = _shocks(self._series, self._long_order)
        self._start = len(series) - num_values + _judged_from(num_values)
        self._has_mean = has_mean
        self._base = mean
        self._last = float(values[-1]) if d else 0.0

    def fit(self, p: int, q: int, scale: float) -> tuple[float, float] | None:
        """Corrected AIC and forecast of one order; None where it cannot be.

        `scale`: mean square of the values.
        """
        series, start = self._series, self._start
        num_judged = len(series) - start
        num_free = p + q + self._has_mean + 1  # with the mean and the variance
        least = max(p, q) + (self._long_order if q else 0)
        if start < least or num_judged <= num_free + 1:
            return None
        columns = [series[start - lag : len(series) - lag] for lag in range(1, p + 1)]
        columns += [self._shocks[start - lag : len(series) - lag] for lag in range(1, q + 1)]
        weights: list[float] = []
        if columns:
            solved = np.linalg.lstsq(np.column_stack(columns), series[start:], rcond=None)[0]
            weights = solved.tolist()
        by_value, by_shock = weights[:p], weights[p:]
        if not _stays_bounded(by_value) or not _stays_bounded([-weight for weight in by_shock]):
            return None
        errors, following = _run(self._listed, by_value, by_shock)
        variance = float(np.mean(np.array(errors[start:]) ** 2))
        fit = num_judged * log(max(variance, 1e-12 * scale))
        penalty = 2 * num_free * num_judged / (num_judged - num_free - 1)
        return fit + penalty, following + self._base + self._last


def _judged_from(num_values: int) -> int:
    """The first value whose error counts, for any order."""
    return 2 + _MAX_P if num_values < 12 else 1 + _MAX_P + _LONG_ORDER


def _shocks(series: FloatArray, order: int) -> FloatArray:
    """What a long autoregression does not explain; 0 where it has nothing to go by."""
    shocks = np.zeros(len(series))
    if order == 0 or len(series) < 3 * order:
        return shocks
    lags = np.column_stack([series[order - lag : len(series) - lag] for lag in range(1, order + 1)])
    weights = np.linalg.lstsq(lags, series[order:], rcond=None)[0]
    shocks[order:] = series[order:] - lags @ weights
    return shocks


def _stays_bounded(weights: list[float]) -> bool:
    """Whether what follows its own past by up to two `weights` dies out, and not too slowly."""
    if not weights:
        return True
    first, second = weights[0], weights[1] if len(weights) > 1 else 0.0
    inner = first * first + 4 * second
    largest = (abs(first) + sqrt(inner)) / 2 if inner >= 0 else sqrt(-second)
    return largest <= _LARGEST_ROOT


def _run(
    series: list[float], by_value: list[float], by_shock: list[float]
) -> tuple[list[float], float]:
    """Errors of one step over the series, and what follows it."""
    p, q = len(by_value), len(by_shock)
    values, errors = [0.0] * p + series, [0.0] * q
    for at in range(len(series) + 1):
        foreseen = unexpected = 0.0
        for lag in range(p):
            foreseen += by_value[lag] * values[p + at - 1 - lag]
        for lag in range(q):
            unexpected += by_shock[lag] * errors[q + at - 1 - lag]
        foreseen += unexpected
        if at == len(series):
            return errors[q:], foreseen
        errors.append(values[p + at] - foreseen)
    raise AssertionError("the loop returns")
