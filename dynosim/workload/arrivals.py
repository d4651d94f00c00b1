"""When requests or sessions start: arrival processes."""

from typing import TYPE_CHECKING

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import FloatArray

if TYPE_CHECKING:
    from numpy.random import Generator

PROCESSES = ("poisson", "gamma", "constant", "closed")


def check_arrivals(process: str, *, rate_rps: float | None, burstiness: float) -> None:
    """Raises: ConfigError for an unknown process, a missing rate, or a number out of range."""
    if process not in PROCESSES:
        known = ", ".join(PROCESSES)
        raise ConfigError(f"arrival: unknown process {process!r}: expected one of {known}")
    if process != "closed" and rate_rps is None:
        raise ConfigError(f"rate_rps: missing: arrival {process} needs a rate in requests/s")
    if rate_rps is not None and not 0.0 < rate_rps < float("inf"):
        raise ConfigError(f"rate_rps: expected a number > 0, got {rate_rps}")
    if not 0.0 < burstiness < float("inf"):
        raise ConfigError(f"burstiness: expected a number > 0, got {burstiness}")


def draw_arrivals(
    process: str, size: int, rng: "Generator", *, rate_per_s: float, burstiness: float = 1.0
) -> FloatArray:
    """Arrivals (size,) in ms from 0 on, never decreasing, to the microsecond.

    `gamma` draws gaps with shape `burstiness` and mean `1 / rate_per_s`, so the squared coefficient
    of variation of the gaps is `1 / burstiness`: 1 is Poisson, less comes in bursts, more is more
    even. This is what vLLM's serving benchmark calls burstiness. `closed` starts all at 0.
    """
    if process == "closed":
        return np.zeros(size)
    gap_ms = 1000.0 / rate_per_s
    if process == "poisson":
        gaps = rng.exponential(gap_ms, size)
    elif process == "gamma":
        gaps = rng.gamma(burstiness, gap_ms / burstiness, size)
    else:
        gaps = np.full(size, gap_ms)
    gaps[:1] = 0.0
    elapsed_ms: FloatArray = np.cumsum(gaps)
    arrival_ms: FloatArray = np.round(elapsed_ms, 3)
    return arrival_ms
