"""How well a fit explains the very requests that it was fitted to; one that does not has failed.

A fit that is wrong (a false optimum, a capacity or a GPU that was not this one) shows on its own
part already, where a good one is within a percent.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from dynosim.fit.measurements import Measurements
from dynosim.fit.replay import Predicted
from dynosim.fit.scores import METRICS, Distance, Score, columns_of, distances, scores
from dynosim.records import FloatArray

MEAN_LIMITS = {"ttft_ms": 0.15, "tpot_ms": 0.05, "latency_ms": 0.05}
"""Relative errors of means. Fits of recorded engines are within 1 % (2 % of first tokens, which one
missed step moves); five and more times as much is no noise."""

MISSED_STEPS_MS = 10.0
"""Means that are off by less are not held against a fit: short first tokens are one engine step,
and the way of a request to the scheduler, which logs do not hold, takes 15 to 30 ms."""

SHAPE = 0.1
"""Distance of distributions that the form of a fit may cost, on top of what samples differ by."""


@dataclass(frozen=True, slots=True)
class OwnPart:
    """Errors over the fitted requests, and what is beyond the limits, in words."""

    scores: list[Score]  # of means
    apart: list[Distance]
    misfits: tuple[str, ...]

    @property
    def ks(self) -> float:
        """The largest distance of all metrics; 0 where there is nothing to compare."""
        return max((one.ks for one in self.apart if one.ks == one.ks), default=0.0)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "errors": {score.name: score.error for score in self.scores},
            "ks": {one.metric: one.ks for one in self.apart},
            "misfits": list(self.misfits),
        }


def sample_ks(count: int) -> float:
    """What two samples of so many from one distribution differ by in one case of twenty."""
    return 1.36 * sqrt(2 / count)


def own_part(measured: Measurements, predicted: Predicted, count: int) -> OwnPart:
    """How a fit does on the first `count` requests."""
    rows = slice(0, count)
    means = [one for one in scores(measured, predicted, rows) if one.statistic == "mean"]
    apart = [one for one in distances(measured, predicted, rows) if one.metric in METRICS]
    limit = SHAPE + sample_ks(count)
    gaps = _gaps(measured, predicted, count)
    misfits = [
        f"{score.name} {score.error:+.1%} (limit {MEAN_LIMITS[score.metric]:.0%})"
        for score in means
        if not _is_close(score)
    ]
    misfits += [
        f"{gap:.0%} of the distribution of {metric} elsewhere (limit {limit:.0%})"
        for metric, gap in gaps.items()
        if gap > limit
    ]
    return OwnPart(means, apart, tuple(misfits))


def _gaps(measured: Measurements, predicted: Predicted, count: int) -> dict[str, float]:
    """By metric: how far the distributions are apart, shifts within the limits of means aside."""
    outputs = measured.output_tokens.astype(np.float64)
    ours, theirs = columns_of(predicted, outputs), columns_of(measured, outputs)
    gaps = {}
    for metric in METRICS:
        one, other = theirs[metric][:count], ours[metric][:count]
        exists = ~np.isnan(one) & ~np.isnan(other)
        if exists.any():
            gaps[metric] = gap_beyond(
                one[exists],
                other[exists],
                share=MEAN_LIMITS[metric],
                slack=0.0 if metric == "tpot_ms" else MISSED_STEPS_MS,
            )
    return gaps


def gap_beyond(one: FloatArray, other: FloatArray, *, share: float, slack: float) -> float:
    """Kolmogorov and Smirnov's distance, were each value free to move by a share or some slack.

    Narrow distributions are far apart by it when they are shifted by less than anybody cares for.
    """
    gaps = []
    for low, high in ((one, other), (other, one)):
        places = np.sort(low)
        moved = places + np.maximum(share * places, slack)
        reached = np.searchsorted(np.sort(high), moved, side="right") / len(high)
        gaps.append(float((np.arange(1, len(low) + 1) / len(low) - reached).max()))
    return max(*gaps, 0.0)


def _is_close(score: Score) -> bool:
    """Also where there is nothing to compare, as the time between tokens of single tokens."""
    if score.measured != score.measured:
        return True
    off_ms = abs(score.predicted - score.measured)
    is_small = score.metric != "tpot_ms" and off_ms <= MISSED_STEPS_MS
    return is_small or off_ms <= MEAN_LIMITS[score.metric] * score.measured
