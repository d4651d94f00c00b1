"""Each way to foresee a figure, by hand; and what all of them keep to."""

import math

import numpy as np
import pytest

from dynosim.planner.arima import arima_forecast
from dynosim.planner.forecast import FORECASTERS, Forecast, ForecastSpec, forecaster

METHODS = tuple(FORECASTERS)


def _spec(method: str, **knobs: object) -> ForecastSpec:
    return ForecastSpec(method=method, season_points=4, **knobs)  # type: ignore[arg-type]


def _after(spec: ForecastSpec, values: list[float]) -> Forecast:
    series = forecaster(spec)
    for value in values:
        series.add(value)
    found = series.forecast()
    assert found is not None
    return found


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_foreseen_before_anything_came_and_leading_zeros_are_nothing(
    method: str,
) -> None:
    series = forecaster(_spec(method))
    assert series.forecast() is None
    series.add(0.0)
    assert series.forecast() is None


@pytest.mark.parametrize("method", METHODS)
def test_with_too_few_points_the_last_one_is_foreseen_and_said_to_be(method: str) -> None:
    found = _after(_spec(method), [0.0, 3.0, 7.0])
    assert found == Forecast(7.0, method != "constant", 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("log1p", [False, True])
def test_a_constant_series_goes_on(method: str, log1p: bool) -> None:
    found = _after(_spec(method, log1p=log1p), [42.0] * 30)
    assert found.value == pytest.approx(42.0, rel=1e-9)
    assert not found.is_fallback


@pytest.mark.parametrize("method", METHODS)
def test_a_falling_series_is_never_foreseen_below_zero(method: str) -> None:
    found = _after(_spec(method), [float(max(0, 100 - 20 * k)) for k in range(12)])
    assert 0.0 <= found.value <= 20.0


@pytest.mark.parametrize("method", METHODS)
def test_zeros_after_the_first_requests_count(method: str) -> None:
    found = _after(_spec(method), [10.0] * 8 + [0.0] * 60)
    assert found.value < 0.5


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_what_is_no_figure_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="was given"):
        forecaster(_spec("constant")).add(bad)


def test_a_moving_average_is_the_mean_of_its_last_points() -> None:
    found = _after(_spec("moving_average", average_points=3), [100.0, 1.0, 2.0, 6.0])
    assert found.value == 3.0


def test_kalman_follows_its_equations() -> None:
    """Worked out for two points: P = [[2001, 1000], [1000, 1000.1]] before the second value."""
    found = _after(_spec("kalman", min_points=2), [10.0, 20.0])
    level = 10.0 + 2001 / 2011 * 10.0
    trend = 1000 / 2011 * 10.0
    assert found.value == pytest.approx(level + trend, rel=1e-12)


def test_kalman_and_arima_follow_a_ramp_ahead_of_the_last_point() -> None:
    ramp = [10.0 + 5.0 * k for k in range(20)]
    assert _after(_spec("kalman"), ramp).value == pytest.approx(110.0, abs=0.2)
    assert _after(_spec("arima"), ramp).value == pytest.approx(110.0, abs=0.2)


def test_log1p_foresees_growth_by_factors() -> None:
    growth = [2.0**k for k in range(1, 13)]
    plain = _after(_spec("kalman"), growth).value
    by_factors = _after(_spec("kalman", log1p=True), growth).value
    assert abs(by_factors - 2.0**13) < 0.05 * 2.0**13 < abs(plain - 2.0**13)


def test_a_season_is_foreseen_where_others_lag() -> None:
    """The 4-point season 10, 20, 40, 20: after a 20 comes a 10."""
    season = [10.0, 20.0, 40.0, 20.0] * 5
    assert _after(_spec("seasonal"), season).value == pytest.approx(10.0, abs=1e-9)
    assert _after(_spec("constant"), season).value == 20.0


def test_a_season_needs_two_seasons() -> None:
    assert _after(_spec("seasonal"), [10.0, 20.0, 40.0, 20.0] * 2).is_fallback is False
    assert _after(_spec("seasonal"), [10.0, 20.0, 40.0, 20.0, 10.0, 20.0, 40.0]).is_fallback


def test_a_season_that_grows_keeps_its_trend() -> None:
    values = [10.0 + k + (5.0 if k % 4 == 0 else 0.0) for k in range(24)]
    assert _after(_spec("seasonal"), values).value == pytest.approx(39.0, abs=0.1)


def test_arima_of_alternating_values_foresees_the_other_one() -> None:
    values = np.array([10.0, 20.0] * 12) + np.sin(np.arange(24.0))
    assert arima_forecast(values) == pytest.approx(10.0, abs=1.5)


def test_arima_foresees_values_about_a_mean_near_it() -> None:
    draws = np.random.default_rng(7).poisson(100, 400).astype(float)
    errors = [arima_forecast(draws[k : k + 50]) - draws[k + 50] for k in range(0, 350, 7)]
    last = [draws[k + 49] - draws[k + 50] for k in range(0, 350, 7)]
    assert np.mean(np.square(errors)) < 0.8 * np.mean(np.square(last))
