"""Which steps lay inside what a model was measured on: at both ends of every axis of each model."""

from dataclasses import replace

import numpy as np
import pytest
from timing_support import silicon_table

from dynosim.testing.step_times import step_log
from dynosim.timing.axes import AXES
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters, MeasuredRange
from dynosim.timing.formulas import FixedModel, LinearModel, PolynomialModel
from dynosim.timing.model import StepTimeModel, contexts_below
from dynosim.timing.profile import DynamoProfileModel, PrefillCurve, ProfileModel
from dynosim.timing.scaled import ScaledModel
from dynosim.timing.silicon_model import SiliconModel

CURVE = PrefillCurve([100.0, 1000.0], [10.0, 40.0])
POINTS = np.array([[5.0, 6.0], [8.0, 12.0]])
OWN = ProfileModel(CURVE, np.array([2.0, 8.0]), np.array([100.0, 500.0]), POINTS, name="own")
DYNAMO = DynamoProfileModel(
    CURVE, np.array([1000.0, 9000.0]), np.array([100.0, 500.0]), POINTS, name="dynamo"
)
SILICON = SiliconModel(silicon_table())


def inside(model: StepTimeModel, *row: int) -> int:
    """How many steps of one row are in range."""
    return int(model.steps_in_range(step_log(row))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [OWN, DYNAMO], ids=["own", "dynamo"])
@pytest.mark.parametrize(
    ("tokens", "is_inside"),
    [(0, True), (1, False), (99, False), (100, True), (1000, True), (1001, False)],
)
def test_new_prompt_tokens_of_a_profile(model: StepTimeModel, tokens: int, is_inside: bool) -> None:
    # Beside a decode batch that is inside on all axes, and alone.
    assert inside(model, 1, min(tokens, 1), tokens, 0, 5, 5 * 300) == is_inside
    assert inside(model, 1, min(tokens, 1), tokens, 0, 0, 0) == is_inside


@pytest.mark.parametrize(("batch", "is_inside"), [(1, False), (2, True), (8, True), (9, False)])
def test_batches_of_a_profile(batch: int, is_inside: bool) -> None:
    assert inside(OWN, 1, 0, 0, 0, batch, batch * 300) == is_inside


@pytest.mark.parametrize(
    ("context", "is_inside"),
    [(4 * 99, False), (4 * 100 - 1, False), (4 * 100, True), (4 * 500, True), (4 * 500 + 1, False)],
)
def test_mean_contexts_of_a_profile(context: int, is_inside: bool) -> None:
    assert inside(OWN, 1, 0, 0, 0, 4, context) == is_inside


@pytest.mark.parametrize(
    ("first", "steps", "expected"),
    [
        (100, 401, 401),  # all contexts from the first to the last
        (99, 402, 401),
        (100, 402, 401),
        (90, 20, 10),  # 100 to 109
        (90, 10, 0),  # 90 to 99
        (90, 11, 1),
        (495, 20, 6),  # 495 to 500
        (500, 5, 1),
        (501, 5, 0),
        (50, 900, 401),
    ],
)
@pytest.mark.parametrize("model", [OWN, DYNAMO], ids=["own", "dynamo"])
def test_a_run_enters_and_leaves_the_contexts_of_a_profile(
    model: StepTimeModel, first: int, steps: int, expected: int
) -> None:
    # Twelve sequences are too many for one profile, and four have too few tokens for the other.
    batch = 4 if model is OWN else 12
    assert inside(model, steps, 0, 0, 0, batch, batch * first) == expected


@pytest.mark.parametrize(
    ("tokens", "is_inside"), [(999, False), (1000, True), (9000, True), (9001, False)]
)
def test_tokens_in_all_contexts_of_a_dynamo_profile(tokens: int, is_inside: bool) -> None:
    batch = 5 if tokens < 5000 else 30  # mean contexts of 200 and 300
    assert inside(DYNAMO, 1, 0, 0, 0, batch, tokens) == is_inside


