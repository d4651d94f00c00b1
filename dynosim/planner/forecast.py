"""What the next interval will bring, from what the last ones brought: one figure, step by step.

A forecaster knows nothing of what it forecasts. Until it has points enough it forecasts the last
one, and says so. Zeros before the first other value are skipped (nobody had come yet), none that
come later. A forecast is finite and never negative.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import expm1, isfinite, log1p
from typing import Literal

import numpy as np

from dynosim.planner.arima import arima_forecast
from dynosim.records import FloatArray

ForecastMethod = Literal["constant", "moving_average", "arima", "kalman", "seasonal"]


@dataclass(frozen=True, slots=True)
class ForecastSpec:
    """How the load of the next interval is foreseen.

    method: see `FORECASTERS`.
    log1p: whether the logarithm of 1 + value is forecast, which suits what grows by factors.
    min_points: with fewer the last value is forecast (constant and seasonal have their own number).
    window_points: how many points ARIMA looks back.
    average_points: how many points a moving average is over.
    season_points: points of a season, for "seasonal": a day of 180 s intervals has 480.
    kalman_q_level, kalman_q_trend, kalman_r: variances of what moves the level and the trend in
        one interval, and of what disturbs a single value.
    """

    method: ForecastMethod = "arima"
    log1p: bool = False
    min_points: int = 5
    window_points: int = 50
    average_points: int = 5
    season_points: int = 480
    kalman_q_level: float = 1.0
    kalman_q_trend: float = 0.1
    kalman_r: float = 10.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next value, and whether it is no more than the last one for want of points."""

    value: float
    is_fallback: bool
    num_points: int


class Forecaster(ABC):
    """Foresees one series."""

    def __init__(self, spec: ForecastSpec, needed: int) -> None:
        self._spec = spec
        self._needed = needed
        self._num_points = 0
        self._last = 0.0

    def add(self, value: float) -> None:
        """Take in what an interval brought. Raises: ValueError if negative or not finite."""
        if not isfinite(value) or value < 0:
            raise ValueError(f"a forecaster was given {value}")
        if value == 0 and self._num_points == 0:
            return
        self._num_points += 1
        self._last = value
        self._learn(log1p(value) if self._spec.log1p else value)

    def forecast(self) -> Forecast | None:
        """What the next interval brings; None before anything came."""
        if self._num_points == 0:
            return None
        if self._num_points < self._needed:
            return Forecast(self._last, True, self._num_points)
        foreseen = self._foresee()
        if self._spec.log1p:
            foreseen = expm1(min(foreseen, 700.0))  # beyond which no float reaches
        if not isfinite(foreseen):
            return Forecast(self._last, True, self._num_points)
        return Forecast(max(0.0, foreseen), False, self._num_points)

    @abstractmethod
    def _learn(self, value: float) -> None:
        """Take in one value."""

    @abstractmethod
    def _foresee(self) -> float:
        """The next value, after at least as many as it needs."""


class ConstantForecaster(Forecaster):
    """The last value."""

    def __init__(self, spec: ForecastSpec) -> None:
        super().__init__(spec, needed=1)

    def _learn(self, value: float) -> None:
        self._value = value

    def _foresee(self) -> float:
        return self._value


class MovingAverageForecaster(Forecaster):
    """The mean of the last `average_points` values."""

    def __init__(self, spec: ForecastSpec) -> None:
        super().__init__(spec, needed=min(spec.min_points, spec.average_points))
        self._values: deque[float] = deque(maxlen=spec.average_points)

    def _learn(self, value: float) -> None:
        self._values.append(value)

    def _foresee(self) -> float:
        return sum(self._values) / len(self._values)


class ArimaForecaster(Forecaster):
    """See `dynosim.planner.arima`; over the last `window_points` values."""

    def __init__(self, spec: ForecastSpec) -> None:
        super().__init__(spec, needed=spec.min_points)
        self._values: deque[float] = deque(maxlen=spec.window_points)

    def _learn(self, value: float) -> None:
        self._values.append(value)

    def _foresee(self) -> float:
        return arima_forecast(np.array(self._values, np.float64))


