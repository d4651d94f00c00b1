"""Which points to try next, by what others gave: Optuna's samplers behind one pair of calls.

The same answers in the same order bring the same points. No point comes twice: where a sampler only
repeats itself, a point that it has not tried takes its place, until there is none left.
"""

import json
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, cast

from dynosim.config.dimensions import Dimension
from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import ConfigError
from dynosim.sweep.search import MAX_REPEATS, Point

if TYPE_CHECKING:
    import optuna

ASKED_AGAIN = 3
"""Times in a row that a sampler may repeat itself before a point near by is taken."""
NEAR_BY = 20
"""Draws of points near by before any point will do."""
_CONSTRAINT = "usable"


@dataclass(frozen=True, slots=True)
class PointOutcome:
    """What a point gave. `values` are those of the objectives; None: it crashed, which says nothing
    of the point. `violation` is how far it is from being usable, 0 if it is."""

    values: tuple[float, ...] | None
    violation: float = 0.0


class Proposals:
    """Ask for points, tell what all of them gave, in the order in which they came; ask again."""

    def __init__(self, sweep: SweepConfig) -> None:
        """Raises: ConfigError if Optuna is not installed."""
        optuna: Any = _optuna(sweep.search.method)
        self._axes = [_Axis(dimension) for dimension in sweep.dimensions]
        self._distributions = {axis.key: axis.distribution() for axis in self._axes}
        self._rng = random.Random(sweep.search.seed)
        self._counting = sweep.values_that_count
        self._drawn: set[str] = set()  # points with all their values
        self._seen: set[str] = set()  # with those that count in their mode
        self._open: list[Any] = []  # their trials in Optuna
        directions = ["maximize" if goal == "max" else "minimize"
                      for goal in sweep.objectives.values()]  # fmt: skip
        with _quiet():
            self._study = optuna.create_study(directions=directions, sampler=_sampler(sweep))

    def ask(self, num_points: int) -> list[Point]:
        """So many points that have not come before; fewer if there are no more."""
        points: list[Point] = []
        with _quiet():
            while len(points) < num_points and (point := self._new_point()) is not None:
                points.append(point)
        return points

    def tell(self, outcomes: Sequence[PointOutcome]) -> None:
        """What the points that were asked for last gave, in their order."""
        from optuna.trial import TrialState

        with _quiet():
            for trial, outcome in zip(self._open, outcomes, strict=True):
                if outcome.values is None:
                    self._study.tell(trial, state=TrialState.FAIL)
                    continue
                trial.set_constraint(_CONSTRAINT, outcome.violation)
                self._study.tell(trial, list(outcome.values))
        self._open = []

    def _new_point(self) -> Point | None:
        num_points = prod(axis.size or 0 for axis in self._axes)  # 0: no end to them
        if num_points and len(self._drawn) >= num_points:
            return None
        params: dict[str, Any] = {}
        for _ in range(ASKED_AGAIN if num_points else MAX_REPEATS):
            trial = self._study.ask(self._distributions)
            params = dict(trial.params)
            if self._is_new(self._point(params)):
                self._open.append(trial)
                return self._point(params)
            self._give_up(trial)
        if not num_points:
            return None
        untried = self._untried(params, num_points)
        if untried is None:
            return None
        params = untried
        self._study.enqueue_trial(params)
        self._open.append(self._study.ask(self._distributions))
        return self._point(params)

    def _untried(self, params: dict[str, int], num_points: int) -> dict[str, int] | None:
        """A point that has not come: best one that differs in one value from that which has.

        None: all that is left comes to one that has.
        """
        for _ in range(NEAR_BY):
            axis = self._rng.choice(self._axes)
            near = {**params, axis.key: axis.first + self._rng.randrange(cast(int, axis.size))}
            if self._is_new(self._point(near)):
                return near
        number = self._rng.randrange(num_points)
        for place in range(num_points):
            params = self._numbered((number + place) % num_points)
            if self._is_new(self._point(params)):
                return params
        return None

    def _numbered(self, number: int) -> dict[str, int]:
        """The parameters of a point by its number, in a space that can be counted."""
        params = {}
        for axis in self._axes:
            number, place = divmod(number, cast(int, axis.size))
            params[axis.key] = axis.first + place
        return params

    def _point(self, params: dict[str, Any]) -> Point:
        return {axis.key: axis.value_of(params[axis.key]) for axis in self._axes}

    def _is_new(self, point: Point) -> bool:
        """Whether the point has not come before; from now on it has."""
        self._drawn.add(json.dumps(point, sort_keys=True))
        name = json.dumps(self._counting(point), sort_keys=True)
        if name in self._seen:
            return False
        self._seen.add(name)
        return True

    def _give_up(self, trial: "optuna.Trial") -> None:
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState.FAIL)


class _Axis:
    """A dimension as a parameter of Optuna's: listed values by their place."""

    def __init__(self, dimension: Dimension) -> None:
        self.key = dimension.key
        self._dimension = dimension
        self._values = dimension.values

    @property
    def first(self) -> int:
        """The least parameter, where they are whole numbers."""
        return 0 if self._values is not None else int(self._dimension.low)

    @property
    def size(self) -> int | None:
        """How many values there are; None if they cannot be counted."""
        if self._values is not None:
            return len(self._values)
        if not self._dimension.is_integer:
            return None
        return int(self._dimension.high) - int(self._dimension.low) + 1

    def value_of(self, param: Any) -> Any:
        """The value that a parameter stands for."""
        return param if self._values is None else self._values[param]

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """Numbers that rise or fall have neighbours; other values are a choice."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        dimension, values = self._dimension, self._values
        if values is None and dimension.is_integer:
            low, high = int(dimension.low), int(dimension.high)
            return IntDistribution(low, high, log=dimension.is_log)
        if values is None:
            return FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)
        if _is_monotone(values):
            return IntDistribution(0, len(values) - 1)
        return CategoricalDistribution(tuple(range(len(values))))


def _is_monotone(values: Sequence[Any]) -> bool:
    if not all(type(value) in (int, float) for value in values):
        return False
    return list(values) in (sorted(values), sorted(values, reverse=True))


def _sampler(sweep: SweepConfig) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import NSGAIISampler, TPESampler

    search = sweep.search
    if search.method == "tpe":
        return TPESampler(seed=search.seed, multivariate=True, constant_liar=True)
    return NSGAIISampler(seed=search.seed, population_size=max(2, search.batch_size))


def _optuna(method: str) -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            f"search.method: {method} needs Optuna, which is not installed "
            "(pip install 'dynosim[search]', or use `method: random`)"
        ) from None
    return optuna


def sampler_version(method: str) -> str:
    """What the points of a method depend on beside the sweep. Raises: ConfigError."""
    return f"optuna {_optuna(method).__version__}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says nothing of its studies, nor that some of what is used here may change."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
