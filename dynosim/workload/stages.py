"""Load stages: a rate for a time, one after another, as load generators step a benchmark's load."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import FloatArray, IntArray

if TYPE_CHECKING:
    from numpy.random import Generator

MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Requests that come at `rate_rps` for `duration_s`; null start: when the one before ends."""

    rate_rps: float
    duration_s: float
    start_s: float | None = None  # from the first stage's start

    @property
    def requests(self) -> int:
        """How many come: what the rate makes of the duration, as load generators count it."""
        return max(1, round(self.rate_rps * self.duration_s))


def stage_windows_s(stages: Sequence[Stage]) -> list[tuple[float, float]]:
    """Start and end of each stage. Raises: ConfigError for stages that overlap or have no load."""
    windows: list[tuple[float, float]] = []
    end_s = 0.0
    for place, stage in enumerate(stages):
        for key in ("rate_rps", "duration_s"):
            value = getattr(stage, key)
            if not 0.0 < value < float("inf"):
                raise ConfigError(f"stages[{place}].{key}: expected a number > 0, got {value:g}")
        start_s = end_s if stage.start_s is None else stage.start_s
        if start_s < end_s:
            raise ConfigError(overlap(place, start_s, end_s))
        end_s = start_s + stage.duration_s
        windows.append((start_s, end_s))
    return windows


def overlap(place: int, start_s: float, end_s: float) -> str:
    """What is wrong with a stage that starts before the one before it is over."""
    return (
        f"stages[{place}].start_s: starts at {start_s:g} s, but stage {place - 1} ends at "
        f"{end_s:g} s: stages follow each other (leave start_s out, or start it then or later)"
    )


def draw_stages(
    process: str,
    stages: Sequence[Stage],
    rng: "Generator",
    *,
    burstiness: float = 1.0,
    sessions_per_request: float = 1.0,
) -> tuple[FloatArray, IntArray]:
    """Arrivals in ms from the first stage's start, never decreasing, and each one's stage.

    A stage has exactly the arrivals that its rate makes of its duration. `poisson` spreads them as
    a Poisson process does whose count is known; `gamma` scales its gaps to the stage; `constant`
    starts with one and keeps equal distances. Raises: ConfigError.
    """
    arrivals: list[FloatArray] = []
    numbers: list[IntArray] = []
    for place, (start_s, end_s) in enumerate(stage_windows_s(stages)):
        count = max(1, round(stages[place].requests * sessions_per_request))
        shares = _shares(process, count, rng, burstiness)
        arrivals.append((start_s + shares * (end_s - start_s)) * MS_PER_S)
        numbers.append(np.full(count, place, np.int64))
    arrival_ms = np.concatenate(arrivals)
    rounded: FloatArray = np.asarray(np.round(arrival_ms, 3), np.float64)
    return rounded, np.concatenate(numbers)


def _shares(process: str, count: int, rng: "Generator", burstiness: float) -> FloatArray:
    """When they come (count,), as parts of the stage's time."""
    if process == "constant":
        return np.arange(count) / count
    shape = burstiness if process == "gamma" else 1.0
    elapsed: FloatArray = np.cumsum(rng.gamma(shape, 1.0, count + 1))
    shares: FloatArray = elapsed[:-1] / elapsed[-1]
    return shares
