"""Which points of the space are tried, in which order: decided before any is."""

import json
import random
from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import ConfigError

Point = dict[str, Any]
"""Values by dotted key."""

MAX_GRID = 100_000
MAX_REPEATS = 1000
"""Draws of points seen already, in a row, after which the space is taken to be exhausted."""


def points_of(sweep: SweepConfig) -> list[Point]:
    """The points to try. The same sweep file gives the same list, whatever runs it.

    A grid varies its last key fastest. Random points are distinct, and asking for more keeps those
    already drawn. Raises: ConfigError for a grid too large to try.
    """
    if sweep.search.method == "random":
        return list(_random_points(sweep))
    choices = [dimension.samples() for dimension in sweep.dimensions]
    size = prod(len(values) for values in choices)
    if size > MAX_GRID:
        raise ConfigError(
            f"space: a grid of {size} points is too large, at most {MAX_GRID} "
            "(use `search: {method: random, trials: 1000}`)"
        )
    keys = [dimension.key for dimension in sweep.dimensions]
    return [dict(zip(keys, values, strict=True)) for values in product(*choices)]


def _random_points(sweep: SweepConfig) -> Iterator[Point]:
    rng = random.Random(sweep.search.seed)
    seen: set[str] = set()
    repeats = 0
    while len(seen) < (sweep.search.trials or 0) and repeats < MAX_REPEATS:
        point = {dimension.key: dimension.draw(rng) for dimension in sweep.dimensions}
        name = json.dumps(point, sort_keys=True)
        repeats = repeats + 1 if name in seen else 0
        if name not in seen:
            seen.add(name)
            yield point