class KalmanForecaster(Forecaster):
    """A level that moves by a trend, both disturbed; the first value is the first level.

    State (level, trend), uncertainty 1000 in both at first. Source: the local linear trend model,
    Durbin and Koopman, Time Series Analysis by State Space Methods, section 3.2.
    """

    def __init__(self, spec: ForecastSpec) -> None:
        super().__init__(spec, needed=spec.min_points)
        self._state: FloatArray | None = None  # (level, trend)
        self._covariance = 1000.0 * np.eye(2)
        self._move = np.array([[1.0, 1.0], [0.0, 1.0]])
        self._disturbance = np.diag([spec.kalman_q_level, spec.kalman_q_trend])

    def _learn(self, value: float) -> None:
        if self._state is None:
            self._state = np.array([value, 0.0])
            return
        state = self._move @ self._state
        covariance = self._move @ self._covariance @ self._move.T + self._disturbance
        gain = covariance[:, 0] / (covariance[0, 0] + self._spec.kalman_r)
        self._state = state + gain * (value - state[0])
        self._covariance = covariance - np.outer(gain, covariance[0])

    def _foresee(self) -> float:
        assert self._state is not None
        return float(self._state[0] + self._state[1])


_SMOOTHING = np.array(
    [
        (level, trend, season)
        for level in (0.05, 0.2, 0.4, 0.7)
        for trend in (0.0, 0.02, 0.1)
        for season in (0.05, 0.2, 0.5)
    ]
)
"""The (level, trend, season) weights that are tried beside each other."""

_FORGETTING = 0.99
"""What an error weighs beside that of one point later."""


class SeasonalForecaster(Forecaster):
    """Additive Holt-Winters smoothing with a season of `season_points`.

    It needs two seasons: the first gives level and season, both together the trend. Some weights
    run beside each other, and those whose squared errors of one step were least, the latest
    weighing most, make the forecast. Source: Hyndman and Athanasopoulos, Forecasting: Principles
    and Practice, 3rd edition, section 8.3.
    """

    def __init__(self, spec: ForecastSpec) -> None:
        super().__init__(spec, needed=2 * spec.season_points)
        self._first: list[float] = []
        self._level = self._trend = np.zeros(len(_SMOOTHING))
        self._season = np.zeros((spec.season_points, len(_SMOOTHING)))
        self._error = np.zeros(len(_SMOOTHING))
        self._at = 0  # which point of the season comes next

    def _learn(self, value: float) -> None:
        if len(self._first) < self._needed:
            self._first.append(value)
            if len(self._first) == self._needed:
                self._begin()
        else:
            self._smooth(value)

    def _begin(self) -> None:
        num_points = self._spec.season_points
        first, second = np.split(np.array(self._first), 2)
        trend = (second.mean() - first.mean()) / num_points
        middle = (num_points - 1) / 2
        shape = first - first.mean() - trend * (np.arange(num_points) - middle)
        self._season[:] = shape[:, None]
        self._trend = np.full(len(_SMOOTHING), trend)
        self._level = np.full(len(_SMOOTHING), first.mean() + trend * middle)
        for value in second.tolist():
            self._smooth(value)

    def _smooth(self, value: float) -> None:
        by_level, by_trend, by_season = _SMOOTHING.T
        season = self._season[self._at]
        before, level_then = self._level + self._trend, self._level
        self._error = _FORGETTING * self._error + (value - before - season) ** 2
        self._level = by_level * (value - season) + (1 - by_level) * before
        self._trend = by_trend * (self._level - level_then) + (1 - by_trend) * self._trend
        self._season[self._at] = by_season * (value - before) + (1 - by_season) * season
        self._at = (self._at + 1) % self._spec.season_points

    def _foresee(self) -> float:
        best = int(np.argmin(self._error))
        return float(self._level[best] + self._trend[best] + self._season[self._at, best])


FORECASTERS: dict[str, Callable[[ForecastSpec], Forecaster]] = {
    "constant": ConstantForecaster,
    "moving_average": MovingAverageForecaster,
    "arima": ArimaForecaster,
    "kalman": KalmanForecaster,
    "seasonal": SeasonalForecaster,
}
"""By the name that a configuration gives them."""


def forecaster(spec: ForecastSpec) -> Forecaster:
    """A forecaster that has seen nothing yet. Raises: KeyError for a method that there is not."""
    return FORECASTERS[spec.method](spec)
