"""How sure a prediction of a recorded workload is."""

from collections.abc import Sequence

import numpy as np

from dynosim.experiment.intervals import JITTER_MS, scaled
from dynosim.fit.measurements import Measurements
from dynosim.fit.replay import Engines, replay
from dynosim.fit.scores import scores
from dynosim.timing.fitted import Fit, FittedModel

Ranges = dict[str, tuple[float, float]]


def intervals(
    measured: Measurements,
    engines: Engines,
    draws: Sequence[Fit],
    *,
    common_error: float,
    count: int,
    seed: int,
    first_unseen: int = 0,
) -> tuple[Ranges, Ranges]:
    """Per statistic the range of 95 % of replays with other plausible constants and arrivals: over
    all requests, and over those from `first_unseen` on.

    `common_error` is the standard deviation of what all step times may be off by together.
    """
    rng = np.random.default_rng(seed)
    trace = measured.trace()
    samples: tuple[dict[str, list[float]], ...] = ({}, {})
    for index in np.linspace(0, len(draws) - 1, count).astype(int).tolist():
        arrival_ms = measured.arrival_ms + rng.uniform(0, JITTER_MS, len(measured))
        arrival_ms = np.maximum.accumulate(arrival_ms)  # requests keep their order
        factor = 1 + common_error * float(rng.standard_normal())
        timing = FittedModel(scaled(draws[index], factor))
        predicted = replay(trace, engines, timing, measured.clock, arrival_ms=arrival_ms)
        for kept, first in zip(samples, (0, first_unseen), strict=True):
            for score in scores(measured, predicted, slice(first, None)):
                kept.setdefault(score.name, []).append(score.predicted)
    return _ranges(samples[0]), _ranges(samples[1])


def _ranges(samples: dict[str, list[float]]) -> Ranges:
    return {
        name: (float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5)))
        for name, values in samples.items()
    }
