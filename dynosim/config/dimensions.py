"""What varies in a sweep: one dotted key of the run file and the values it may take."""

import random
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dynosim.config.explain import explain
from dynosim.config.problems import Path, Problem, shown
from dynosim.config.sweep_schema import RangeConfig

MAX_VALUES = 10_000


@dataclass(frozen=True, slots=True)
class Dimension:
    """A key and its `values`; or, if those are None, any number in [low, high] (random only)."""

    key: str
    values: tuple[Any, ...] | None
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_integer: bool = False

    @property
    def path(self) -> Path:
        """The key in parts."""
        return tuple(self.key.split("."))

    def samples(self) -> tuple[Any, ...]:
        """Values that stand for all: every one, or both ends."""
        return self.values if self.values is not None else (self.low, self.high)

    def draw(self, rng: random.Random) -> Any:
        """One value at random; with `log` each factor of a range is equally likely."""
        if self.values is not None:
            return self.values[rng.randrange(len(self.values))]
        if self.is_integer and not self.is_log:
            return rng.randint(int(self.low), int(self.high))
        if not self.is_log:
            return rng.uniform(self.low, self.high)
        value = self.low * (self.high / self.low) ** rng.random()
        return min(max(round(value), int(self.low)), int(self.high)) if self.is_integer else value


def parse_dimension(key: str, raw: Any, *, is_grid: bool) -> Dimension | list[Problem]:
    """The entry `key: raw` of `space`, or what is wrong with it."""
    here: Path = ("space", key)
    if isinstance(raw, dict) and set(raw) == {"choices"}:
        raw = raw["choices"]
    if isinstance(raw, list):
        return _choices(key, raw, here)
    if not isinstance(raw, dict):
        text = f"expected a list or a range, got {shown(raw)}"
        return [Problem(here, text, "write [a, b] or {min: .., max: .., step: ..}")]
    try:
        span = RangeConfig.of(raw)
    except ValidationError as error:
        problems = explain(error, RangeConfig, raw)
        return [Problem((*here, *p.path), p.text, p.remedy) for p in problems]
    given = (raw["min"], raw["max"], raw.get("step", 1))
    return _range(key, span, here, is_integer=all(type(v) is int for v in given), is_grid=is_grid)


def _choices(key: str, values: list[Any], here: Path) -> Dimension | list[Problem]:
    if not values:
        return [Problem(here, "no values to choose from", "list at least one")]
    repeated = [
        Problem((*here, index), f"{shown(value)} is given twice", "keep one of them")
        for index, value in enumerate(values)
        if any(type(value) is type(other) and value == other for other in values[:index])
    ]
    return repeated or Dimension(key, tuple(values))


def _range(
    key: str, span: RangeConfig, here: Path, *, is_integer: bool, is_grid: bool
) -> Dimension | list[Problem]:
    as_number = int if is_integer else float
    low, high = as_number(span.min), as_number(span.max)
    if span.step is None and not (span.log and is_grid):
        if is_grid:
            remedy = "add `step: ...` or `log: true`, or use `search: {method: random}`"
            return [Problem(here, "a grid cannot have every number of a range", remedy)]
        return Dimension(key, None, low, high, is_log=span.log, is_integer=is_integer)
    if span.step is None:
        return Dimension(key, tuple(_doublings(low, high)))
    count = int((span.max - span.min) / span.step + 1e-9) + 1
    if count > MAX_VALUES:
        return [Problem(here, f"{count} values are too many", f"at most {MAX_VALUES}: raise step")]
    if is_integer:
        return Dimension(key, tuple(int(low) + i * int(span.step) for i in range(count)))
    return Dimension(key, tuple(round(low + i * span.step, 12) for i in range(count)))


def _doublings(low: float, high: float) -> list[float]:
    values = [low]
    while values[-1] * 2 <= high:
        values.append(values[-1] * 2)
    return values
