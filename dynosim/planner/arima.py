"""One step ahead by an ARIMA(p, d, q) whose order is chosen anew each time, from a short series.

p up to 2, d and q up to 1, with a drift or without. Coefficients by the two regressions of Hannan
and Rissanen (Biometrika 69, 1982): a long autoregression gives the shocks, then values are
regressed on values and shocks before them. Among the orders the corrected AIC of the errors of one
step decides; all orders are judged on the same points. A choice whose values or shocks would grow
without end is none.
"""

from itertools import product
from math import log

import numpy as np

from dynosim.records import FloatArray

_MAX_P = 2
_LONG_ORDER = 4  # of the autoregression that the shocks are from
_ORDERS = tuple(product(((0, True), (1, False), (1, True)), range(_MAX_P + 1), (0, 1)))
"""((d, whether values have a mean, or with d = 1 a drift), p, q)"""
_LARGEST_ROOT = 0.98


def arima_forecast(values: FloatArray) -> float:
    """The value after `values`, of which there is at least one."""
    if values.max() == values.min():
        return float(values[-1])
    best, foreseen = np.inf, float(values[-1])
    for (d, has_mean), p, q in _ORDERS:
        found = _fit(values, d, p, q, has_mean=has_mean)
        if found is not None and found[0] < best - 1e-9:
            best, foreseen = found
    return foreseen


def _fit(
    values: FloatArray, d: int, p: int, q: int, *, has_mean: bool
) -> tuple[float, float] | None:
    """Corrected AIC and forecast of one order; None where it cannot be."""
    series: FloatArray = np.diff(values) if d else values
    mean = float(series.mean()) if has_mean else 0.0
    series = series - mean
    long_order = min(_LONG_ORDER, len(values) // 4) if q else 0
    start = len(series) - len(values) + _judged_from(len(values))
    num_judged = len(series) - start
    num_free = p + q + has_mean + 1  # with the mean and the variance
    if start < max(p, q) + long_order or num_judged <= num_free + 1:
        return None
    shocks = _shocks(series, long_order) if q else np.zeros(len(series))
    columns = [series[start - lag : len(series) - lag] for lag in range(1, p + 1)]
    columns += [shocks[start - lag : len(series) - lag] for lag in range(1, q + 1)]
    weights: FloatArray = np.zeros(0)
    if columns:
        solved = np.linalg.lstsq(np.column_stack(columns), series[start:], rcond=None)[0]
        weights = solved.astype(np.float64)
    by_value, by_shock = weights[:p], weights[p:]
    if not _stays_bounded(by_value) or not _stays_bounded(-by_shock):
        return None
    errors, following = _run(series, by_value, by_shock)
    variance = float(np.mean(errors[start:] ** 2))
    scale = float(np.mean((values - values.mean()) ** 2))
    fit = num_judged * log(max(variance, 1e-12 * scale))
    penalty = 2 * num_free * num_judged / (num_judged - num_free - 1)
    return fit + penalty, following + mean + (float(values[-1]) if d else 0.0)


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


def _stays_bounded(weights: FloatArray) -> bool:
    """Whether what follows its own past by `weights` dies out, and not too slowly."""
    return len(weights) == 0 or bool(
        np.abs(np.roots([1.0, *(-weights).tolist()])).max(initial=0.0) <= _LARGEST_ROOT
    )


def _run(
    series: FloatArray, by_value: FloatArray, by_shock: FloatArray
) -> tuple[FloatArray, float]:
    """Errors of one step over the series, and what follows it."""
    p, q = len(by_value), len(by_shock)
    values, errors = [0.0] * p + series.tolist(), [0.0] * q
    for at in range(len(series) + 1):
        foreseen = sum(w * values[p + at - 1 - lag] for lag, w in enumerate(by_value.tolist()))
        foreseen += sum(w * errors[q + at - 1 - lag] for lag, w in enumerate(by_shock.tolist()))
        if at == len(series):
            return np.array(errors[q:]), foreseen
        errors.append(values[p + at] - foreseen)
    raise AssertionError("the loop returns")
