"""Predicted against measured: metric by metric, and request by request."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynosim.metrics.percentiles import summarize_sample
from dynosim.records import FloatArray, RequestLog, RequestStatus

TOLERANCE = 0.10
"""A prediction is good when it is no farther than so much of the measured value from it."""

_STATISTICS = {"mean": "mean", "p50": "median", "p90": "p90", "p99": "p99"}
_LATENCIES = {
    "TTFT": "ttft_ms",
    "ITL": "itl_ms",
    "TPOT": "tpot_ms",
    "end-to-end": "e2e_latency_ms",
}
METRICS: tuple[tuple[str, str, str], ...] = (
    *(
        (f"{name} {label}", f"{statistic}_{metric}", "ms")
        for name, metric in _LATENCIES.items()
        for label, statistic in _STATISTICS.items()
    ),
    ("request throughput", "request_throughput_rps", "requests/s"),
    ("output throughput", "output_throughput_tok_s", "tokens/s"),
    ("cache hit rate", "prefix_cache_reused_ratio", "of prompt tokens"),
)
"""Name, key of the report, unit."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric. None where one side does not have it."""

    metric: str
    key: str
    unit: str
    predicted: float | None
    measured: float | None
    interval: tuple[float, float] | None = None  # of the prediction; None: not known

    @property
    def is_inside_interval(self) -> bool | None:
        """Whether the measured value lies in the prediction's interval; None if there is none."""
        if self.interval is None or self.measured is None:
            return None
        return self.interval[0] <= self.measured <= self.interval[1]

    @property
    def difference(self) -> float | None:
        """Of the prediction from the measured value, relative to that; None for one to nothing."""
        if self.predicted is None or self.measured is None:
            return None
        if self.measured == 0:
            return 0.0 if self.predicted == 0 else None
        return self.predicted / self.measured - 1

    @property
    def is_good(self) -> bool | None:
        """Whether the prediction is within the tolerance; None if there is nothing to compare."""
        if self.predicted is None or self.measured is None:
            return None
        return self.difference is not None and abs(self.difference) <= TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "difference": self.difference,
            "is_within_tolerance": self.is_good,
            "is_inside_interval": self.is_inside_interval,
        }


@dataclass(frozen=True, slots=True)
class RequestErrors:
    """How one latency of the same requests differs, over requests that completed on both sides."""

    num_requests: int
    absolute_percentage_error: dict[str, float | None]  # statistic -> share of the measured value
    kolmogorov_smirnov: float | None  # largest distance between the two distributions


def compare_reports(
    predicted: Mapping[str, Any],
    measured: Mapping[str, Any],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> list[Comparison]:
    """All metrics, in the order of METRICS; `intervals` are the prediction's, by key."""
    return [
        Comparison(
            name, key, unit, predicted.get(key), measured.get(key), (intervals or {}).get(key)
        )
        for name, key, unit in METRICS
    ]


def compare_requests(predicted: RequestLog, measured: RequestLog) -> dict[str, RequestErrors]:
    """Per latency, for two logs of the same requests in the same order.

    Raises: ValueError if the logs have different lengths.
    """
    if len(predicted.status) != len(measured.status):
        raise ValueError(
            f"{len(predicted.status)} requests predicted, {len(measured.status)} measured"
        )
    both = (predicted.status == RequestStatus.COMPLETED) & (
        measured.status == RequestStatus.COMPLETED
    )
    return {
        name: _request_errors(latency_ms(predicted, name)[both], latency_ms(measured, name)[both])
        for name in ("ttft_ms", "tpot_ms", "e2e_ms")
    }


def latency_ms(log: RequestLog, name: str) -> FloatArray:
    """A latency of every request, as `dynosim.metrics.report.Latencies` defines it."""
    from dynosim.metrics.report import Latencies

    values: FloatArray = getattr(Latencies.of(log), name)
    return values


def _request_errors(predicted: FloatArray, measured: FloatArray) -> RequestErrors:
    known = ~np.isnan(predicted) & ~np.isnan(measured)
    predicted, measured = predicted[known], measured[known]
    nonzero = measured > 0
    errors = np.abs(predicted[nonzero] / measured[nonzero] - 1)
    return RequestErrors(
        int(known.sum()),
        summarize_sample(errors).statistics,
        kolmogorov_smirnov(predicted, measured),
    )


def kolmogorov_smirnov(first: FloatArray, second: FloatArray) -> float | None:
    """The largest vertical distance between two empirical distributions; None for an empty one."""
    if len(first) == 0 or len(second) == 0:
        return None
    values = np.sort(np.concatenate((first, second)))
    shares = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (first, second)
    ]
    return float(np.abs(shares[0] - shares[1]).max())
