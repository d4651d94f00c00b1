"""Figures of a calibration worked out a second time: samples of a shape, gaps, errors of a fit."""

import itertools
from dataclasses import asdict, replace
from math import hypot, sqrt
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.errors import ConfigError
from dynosim.fit.fit_points import (
    MIN_POINTS,
    FitResult,
    fit_points,
    held_out_error,
)
from dynosim.fit.forms import point_ms, relative_errors, solve_curve
from dynosim.fit.point_gaps import newcomer_gaps, roundest, steady_gaps
from dynosim.fit.points import Point, Series, Shape
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters
from dynosim_runtime.measure.calibrate import calibration_document, print_result
from dynosim_runtime.measure.steps import StepMeasurements

TRUTH = FittedParameters(
    overhead_ms=4.0, weights_ms=6.0, per_token_ms=0.2, per_decode_ms=0.3,
    per_context_token_ms=0.0008, ingress_ms=2.5,
)  # fmt: skip


def points(noise: float = 0.0) -> list[Point]:
    """18 of an engine of known constants, every other one off by so much."""
    model = FittedModel(Fit(parameters=TRUTH))
    shapes = [
        *(Shape("prefill", prefill_tokens=n) for n in (16, 64, 256, 512, 1024, 2000)),
        *(Shape("decode", num_decodes=n, prompt_tokens=c) for n in (1, 8, 64) for c in (40, 900)),
        *(Shape("mixed", n, 0, b, 40) for n in (16, 512) for b in (1, 4, 9)),
    ]
    blanks = [shape.point(1.0, shape.num_decodes * shape.prompt_tokens) for shape in shapes]
    signs = itertools.cycle((1 + noise, 1 - noise, 1.0))
    return [
        replace(blank, measured_ms=point_ms(model, blank) * sign)
        for blank, sign in zip(blanks, signs, strict=False)
    ]


# ---- points --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spread", "num_samples", "weight"),
    [
        (0.0, 1, 1.0),
        # 0.02 over the root of its square and that of the median's own error.
        (0.27, 1, 0.02 / hypot(0.02, 1.25 * 0.27 / 1.35)),
        (0.27, 25, 0.02 / hypot(0.02, 1.25 * 0.27 / 1.35 / 5)),
    ],
)
def test_a_point_weighs_by_how_sure_its_median_is(
    spread: float, num_samples: int, weight: float
) -> None:
    point = Point(kind="decode", measured_ms=5.0, spread=spread, num_samples=num_samples)
    assert point.weight == pytest.approx(weight)


@pytest.mark.parametrize(
    ("shape", "label"),
    [
        (Shape("prefill", prefill_tokens=16), "16 prompt tokens"),
        (Shape("cached prefill", 16, 1024), "16 prompt tokens after 1024 cached"),
        (Shape("decode", num_decodes=3, prompt_tokens=32), "3 decoding at 32"),
        (Shape("mixed", 16, 0, 3, 32), "16 prompt tokens, 3 decoding at 32"),
    ],
)
def test_a_shape_is_told_in_a_few_words(shape: Shape, label: str) -> None:
    assert shape.label() == label
    assert shape.point(1.0, shape.num_decodes * 40).label() == label.replace("at 32", "at 40")


def test_a_shape_measured_is_a_step() -> None:
    assert Shape("mixed", 16, 8, 3, 32).point(7.0, 100) == Point(
        kind="mixed",
        num_prefills=1,
        prefill_tokens=16,
        prefix_tokens=8,
        num_decodes=3,
        context_tokens=100,
        is_outside_included=False,
        measured_ms=7.0,
    )
    prompt = Shape("prefill", prefill_tokens=16).point(7.0, 0)
    assert (prompt.num_prefills, prompt.is_outside_included) == (1, True)
    assert Shape("decode", num_decodes=2, prompt_tokens=9).point(1.0, 20).num_prefills == 0


def test_samples_become_their_median_at_the_mean_of_contexts() -> None:
    series = Series([1.0, 9.0, 4.0, 5.0, 3.0], [10.0, 11.0])
    point = series.point(Shape("decode", num_decodes=2, prompt_tokens=9))
    # Ordered 1, 3, 4, 5, 9: quartiles 3 and 5 around 4.
    assert (point.measured_ms, point.spread, point.num_samples) == (4.0, 0.5, 5)
    assert point.context_tokens == 10  # of 10.5, to the nearest even
    assert Series([0.0], [0.0]).point(Shape("decode")).spread == 0.0