@pytest.mark.parametrize(
    ("batch", "tokens", "is_inside"),
    [
        (11, 11 * 100 - 1, False),  # whole tokens: 99
        (11, 11 * 100, True),
        (11, 11 * 100 + 10, True),
        (16, 16 * 500, True),
        (16, 16 * 500 + 15, True),  # still 500
        (16, 16 * 501, False),
    ],
)
def test_mean_contexts_of_a_dynamo_profile_are_whole(
    batch: int, tokens: int, is_inside: bool
) -> None:
    assert inside(DYNAMO, 1, 0, 0, 0, batch, tokens) == is_inside


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((10, 0, 0, 0, 20, 8900), 6),  # 8900, 8920 ... 9000
        ((10, 0, 0, 0, 8, 960), 5),  # 1000 at the sixth
        ((2000, 0, 0, 0, 4, 4 * 240), 251),  # from 1000 tokens on, until a mean of 500
    ],
)
def test_a_run_enters_and_leaves_the_tokens_of_a_dynamo_profile(
    row: tuple[int, ...], expected: int
) -> None:
    assert inside(DYNAMO, *row) == expected


@pytest.mark.parametrize(
    ("batch", "context", "steps", "expected"),
    [
        (1, 1000, 1, 1),  # measured up to 1000 with one sequence
        (1, 1001, 1, 0),
        (2, 500, 1, 1),  # two count as eight: the next batch measured, up to 500
        (2, 501, 1, 0),
        (8, 500, 1, 1),
        (8, 501, 1, 0),
        (9, 50, 1, 1),  # as sixty-four, up to 50
        (9, 51, 1, 0),
        (64, 50, 1, 1),
        (64, 51, 1, 0),
        (65, 10, 1, 0),  # more than the table has
        (8, 491, 10, 10),
        (8, 492, 10, 9),
    ],
)
def test_decode_steps_of_the_tables(batch: int, context: int, steps: int, expected: int) -> None:
    assert inside(SILICON, steps, 0, 0, 0, batch, batch * context) == expected


@pytest.mark.parametrize(
    ("prompts", "tokens", "prefix", "decodes", "is_inside"),
    [
        (1, 512, 0, 0, True),  # measured up to 512 with one prompt
        (1, 512, 1024, 0, True),
        (1, 512, 1025, 0, False),
        (2, 200, 0, 0, True),  # two count as four, up to 100 each
        (2, 201, 0, 0, False),
        (4, 400, 4 * 1024, 0, True),
        (4, 401, 0, 0, False),
        (4, 400, 4 * 1024 + 1, 0, False),
        (5, 5, 0, 0, False),  # more prompts than were measured
        (1, 500, 0, 12, True),  # 512 tokens in all
        (1, 501, 0, 12, False),
        (1, 1, 0, 64, True),
    ],
)
def test_prompts_of_the_tables(
    prompts: int, tokens: int, prefix: int, decodes: int, is_inside: bool
) -> None:
    assert inside(SILICON, 1, prompts, tokens, prefix, decodes, decodes * 40) == is_inside


def test_without_measured_extents_the_tables_own_count() -> None:
    nothing = np.zeros(0)
    table = replace(
        silicon_table(),
        measured_batches=nothing,
        measured_contexts=nothing,
        measured_counts=nothing,
        measured_new_tokens=nothing,
    )
    model = SiliconModel(table)
    assert [inside(model, 1, 0, 0, 0, 64, 64 * length) for length in (1000, 1001)] == [1, 0]
    assert [inside(model, 1, 0, 0, 0, batch, batch) for batch in (64, 65)] == [1, 0]
    assert [inside(model, 1, 9, 512, 0, 0, 0), inside(model, 1, 9, 513, 0, 0, 0)] == [1, 0]
    measured = replace(table, measured_batches=np.array([64.0]), measured_contexts=np.array([2e3]))
    beyond = SiliconModel(measured)  # measured further than the table goes
    assert [inside(beyond, 1, 0, 0, 0, 4, 4 * length) for length in (1000, 1001)] == [1, 0]


