"""More work never takes less time, and the parts of a step add up as each model says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing_models import MODELS

from dynosim.timing.fitted import FittedModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

KINDS = {type(model).__name__: model for model in MODELS}

GROWS: dict[str, set[str]] = {
    "FixedModel": {"prompt", "prefix", "decodes", "contexts"},
    "LinearModel": {"prompt", "prefix", "decodes", "contexts"},
    "PolynomialModel": {"prompt", "prefix", "decodes", "contexts"},
    "RooflineModel": {"prompt", "prefix", "decodes", "contexts"},
    "SquareRootModel": {"prompt", "prefix", "decodes", "contexts"},
    # Its context curve falls towards large batches; padding and curves grow.
    "FittedModel": {"prompt", "prefix", "contexts"},
    # What was measured may fall from point to point, of decodes here.
    "ProfileModel": {"prompt", "prefix"},
    "DynamoProfileModel": {"prompt", "prefix"},
    # Made-up kernels; only its decode attention rises in the contexts.
    "SiliconModel": {"contexts"},
    "ScaledModel": {"contexts"},
}
MORE = {
    "prompt": lambda step, by: (step[0], step[1] + by, *step[2:]),
    "prefix": lambda step, by: (*step[:2], step[2] + by, *step[3:]),
    "decodes": lambda step, by: (*step[:3], step[3] + by, step[4]),
    "contexts": lambda step, by: (*step[:4], step[4] + by),
}
steps = st.tuples(
    st.just(1), st.integers(1, 600), st.integers(0, 900), st.integers(1, 70), st.integers(1, 400)
).map(lambda drawn: (*drawn[:4], drawn[3] * drawn[4]))
"""One prompt and some decodes, the last number being the sum of their contexts."""


def test_every_kind_of_model_says_where_it_grows() -> None:
    assert set(GROWS) == set(KINDS)


@pytest.mark.parametrize(
    ("kind", "quantity"), [(kind, one) for kind, names in GROWS.items() for one in sorted(names)]
)
@given(step=steps, by=st.sampled_from([1, 7, 130, 5000]))
@settings(max_examples=15, deadline=None)
def test_more_never_takes_less(
    kind: str, quantity: str, step: tuple[int, int, int, int, int], by: int
) -> None:
    model = KINDS[kind]
    more_ms, step_ms = (
        model.step_ms(StepShape(*MORE[quantity](step, by))),
        model.step_ms(StepShape(*step)),
    )
    assert more_ms >= step_ms * (1 - 1e-12)


def parts(step: tuple[int, int, int, int, int]) -> tuple[StepShape, StepShape]:
    """A step's prompts and its decodes."""
    return StepShape(*step[:3]), StepShape.of_decodes(*step[3:])


ADDS = ["FixedModel", "PolynomialModel", "ProfileModel", "DynamoProfileModel"]


@pytest.mark.parametrize("kind", ADDS)
@given(step=steps)
@settings(max_examples=15, deadline=None)
def test_a_mixed_step_is_the_sum_of_its_parts(
    kind: str, step: tuple[int, int, int, int, int]
) -> None:
    model = KINDS[kind]
    parts_ms = sum(model.step_ms(part) for part in parts(step))
    assert model.step_ms(StepShape(*step)) == pytest.approx(parts_ms, rel=1e-12)


@pytest.mark.parametrize("kind", ["LinearModel", "RooflineModel", "FittedModel", "SquareRootModel"])
@given(step=steps)
@settings(max_examples=15, deadline=None)
def test_a_mixed_step_shares_what_every_step_costs(
    kind: str, step: tuple[int, int, int, int, int]
) -> None:
    model = KINDS[kind]
    prompt_ms, decode_ms = (model.step_ms(part) for part in parts(step))
    assert max(prompt_ms, decode_ms) < model.step_ms(StepShape(*step)) < prompt_ms + decode_ms


@pytest.mark.parametrize("kind", ["LinearModel", "RooflineModel", "FittedModel"])
@given(step=steps, by=st.integers(1, 900))
@settings(max_examples=15, deadline=None)
def test_contexts_and_prefixes_cost_in_proportion(
    kind: str, step: tuple[int, int, int, int, int], by: int
) -> None:
    model = KINDS[kind]
    for quantity in ("contexts", "prefix"):
        once, twice = (model.step_ms(StepShape(*MORE[quantity](step, n * by))) for n in (1, 2))
        first = model.step_ms(StepShape(*step))
        assert twice - once == pytest.approx(once - first, rel=1e-6, abs=1e-9)


@given(drawn=st.lists(steps, min_size=1, max_size=12), alone=st.sampled_from([0, 1, 2]))
@settings(max_examples=25, deadline=None)
def test_many_fitted_steps_at_once_are_single_steps(
    drawn: list[tuple[int, int, int, int, int]], alone: int
) -> None:
    model = KINDS["FittedModel"]
    assert isinstance(model, FittedModel)
    cut = {0: lambda s: s, 1: lambda s: (*s[:3], 0, 0), 2: lambda s: (0, 0, 0, *s[3:])}[alone]
    rows = [cut(step) for step in drawn]
    together = model.steps_ms(np.array(rows))
    assert together == pytest.approx([model.step_ms(StepShape(*row)) for row in rows], rel=1e-12)


SOURCES = {
    "FixedModel": "estimated",
    "LinearModel": "estimated",
    "PolynomialModel": "estimated",
    "RooflineModel": "estimated",
    "SquareRootModel": "estimated",  # unless a model says better
    "ProfileModel": "measured",
    "DynamoProfileModel": "measured",
    "SiliconModel": "measured",
    "ScaledModel": "measured",  # as the one that it scales
    "FittedModel": "derived",
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_every_model_says_where_its_times_come_from(model: StepTimeModel) -> None:
    assert model.source == SOURCES[type(model).__name__]
