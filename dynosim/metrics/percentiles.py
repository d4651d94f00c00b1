"""Exact order statistics: nearest rank, no interpolation, no sketch.

The percentile q of n sorted samples is the one at index (n - 1) * q / 100, rounded half away from
zero, as in Dynamo's replay report; the standard deviation is that of the population.
"""

from dataclasses import dataclass

import numpy as np

from dynosim.records import FloatArray

PERCENTILES: dict[str, int] = {"median": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
"""Name in the report -> percent."""

STATISTICS: tuple[str, ...] = ("mean", "min", "max", *PERCENTILES, "std")
"""Prefixes of the report's latency keys, in the report's order."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The statistics of one sample; every one is None when the sample is empty."""

    count: int
    statistics: dict[str, float | None]  # keys: STATISTICS

    @classmethod
    def empty(cls) -> "Summary":
        return cls(0, dict.fromkeys(STATISTICS))

    def keys_for(self, metric: str) -> dict[str, float | None]:
        """The statistics under the report's key names, such as `p99_ttft_ms`."""
        return {f"{name}_{metric}": self.statistics[name] for name in STATISTICS}


def median(sample: FloatArray) -> float:
    """The middle of a sample that is not empty, between the two middle ones if there are two.

    `np.median` would import all of numpy.ma, which costs as much as summing up a run.
    """
    ordered = np.sort(sample)
    count = len(ordered)
    return float(ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def nearest_rank(count: int, percent: int) -> int:
    """Index of the `percent` percentile among `count` >= 1 sorted samples, in whole numbers."""
    return (2 * (count - 1) * percent + 100) // 200


def percentile(ordered: FloatArray, percent: int) -> float | None:
    """The exact percentile of a sorted sample, None when it is empty."""
    if len(ordered) == 0:
        return None
    return float(ordered[nearest_rank(len(ordered), percent)])


def summarize_sample(sample: FloatArray) -> Summary:
    """All statistics of an unsorted sample; NaN entries are left out."""
    ordered = np.sort(sample[~np.isnan(sample)])
    if len(ordered) == 0:
        return Summary.empty()
    statistics: dict[str, float | None] = {
        "mean": float(ordered.mean()),
        "min": float(ordered[0]),
        "max": float(ordered[-1]),
    }
    for name, percent in PERCENTILES.items():
        statistics[name] = percentile(ordered, percent)
    statistics["std"] = float(ordered.std())
    return Summary(len(ordered), statistics)