@pytest.mark.parametrize(
    ("axis", "limit", "row", "expected"),
    [
        ("prefill_tokens", 100, (1, 1, 100, 0, 0, 0), 1),
        ("prefill_tokens", 100, (1, 1, 101, 0, 0, 0), 0),
        ("prefix_tokens", 50.0, (1, 2, 9, 100, 0, 0), 1),  # of each prompt, in the mean
        ("prefix_tokens", 50.0, (1, 2, 9, 101, 0, 0), 0),
        ("prefix_tokens", 50.0, (7, 0, 0, 0, 3, 300), 7),
        ("num_decodes", 8, (5, 0, 0, 0, 8, 80), 5),
        ("num_decodes", 8, (5, 0, 0, 0, 9, 90), 0),
        ("mean_context", 30.0, (5, 0, 0, 0, 4, 4 * 26), 5),  # 26 to 30
        ("mean_context", 30.0, (5, 0, 0, 0, 4, 4 * 26 + 1), 4),
        ("mean_context", 30.0, (5, 0, 0, 0, 4, 4 * 30), 1),
        ("mean_context", 30.0, (5, 0, 0, 0, 4, 4 * 30 + 1), 0),
        ("mean_context", 30.0, (1, 1, 500, 0, 0, 0), 1),
    ],
)
def test_axes_of_a_fit_one_by_one(
    axis: str, limit: float, row: tuple[int, ...], expected: int
) -> None:
    known = MeasuredRange(**{axis: limit})  # type: ignore[arg-type]
    model = FittedModel(Fit(parameters=FittedParameters(), measured=known))
    steps = step_log(row)  # type: ignore[arg-type]
    assert model.steps_in_range(steps).tolist() == [expected]
    for other in AXES:
        found = model.steps_in_range_of(other, steps).tolist()
        assert found == [expected if other == axis else row[0]]


def test_a_step_of_a_fit_must_be_inside_on_every_axis() -> None:
    known = MeasuredRange(prefill_tokens=100, prefix_tokens=50.0, num_decodes=8, mean_context=30.0)
    model = FittedModel(Fit(parameters=FittedParameters(), measured=known))
    assert inside(model, 1, 1, 100, 50, 8, 8 * 30) == 1
    assert inside(model, 1, 1, 101, 50, 8, 8 * 30) == 0
    assert inside(model, 1, 1, 100, 51, 8, 8 * 30) == 0
    assert inside(model, 1, 1, 100, 50, 9, 9 * 30) == 0
    assert inside(model, 1, 1, 100, 50, 8, 8 * 31) == 0


@pytest.mark.parametrize(
    "model",
    [
        FixedModel(1, 1),
        LinearModel(base_ms=1, per_prefill_token_ms=1, per_decode_ms=1, per_context_token_ms=1),
        PolynomialModel(100),
        FittedModel(Fit(parameters=FittedParameters())),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_was_measured_nowhere_is_never_out_of_range(model: StepTimeModel) -> None:
    rows = step_log((9, 0, 0, 0, 10**6, 10**12), (1, 10**6, 10**9, 10**9, 0, 0))
    assert model.steps_in_range(rows).tolist() == [9, 1]


def test_a_scaled_model_has_the_range_of_its_own() -> None:
    rows = step_log((10, 0, 0, 0, 4, 4 * 495), (1, 1, 99, 0, 0, 0))
    assert ScaledModel(OWN, 7.0).steps_in_range(rows).tolist() == [6, 0]


@pytest.mark.parametrize(
    ("row", "limit", "expected"),
    [
        ((4, 0, 0, 0, 2, 2 * 10), 12.0, 3),  # 10, 11, 12
        ((4, 0, 0, 0, 2, 2 * 10 + 1), 12.0, 2),  # 10.5, 11.5
        ((4, 0, 0, 0, 2, 2 * 10), 9.9, 0),
        ((4, 0, 0, 0, 2, 2 * 10), 99.0, 4),
        ((4, 0, 0, 0, 0, 0), 0.0, 4),
        ((4, 0, 0, 0, 3, 31), 31 / 3, 1),
        ((4, 0, 0, 0, 3, 5), 8 / 3, 2),  # a limit that is met but for rounding
    ],
)
def test_steps_with_contexts_up_to_a_limit(
    row: tuple[int, ...], limit: float, expected: int
) -> None:
    found = contexts_below(step_log(row), np.array([limit]))  # type: ignore[arg-type]
    assert found.tolist() == [expected]
    assert found.dtype == np.int64
