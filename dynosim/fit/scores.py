"""Predicted against measured: statistics side by side, and distances request by request."""

from dataclasses import dataclass

import numpy as np

from dynosim.fit.measurements import Measurements
from dynosim.fit.replay import Predicted
from dynosim.records import FloatArray

STATISTICS = ("mean", "median", "p90", "p95", "p99")
METRICS = ("ttft_ms", "tpot_ms", "latency_ms")
THROUGHPUT = "throughput_tok_s"
_PERCENTILES = {"median": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class Score:
    """One statistic of one metric."""

    metric: str
    statistic: str
    measured: float
    predicted: float

    @property
    def name(self) -> str:
        """As in reports: p95_ttft_ms."""
        return f"{self.statistic}_{self.metric}" if self.statistic else self.metric

    @property
    def error(self) -> float:
        """Relative: 0.01 is 1 % above the measurement."""
        return self.predicted / self.measured - 1 if self.measured else float("nan")


@dataclass(frozen=True, slots=True)
class Distance:
    """How far single requests are off, and how far the distributions are apart."""

    metric: str
    mean_ape: float  # absolute percentage error of a request, as a share
    median_ape: float
    ks: float  # Kolmogorov-Smirnov: largest gap between the two distribution functions


Columns = dict[str, FloatArray]


def columns_of(run: Measurements | Predicted, output_tokens: FloatArray) -> Columns:
    """Per-request metrics; TPOT is NaN for a single token."""
    gaps = np.where(output_tokens > 1, output_tokens - 1, np.nan)
    return {
        "ttft_ms": run.ttft_ms,
        "tpot_ms": run.decode_ms / gaps,
        "latency_ms": run.latency_ms,
    }


def statistic(values: FloatArray, name: str) -> float:
    """Of the values that exist."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan")
    return float(values.mean() if name == "mean" else np.percentile(values, _PERCENTILES[name]))


def scores(
    measured: Measurements, predicted: Measurements | Predicted, rows: slice = slice(None)
) -> list[Score]:
    """Every statistic of every metric over some requests, and throughput over the whole run."""
    outputs = measured.output_tokens.astype(np.float64)
    ours, theirs = columns_of(predicted, outputs), columns_of(measured, outputs)
    table = [
        Score(
            metric,
            name,
            statistic(theirs[metric][rows], name),
            statistic(ours[metric][rows], name),
        )
        for metric in METRICS
        for name in STATISTICS
    ]
    ends_ms = measured.arrival_ms + predicted.latency_ms
    tokens = float(outputs.sum()) * MS_PER_S
    table.append(
        Score(THROUGHPUT, "", tokens / float(measured.end_ms.max()), tokens / float(ends_ms.max()))
    )
    return table


def distances(
    measured: Measurements, predicted: Predicted, rows: slice = slice(None)
) -> list[Distance]:
    """Per metric, over the requests that have it."""
    outputs = measured.output_tokens.astype(np.float64)
    ours, theirs = columns_of(predicted, outputs), columns_of(measured, outputs)
    return [_distance(name, theirs[name][rows], ours[name][rows]) for name in METRICS]


def _distance(metric: str, measured: FloatArray, predicted: FloatArray) -> Distance:
    exists = ~np.isnan(measured) & ~np.isnan(predicted) & (measured > 0)
    measured, predicted = measured[exists], predicted[exists]
    if not len(measured):
        return Distance(metric, float("nan"), float("nan"), float("nan"))
    ape = np.abs(predicted / measured - 1)
    ks = largest_gap(measured, predicted)
    return Distance(metric, float(ape.mean()), float(np.median(ape)), ks)


def largest_gap(one: FloatArray, other: FloatArray) -> float:
    """Kolmogorov and Smirnov's distance of two samples: between their distribution functions."""
    places = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def error_values(table: list[Score]) -> dict[str, float]:
    """Relative error by name."""
    return {score.name: score.error for score in table}


def mean_absolute_error(table: list[Score]) -> float:
    """One number for a table: the mean of its absolute relative errors."""
    return float(np.mean([abs(score.error) for score in table]))


def worst(table: list[Score], metric: str) -> float:
    """Largest absolute relative error among a metric's statistics."""
    return max(abs(score.error) for score in table if score.metric == metric)