# ---- gaps ----------------------------------------------------------------------------------------

TIMES = st.lists(st.integers(1, 9), min_size=3, max_size=12)


def token_times(start: int, gaps: list[int]) -> list[float]:
    return [float(at) for at in itertools.accumulate(gaps, initial=start)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), TIMES), min_size=1, max_size=4), st.integers(0, 2))
def test_steady_gaps_are_those_between_the_last_begin_and_the_first_end(
    streams: list[tuple[int, list[int]]], settle: int
) -> None:
    times_ms = [token_times(start, gaps) for start, gaps in streams]
    begin_ms = max(one[0] for one in times_ms)
    end_ms = min(one[-1] for one in times_ms)
    gaps: list[float] = []
    positions: list[float] = []
    for one in times_ms:
        inside = [n for n, at in enumerate(one) if begin_ms < at < end_ms][settle:]
        if inside:
            gaps += [one[n] - one[n - 1] for n in inside[1:]]
            positions.append((inside[0] + inside[-1] + 1) / 2)
    found, position = steady_gaps(times_ms, settle)
    assert found.tolist() == gaps
    assert position == pytest.approx(fmean(positions) if positions else 0.0)


def test_a_newcomers_step_is_the_gap_that_ends_nearest_to_its_token() -> None:
    # Tokens at 0, 10, 20, 50, 60 and at 5, 15, 25, 65, 75.
    streams = [token_times(0, [10, 10, 30, 10]), token_times(5, [10, 10, 40, 10])]
    samples, positions = newcomer_gaps(streams, [51.0, 61.0, 200.0])
    # Nearest are 50 and 65, after 30 and 40; 60 and 65, after 10 and 40; 60 and 75, after 10.
    assert samples == [35.0, 25.0, 10.0]
    assert positions == [3.0, 3.5, 4.0]


def test_newcomers_count_only_where_all_streams_had_begun() -> None:
    streams = [token_times(0, [10, 10, 10]), token_times(12, [8, 10])]  # 0 10 20 30; 12 20 30
    samples, positions = newcomer_gaps(streams, [10.0, 20.0, 30.0])
    # At 10 the second had not begun; at 20 the first's gap began before it did.
    assert (samples, positions) == ([10.0], [2.5])


@pytest.mark.parametrize(
    ("low", "high", "number"), [(1, 1, 1), (3, 5, 4), (5, 7, 6), (15, 17, 16), (65, 127, 96)]
)
def test_the_roundest_number_has_most_twos(low: int, high: int, number: int) -> None:
    assert roundest(low, high) == number


# ---- the fit -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    return fit_points(points(0.04), source="test")


def test_errors_of_a_fit_are_those_of_its_points(fitted: FitResult) -> None:
    model = FittedModel(fitted.fit)
    assert len(fitted.residuals) == 18
    for residual, point in zip(fitted.residuals, points(0.04), strict=True):
        assert residual.point == point
        assert residual.fitted_ms == point_ms(model, point)
        assert residual.error == residual.fitted_ms / point.measured_ms - 1
    errors = [abs(residual.error) for residual in fitted.residuals]
    assert fitted.mean_error == pytest.approx(fmean(errors))
    assert fitted.max_error == max(errors) > fitted.mean_error > 0
    measured = [residual.point.measured_ms for residual in fitted.residuals]
    mean = fmean(measured)
    around = sum((value - mean) ** 2 for value in measured)
    left = sum((r.fitted_ms - r.point.measured_ms) ** 2 for r in fitted.residuals)
    assert fitted.r_squared == pytest.approx(1 - left / around)


def test_of_the_forms_the_one_that_foretells_better_is_taken(fitted: FitResult) -> None:
    assert set(fitted.held_out_errors) == {"limits", "curve"}
    assert fitted.held_out_error == min(fitted.held_out_errors.values())
    assert fitted.held_out_errors[fitted.form] == fitted.held_out_error
    assert fitted.fit.errors == {"step_ms": fitted.held_out_error}
    assert bool(fitted.fit.token_curve) is (fitted.form == "curve")


