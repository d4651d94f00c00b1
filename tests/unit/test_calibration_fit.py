from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from dynosim.errors import ConfigError
from dynosim.fit.fit_points import fit_points, held_out_error
from dynosim.fit.forms import point_ms, solve_curve, solve_limits
from dynosim.fit.point_gaps import newcomer_gaps, steady_gaps
from dynosim.fit.points import Point
from dynosim.silicon.fitted_file import read_fit, write_fit
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters
from dynosim.timing.step import StepShape

TRUTH = FittedParameters(
    overhead_ms=4.0,
    weights_ms=6.0,
    per_token_ms=0.2,
    prompt_step_ms=1.0,
    per_decode_ms=0.3,
    per_context_token_ms=0.0008,
    per_pair_ms=0.00004,
    ingress_ms=2.5,
)


def points_of(fit: Fit, *, noise: float = 0.0, seed: int = 0) -> list[Point]:
    """What a perfect engine with these constants would show, each time off by up to `noise`."""
    shapes: list[dict[str, object]] = []
    for length in (16, 32, 64, 128, 256, 512, 1024, 2000):
        shapes.append({"kind": "prefill", "num_prefills": 1, "prefill_tokens": length})
    for prefix, length in ((1024, 64), (1024, 512), (2048, 64), (2048, 512)):
        shapes.append(
            {"kind": "cached prefill", "num_prefills": 1, "prefill_tokens": length,
             "prefix_tokens": prefix}
        )  # fmt: skip
    for batch, context in product((1, 2, 4, 8, 16, 32, 64), (50, 530, 1550)):
        shapes.append({"kind": "decode", "num_decodes": batch, "context_tokens": batch * context})
    for batch, length in product((1, 4, 16), (16, 128, 512, 1024)):
        shapes.append(
            {"kind": "mixed", "num_prefills": 1, "prefill_tokens": length, "num_decodes": batch,
             "context_tokens": batch * 40}
        )  # fmt: skip
    model = FittedModel(fit)
    random = np.random.default_rng(seed)
    points = []
    for shape in shapes:
        outside = shape["kind"] in ("prefill", "cached prefill")
        blank = Point(**shape, is_outside_included=outside, measured_ms=1.0)  # type: ignore[arg-type]
        measured_ms = point_ms(model, blank) * (1 + noise * random.uniform(-1, 1))
        points.append(
            Point(**shape, is_outside_included=outside, measured_ms=measured_ms)  # type: ignore[arg-type]
        )
    return points


def test_known_constants_are_found_again() -> None:
    result = fit_points(points_of(Fit(parameters=TRUTH)), source="test")
    assert result.form == "limits"
    for name in FittedParameters.__dataclass_fields__:
        expected = getattr(TRUTH, name)
        assert getattr(result.fit.parameters, name) == pytest.approx(expected, rel=0.02), name
    assert result.max_error < 1e-3
    assert result.r_squared > 0.99999


def test_a_bent_curve_is_followed_where_limits_cannot() -> None:
    curve = ((1.0, 0.0), (8.0, 5.0), (32.0, 6.0), (128.0, 40.0), (2048.0, 200.0))
    linear = FittedParameters(
        overhead_ms=4.0, per_decode_ms=0.3, per_context_token_ms=0.0008, ingress_ms=2.5
    )
    points = points_of(Fit(parameters=linear, token_curve=curve))
    result = fit_points(points, source="test")
    assert result.form == "curve"
    assert result.held_out_errors["curve"] < result.held_out_errors["limits"]
    for name in FittedParameters.__dataclass_fields__:  # without noise the truth is found again
        expected = pytest.approx(getattr(linear, name), rel=1e-9, abs=1e-9)
        assert getattr(result.fit.parameters, name) == expected, name
    for tokens, times_ms in result.fit.token_curve:
        assert times_ms == pytest.approx(np.interp(tokens, *zip(*curve, strict=True)), rel=1e-9)
    assert result.mean_error < 1e-9


def test_true_constants_lie_in_the_intervals_of_noisy_ones() -> None:
    result = fit_points(points_of(Fit(parameters=TRUTH), noise=0.02), source="test")
    inside = [
        low <= getattr(TRUTH, name) <= high for name, (low, high) in result.fit.intervals.items()
    ]
    assert sum(inside) >= len(inside) - 1
    assert result.mean_error < 0.02


def test_draws_of_noisy_points_spread_around_the_truth() -> None:
    fit = fit_points(points_of(Fit(parameters=TRUTH), noise=0.05), source="test").fit
    steps = [(1, 512, 0, 0, 0), (0, 0, 0, 16, 16 * 530), (1, 128, 0, 4, 160)]
    models = [FittedModel(replace(fit, parameters=draw)) for draw in fit.draws]
    assert len(models) == 32
    for step in steps:
        true_ms = FittedModel(Fit(parameters=TRUTH)).step_ms(StepShape(*step))
        drawn = np.array([model.step_ms(StepShape(*step)) for model in models])
        assert drawn.min() < true_ms < drawn.max()
        assert 0.0005 < drawn.std() / true_ms < 0.05
    exact = fit_points(points_of(Fit(parameters=TRUTH)), source="test").fit
    for draw in exact.draws:
        step_ms = FittedModel(replace(exact, parameters=draw)).step_ms(StepShape(1, 512, 0, 4, 160))
        assert step_ms == pytest.approx(
            FittedModel(exact).step_ms(StepShape(1, 512, 0, 4, 160)), rel=1e-3
        )


