"""Which points of the space are tried, in which order: decided before any is."""

import json
import random
from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any

from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import ConfigError

Point = dict[str, Any]
"""Values by dotted key."""

MAX_GRID = 100_000
MAX_REPEATS = 1000
"""Draws in vain, in a row, after which the space is taken to be exhausted."""


def points_of(
    sweep: SweepConfig, is_affordable: Callable[[Point], bool] = lambda _: True
) -> list[Point]:
    """The points to try. The same sweep file gives the same list, whatever runs it.

    A grid varies its last key fastest. Values that do not count in a point's mode are left out, and
    what is one point then comes once. Random points are distinct, and asking for more keeps those
    already drawn; none that is not affordable is among them, unless all are so: then some are, to
    be told of. Raises: ConfigError for a grid too large to try.
    """
    if sweep.search.method == "random":
        affordable = list(_random_points(sweep, is_affordable))
        return affordable or list(_random_points(sweep, lambda _: True))
    choices = [dimension.samples() for dimension in sweep.dimensions]
    size = num_combinations(sweep)
    if size > MAX_GRID:
        raise ConfigError(
            f"space: a grid of {size} points is too large, at most {MAX_GRID} "
            "(use `search: {method: random, trials: 1000}`)"
        )
    keys = [dimension.key for dimension in sweep.dimensions]
    points = (dict(zip(keys, values, strict=True)) for values in product(*choices))
    return list({_name(point): point for point in map(sweep.values_that_count, points)}.values())


def _name(point: Point) -> str:
    """Equal for equal points."""
    return json.dumps(point, sort_keys=True)


def num_combinations(sweep: SweepConfig) -> int:
    """How many combinations of values a grid has, be they one point or several."""
    return prod(len(dimension.samples()) for dimension in sweep.dimensions)


def _random_points(sweep: SweepConfig, is_wanted: Callable[[Point], bool]) -> Iterator[Point]:
    rng = random.Random(sweep.search.seed)
    seen: set[str] = set()
    num_points = num_vain = 0
    while num_points < (sweep.search.trials or 0) and num_vain < MAX_REPEATS:
        drawn = {dimension.key: dimension.draw(rng) for dimension in sweep.dimensions}
        point = sweep.values_that_count(drawn)
        name = _name(point)
        num_vain += 1
        if name in seen:
            continue
        seen.add(name)
        if is_wanted(point):
            num_points, num_vain = num_points + 1, 0
            yield point