def test_a_held_out_error_is_of_every_point_under_a_fit_to_the_others() -> None:
    given = points(0.04)
    errors = []
    for fold in range(5):
        seen = [point for number, point in enumerate(given) if number % 5 != fold]
        unseen = [point for number, point in enumerate(given) if number % 5 == fold]
        model = FittedModel(solve_curve(seen).fit)
        errors += [abs(point_ms(model, point) / point.measured_ms - 1) for point in unseen]
    assert len(errors) == len(given)
    assert held_out_error(given, solve_curve) == pytest.approx(fmean(errors))


def test_what_a_fit_was_measured_on_is_told(fitted: FitResult) -> None:
    assert asdict(fitted.fit.measured) == {
        "prefill_tokens": 2000, "prefix_tokens": 0.0, "num_decodes": 64, "mean_context": 900.0,
    }  # fmt: skip
    assert fitted.fit.source == "test"
    assert fitted.fit.method == (
        f"robust least squares over measured steps; matrix products: {fitted.form}"
    )


def test_sixteen_points_are_enough_and_one_less_is_not() -> None:
    assert MIN_POINTS == 16
    with pytest.raises(ConfigError, match=r"15 measured points are too few .*\(16 are needed\)"):
        fit_points(points()[:15], source="test")


def test_intervals_hold_the_constants_and_shrink_with_noise(fitted: FitResult) -> None:
    exact = fit_points(points(), source="test").fit
    assert set(fitted.fit.intervals) >= {"overhead_ms", "per_decode_ms", "ingress_ms"}
    for name, (low, high) in fitted.fit.intervals.items():
        assert 0 <= low <= getattr(fitted.fit.parameters, name) <= high
    for name, (low, high) in exact.intervals.items():
        wide_low, wide_high = fitted.fit.intervals.get(name, (0.0, float("inf")))
        assert high - low < wide_high - wide_low


def test_a_point_outside_of_the_engine_counts_its_way_in_and_out() -> None:
    model = FittedModel(Fit(parameters=replace(TRUTH, egress_ms=0.5)))
    inside = Point(kind="prefill", num_prefills=1, prefill_tokens=16, measured_ms=1.0)
    outside = replace(inside, is_outside_included=True)
    assert point_ms(model, outside) == pytest.approx(point_ms(model, inside) + 2.5 + 0.5)
    errors = relative_errors(Fit(parameters=TRUTH), [replace(inside, measured_ms=2.0)])
    plain = point_ms(FittedModel(Fit(parameters=TRUTH)), inside)
    assert errors.tolist() == pytest.approx([plain / 2.0 - 1])


def test_pieces_of_a_curve_meet_at_powers_of_two_and_the_largest_step() -> None:
    given = [
        Point(kind="prefill", num_prefills=1, prefill_tokens=n, measured_ms=sqrt(n))
        for n in (1, 5, 30, 100)
    ]
    nodes = [tokens for tokens, _ in solve_curve(given).fit.token_curve]
    assert nodes == [1, 2, 4, 8, 16, 32, 64, 100]
    heights = [height for _, height in solve_curve(given).fit.token_curve]
    assert heights[0] == 0.0
    assert all(np.diff(heights) >= 0)


def test_the_document_and_the_screen_say_what_the_fit_says(
    fitted: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = StepMeasurements(points(0.04), ["left out: much"], {"block_size": "16"}, 3)
    document = calibration_document(fitted, measured)
    assert document["parameters"] == asdict(fitted.fit.parameters)
    assert (document["form"], document["num_rounds"]) == (fitted.form, 3)
    assert (document["notes"], document["engine"]) == (["left out: much"], {"block_size": "16"})
    for name in ("r_squared", "mean_error", "max_error", "held_out_error", "held_out_errors"):
        assert document[name] == getattr(fitted, name)
    assert [point["fitted_ms"] for point in document["points"]] == [
        residual.fitted_ms for residual in fitted.residuals
    ]
    assert document["points"][1]["error"] == fitted.residuals[1].error
    assert document["points"][1]["measured_ms"] == fitted.residuals[1].point.measured_ms
    print_result(fitted, measured)
    said = capsys.readouterr().out
    first = fitted.residuals[0]
    line = said.splitlines()[1].split()
    assert line == [
        "prefill:", "16", "prompt", "tokens", f"{first.point.measured_ms:.2f}", "0", "%",
        f"{first.fitted_ms:.2f}", f"{100 * first.error:.1f}", "%",
    ]  # fmt: skip
    assert f"held out {100 * fitted.held_out_error:.1f} %" in said
    assert said.endswith("note: left out: much\n")