def test_draws_of_a_curve_scale_it() -> None:
    curve = ((1.0, 0.0), (8.0, 5.0), (32.0, 6.0), (128.0, 40.0), (2048.0, 200.0))
    linear = FittedParameters(overhead_ms=4.0, per_decode_ms=0.3, ingress_ms=2.5)
    points = points_of(Fit(parameters=linear, token_curve=curve), noise=0.05)
    fit = fit_points(points, source="test").fit
    assert fit.token_curve
    scales = {draw.curve_scale for draw in fit.draws}
    assert len(scales) > 1 and 0.8 < min(scales) < 1.2 and 0.8 < max(scales) < 1.2


def test_disturbed_points_do_not_bend_the_rest() -> None:
    points = points_of(Fit(parameters=TRUTH))
    for index in (3, 15, 30):
        fields = {name: getattr(points[index], name) for name in Point.__slots__}
        points[index] = Point(**(fields | {"measured_ms": points[index].measured_ms * 3}))
    result = fit_points(points, source="test")
    errors = sorted(abs(residual.error) for residual in result.residuals)
    assert errors[len(errors) // 2] < 0.01
    assert result.max_error > 0.5
    assert result.fit.parameters.per_token_ms == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("solve", [solve_limits, solve_curve])
def test_no_constant_is_negative(solve: object) -> None:
    falling = [
        Point(kind="decode", num_decodes=n, context_tokens=100 * n, measured_ms=50.0 - n)
        for n in range(1, 20)
    ]
    parameters = solve(falling).fit.parameters  # type: ignore[operator]
    assert all(getattr(parameters, name) >= 0 for name in FittedParameters.__dataclass_fields__)


def test_what_the_points_cannot_tell_is_named() -> None:
    decodes = [point for point in points_of(Fit(parameters=TRUTH)) if point.kind == "decode"]
    result = fit_points(decodes, source="test")
    assert {"ingress_ms", "prompt_step_ms", "per_pair_ms"} <= set(result.fit.unidentified)
    assert "ingress_ms" not in result.fit.intervals
    assert result.fit.measured.prefill_tokens is None
    assert result.fit.measured.num_decodes == 64


def test_held_out_error_is_of_points_not_seen() -> None:
    points = points_of(Fit(parameters=TRUTH))
    assert held_out_error(points, solve_limits) < 0.01
    assert held_out_error(points_of(Fit(parameters=TRUTH), noise=0.3), solve_limits) > 0.05


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ConfigError, match="too few"):
        fit_points(points_of(Fit(parameters=TRUTH))[:8], source="test")


def test_the_written_file_times_steps_as_the_fit_does(tmp_path: Path) -> None:
    fit = fit_points(points_of(Fit(parameters=TRUTH)), source="test").fit
    write_fit(fit, tmp_path / "timing.json")
    again = FittedModel(read_fit(tmp_path / "timing.json"))
    for step in ((1, 300, 100, 0, 0), (0, 0, 0, 5, 900), (1, 64, 0, 3, 400)):
        assert again.step_ms(StepShape(*step)) == pytest.approx(
            FittedModel(fit).step_ms(StepShape(*step)), rel=1e-12
        )


def token_times(first_ms: float, *gaps_ms: float) -> list[float]:
    times: list[float] = np.cumsum([first_ms, *gaps_ms]).tolist()
    return times


def test_steady_gaps_are_those_in_which_all_decode() -> None:
    early = token_times(10, 10, 10, 10, 5, 5, 5, 5)  # tokens at 10, 20, 30, 40, 45, 50, 55, 60
    late = token_times(40, 5, 5, 5, 5, 5, 5)  # 40, 45, ... 70
    gaps, position = steady_gaps([early, late], settle_steps=1)
    assert gaps.tolist() == [5.0, 5.0]
    assert 2 < position < 6


def test_streams_that_hardly_overlap_have_no_steady_gaps() -> None:
    gaps, _ = steady_gaps([token_times(0, 1, 1), token_times(50, 1, 1)], settle_steps=2)
    assert len(gaps) == 0


def test_newcomers_are_seen_in_the_gaps_they_stretch() -> None:
    first = token_times(0, 10, 10, 40, 10, 40, 10)  # 0, 10, 20, 60, 70, 110, 120
    second = token_times(1, 10, 10, 40, 10, 40, 10)
    samples, positions = newcomer_gaps([first, second], [60.4, 110.2])
    assert samples == [40.0, 40.0]
    assert positions == [3.0, 5.0]


def test_newcomers_before_all_decode_do_not_count() -> None:
    samples, _ = newcomer_gaps([token_times(0, 10, 10), token_times(15, 5)], [10.0])
    assert samples == []
