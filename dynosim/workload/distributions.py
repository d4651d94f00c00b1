"""Distributions of token counts, turns and think times, stated by mean and standard deviation.

`mean` and `std` are those of the drawn quantity itself (tokens, ms), also for `lognormal`, where
they are not the parameters of the logarithm. A value outside `[min, max]` is drawn again, so tight
bounds shift the mean; it is never moved onto the bound.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import FloatArray, IntArray
from dynosim.workload.columns import TOKENS_MAX

if TYPE_CHECKING:
    from numpy.random import Generator

Resolve = Callable[[str], Path]

_REDRAWS_MAX = 1000
_NEEDS_MEAN = ("fixed", "normal", "lognormal", "geometric", "exponential")
KINDS = (*_NEEDS_MEAN, "empirical")


@dataclass(frozen=True, slots=True)
class Distribution:
    """How one quantity is drawn. Units are those of the quantity.

    `fixed` is always `mean`; `geometric` counts from 1; `empirical` draws rows of the trace file
    `trace`, with replacement and independently of every other quantity.
    """

    dist: str = "fixed"
    mean: float | None = None
    std: float = 0.0
    min: float | None = None
    max: float | None = None
    trace: str | None = None
    format: str | None = None

    def check(self, key: str, *, least: float) -> None:
        """Raises: ConfigError naming `key` if nothing >= `least` can be drawn."""
        if self.dist not in KINDS:
            raise ConfigError(
                f"{key}.dist: unknown {self.dist!r}: expected one of {', '.join(KINDS)}"
            )
        for name in ("mean", "std", "min", "max"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{key}.{name}: expected a finite number, got {value}")
        if self.dist == "empirical":
            if not self.trace:
                raise ConfigError(f"{key}.trace: missing: the trace file whose lengths are drawn")
        elif self.mean is None:
            raise ConfigError(f"{key}.mean: missing: {self.dist} needs a mean")
        elif self.mean < least or (self.mean <= 0 and self.dist != "fixed"):
            raise ConfigError(f"{key}.mean: expected at least {least:g}, got {self.mean:g}")
        if self.std < 0:
            raise ConfigError(f"{key}.std: expected a number >= 0, got {self.std:g}")
        low, high = self.bounds(least)
        if low > high:
            raise ConfigError(f"{key}.max: {high:g} is below the smallest value {low:g}")

    def bounds(self, least: float) -> tuple[float, float]:
        """Smallest and largest value that may be drawn."""
        low = least if self.min is None else max(self.min, least)
        return low, math.inf if self.max is None else self.max


def as_distribution(value: object, key: str) -> Distribution:
    """A number (always that), a mapping of the fields, or any object that has them as attributes.

    Raises: ConfigError for a key that a distribution does not have, or a value of a wrong type.
    """
    if isinstance(value, Distribution):
        return value
    if isinstance(value, bool) or value is None or isinstance(value, str):
        raise ConfigError(f"{key}: expected a number or {{dist: ..., mean: ...}}, got {value!r}")
    if isinstance(value, int | float):
        return Distribution(mean=float(value))
    names = [field.name for field in fields(Distribution)]
    if isinstance(value, Mapping):
        for name in value:
            if name not in names:
                close = get_close_matches(str(name), names, 1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
                raise ConfigError(f"{key}.{name}: unknown key, {hint}")
        given: dict[str, Any] = dict(value)
    else:
        given = {name: getattr(value, name) for name in names if hasattr(value, name)}
    return Distribution(**{name: item for name, item in given.items() if item is not None})


def draw_tokens(
    distribution: Distribution,
    size: int,
    rng: "Generator",
    *,
    key: str,
    column: str = "input_tokens",
    resolve: Resolve = Path,
) -> IntArray:
    """Whole numbers (size,) >= 1. `column` is what an empirical distribution takes from its trace.

    Raises: ConfigError if the distribution cannot be drawn from; TraceError of its trace file.
    """
    distribution.check(key, least=1.0)
    if distribution.dist == "empirical":
        pool = _pool(distribution, column, resolve, key)
        return pool[rng.integers(0, len(pool), size)]
    values = _draw(distribution, size, rng, key=key, least=1.0, decimals=0)
    if values.max(initial=0.0) >= TOKENS_MAX:
        raise ConfigError(
            f"{key}: draws {values.max():.3g}, no length is {TOKENS_MAX:.3g} or more (add a max)"
        )
    return values.astype(np.int64)


def draw_ms(distribution: Distribution, size: int, rng: "Generator", *, key: str) -> FloatArray:
    """Durations (size,) >= 0 in ms, to the microsecond.

    Raises: ConfigError if the distribution cannot be drawn from.
    """
    distribution.check(key, least=0.0)
    if distribution.dist == "empirical":
        raise ConfigError(f"{key}.dist: a trace does not tell durations: choose another one")
    return _draw(distribution, size, rng, key=key, least=0.0, decimals=3)


def _draw(
    distribution: Distribution,
    size: int,
    rng: "Generator",
    *,
    key: str,
    least: float,
    decimals: int,
) -> FloatArray:
    low, high = distribution.bounds(least)
    values = np.round(_draw_once(distribution, size, rng), decimals)
    for _ in range(_REDRAWS_MAX):
        outside = np.flatnonzero((values < low) | (values > high))
        if not len(outside):
            return values
        if distribution.dist == "fixed":
            break
        values[outside] = np.round(_draw_once(distribution, len(outside), rng), decimals)
    raise ConfigError(f"{key}: {distribution.dist} hardly ever falls between {low:g} and {high:g}")


def _draw_once(distribution: Distribution, size: int, rng: "Generator") -> FloatArray:
    mean, std = distribution.mean, distribution.std
    assert mean is not None
    if distribution.dist == "normal":
        return rng.normal(mean, std, size)
    if distribution.dist == "lognormal":
        variance = math.log1p((std / mean) ** 2)
        return rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), size)
    if distribution.dist == "geometric":
        return rng.geometric(1.0 / mean, size).astype(np.float64)
    if distribution.dist == "exponential":
        return rng.exponential(mean, size)
    return np.full(size, mean)


def _pool(distribution: Distribution, column: str, resolve: Resolve, key: str) -> IntArray:
    from dynosim.workload.readers import read_trace

    assert distribution.trace is not None
    trace = read_trace(resolve(distribution.trace), distribution.format)
    lengths: IntArray = getattr(trace, column)
    low, high = distribution.bounds(1.0)
    pool = lengths[(lengths >= low) & (lengths <= high)]
    if not len(pool):
        raise ConfigError(f"{key}: {distribution.trace} has no length between {low:g} and {high:g}")
    return pool
