"""Laws of every step-time model: sums equal loops, arrays scalars, searches brute force."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing_models import IDS, MODELS
from timing_support import step_log

from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import BatchShape

batches = st.tuples(st.integers(1, 80), st.integers(0, 1500), st.integers(0, 79)).map(
    lambda drawn: (drawn[0], drawn[0] * (1 + drawn[1]) + drawn[2] % drawn[0])
)
"""(sequences, sum of their contexts): every sequence has one token at least."""


def _steps(model: StepTimeModel, num_decodes: int, context: int, count: int) -> list[float]:
    return [
        model.step_ms(BatchShape.of_decodes(num_decodes, context + j * num_decodes))
        for j in range(count)
    ]


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@given(batch=batches, num_steps=st.integers(0, 900))
@settings(max_examples=30, deadline=None)
def test_decode_run_equals_the_sum_of_its_steps(
    model: StepTimeModel, batch: tuple[int, int], num_steps: int
) -> None:
    loop = sum(_steps(model, *batch, num_steps))
    assert model.decode_run_ms(*batch, num_steps) == pytest.approx(loop, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@given(batch=batches, max_steps=st.integers(1, 300), share=st.floats(-0.1, 1.2))
@settings(max_examples=30, deadline=None)
def test_decode_steps_until_finds_the_first_step_that_reaches(
    model: StepTimeModel, batch: tuple[int, int], max_steps: int, share: float
) -> None:
    elapsed = share * model.decode_run_ms(*batch, max_steps)
    runs = [model.decode_run_ms(*batch, j) for j in range(1, max_steps + 1)]
    first = next((j for j, run in enumerate(runs, 1) if run >= elapsed), max_steps)
    assert model.decode_steps_until(*batch, max_steps, elapsed) == first


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@given(batch=batches, max_steps=st.integers(2, 200), at=st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_decode_steps_until_is_exact_at_step_ends(
    model: StepTimeModel, batch: tuple[int, int], max_steps: int, at: int
) -> None:
    at = min(at, max_steps)
    end = model.decode_run_ms(*batch, at)
    assert model.decode_steps_until(*batch, max_steps, end) == at
    just_after = np.nextafter(end, np.inf)
    assert model.decode_steps_until(*batch, max_steps, just_after) == min(at + 1, max_steps)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@given(drawn=st.lists(batches, min_size=1, max_size=20))
@settings(max_examples=15, deadline=None)
def test_array_equals_scalar(model: StepTimeModel, drawn: list[tuple[int, int]]) -> None:
    decodes = np.array([0, *(d for d, _ in drawn)])
    contexts = np.array([0, *(c for _, c in drawn)])
    scalar = [
        model.step_ms(BatchShape.of_decodes(int(d), int(c)))
        for d, c in zip(decodes, contexts, strict=True)
    ]
    assert model.decode_step_ms_array(decodes, contexts) == pytest.approx(scalar, rel=1e-9)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@given(batch=batches)
@settings(max_examples=20, deadline=None)
def test_steps_never_take_negative_time_and_grow_where_promised(
    model: StepTimeModel, batch: tuple[int, int]
) -> None:
    steps = _steps(model, *batch, 30)
    assert min(steps) >= 0
    if model.decode_is_monotone:
        assert list(accumulate(steps, max)) == pytest.approx(steps, rel=1e-12)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_nothing_to_compute_takes_no_time(model: StepTimeModel) -> None:
    assert model.step_ms(BatchShape()) == 0
    assert model.decode_run_ms(0, 0, 10) == 0


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@given(batch=batches, num_steps=st.integers(1, 1500))
@settings(max_examples=20, deadline=None)
def test_range_of_a_run_is_the_sum_over_its_steps(
    model: StepTimeModel, batch: tuple[int, int], num_steps: int
) -> None:
    num_decodes, context = batch
    run = model.steps_in_range(step_log((num_steps, 0, 0, 0, num_decodes, context)))
    single = step_log(
        *((1, 0, 0, 0, num_decodes, context + j * num_decodes) for j in range(num_steps))
    )
    assert run[0] == model.steps_in_range(single).sum()
