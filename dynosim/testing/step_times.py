"""What every step-time model must answer: sums equal loops, arrays scalars, searches trying all."""

from copy import deepcopy
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.records import FloatArray, IntArray, StepLog
from dynosim.testing import law
from dynosim.timing.model import DERIVED, ESTIMATED, MEASURED, StepTimeModel
from dynosim.timing.step import StepShape

batches = st.tuples(st.integers(1, 80), st.integers(0, 1500), st.integers(0, 79)).map(
    lambda drawn: (drawn[0], drawn[0] * (1 + drawn[1]) + drawn[2] % drawn[0])
)
"""(sequences, sum of their contexts): every sequence has one token at least."""

shapes = st.builds(
    lambda prompts, prompt, prefix, decodes, context: StepShape(
        prompts, prompts * prompt, prefix, decodes, decodes * context
    ),
    st.integers(1, 4),
    st.integers(1, 600),
    st.integers(0, 900),
    st.integers(0, 70),
    st.integers(1, 400),
)
"""Some prompts, and some decodes beside them."""


class StepTimesContract:
    """The tests of a `StepTimeModel`.

    The heir supplies `model`, a fixture of class scope, with at most 80 decodes of some 1,500
    tokens and prompts of 600 tokens in its reach.

    An engine asks `step_ms` for every step that it plans, and keeps the shape that it gave: read it
    at once, change nothing. For runs of decode steps it asks `decode_run_ms` when they end and
    `decode_steps_until` where they can be cut, and takes both for the sum of the single steps. A
    model must not look at a clock, draw at random, or answer by what it was asked before.
    """

    @law(30)
    @given(batch=batches, num_steps=st.integers(0, 900))
    def test_a_run_takes_the_sum_of_its_steps(
        self, model: StepTimeModel, batch: tuple[int, int], num_steps: int
    ) -> None:
        loop = sum(decode_steps_ms(model, *batch, num_steps))
        assert model.decode_run_ms(*batch, num_steps) == pytest.approx(loop, rel=1e-9, abs=1e-12)

    @law(30)
    @given(batch=batches, max_steps=st.integers(1, 300), share=st.floats(-0.1, 1.2))
    def test_the_first_step_that_reaches_a_time_is_found(
        self, model: StepTimeModel, batch: tuple[int, int], max_steps: int, share: float
    ) -> None:
        elapsed = share * model.decode_run_ms(*batch, max_steps)
        runs = [model.decode_run_ms(*batch, j) for j in range(1, max_steps + 1)]
        first = next((j for j, run in enumerate(runs, 1) if run >= elapsed), max_steps)
        assert model.decode_steps_until(*batch, max_steps, elapsed) == first

    @law(20)
    @given(batch=batches, max_steps=st.integers(2, 200), at=st.integers(1, 200))
    def test_it_is_found_exactly_at_step_ends(
        self, model: StepTimeModel, batch: tuple[int, int], max_steps: int, at: int
    ) -> None:
        at = min(at, max_steps)
        end = model.decode_run_ms(*batch, at)
        assert model.decode_steps_until(*batch, max_steps, end) == at
        just_after = float(np.nextafter(end, np.inf))
        assert model.decode_steps_until(*batch, max_steps, just_after) == min(at + 1, max_steps)

    @law(15)
    @given(drawn=st.lists(batches, min_size=1, max_size=20))
    def test_an_array_is_answered_as_its_elements(
        self, model: StepTimeModel, drawn: list[tuple[int, int]]
    ) -> None:
        decodes = np.array([0, *(d for d, _ in drawn)])
        contexts = np.array([0, *(c for _, c in drawn)])
        scalar = [
            model.step_ms(StepShape.of_decodes(int(d), int(c)))
            for d, c in zip(decodes, contexts, strict=True)
        ]
        assert model.decode_step_ms_array(decodes, contexts) == pytest.approx(scalar, rel=1e-9)

    @law(30)
    @given(batch=batches, num_steps=st.integers(1, 900))
    def test_what_is_said_to_be_smooth_rises_or_falls_along_a_parabola(
        self, model: StepTimeModel, batch: tuple[int, int], num_steps: int
    ) -> None:
        run = [np.array([number]) for number in (*batch, num_steps)]
        promised = int(model.smooth_decode_steps(*run)[0])
        assert 0 <= promised <= num_steps
        if promised:
            index = np.arange(promised)
            times = model.decode_step_ms_array(batch[0] + 0 * index, batch[1] + batch[0] * index)
            rounding = 1e-12 * times.max()
            rises = np.diff(times)
            assert (rises >= -rounding).all() or (rises <= rounding).all()
            knots = index[[0, promised // 2, -1]]
            assert times == pytest.approx(_parabola(knots, times[knots], index), abs=rounding)

    @law(20)
    @given(batch=batches)
    def test_steps_never_take_negative_time_and_grow_where_promised(
        self, model: StepTimeModel, batch: tuple[int, int]
    ) -> None:
        steps = decode_steps_ms(model, *batch, 30)
        assert min(steps) >= 0
        if model.decode_is_monotone:
            assert list(accumulate(steps, max)) == pytest.approx(steps, rel=1e-12)

    def test_nothing_to_compute_takes_no_time(self, model: StepTimeModel) -> None:
        assert model.step_ms(StepShape()) == 0
        assert model.decode_run_ms(0, 0, 10) == 0

    @law(20)
    @given(batch=batches, num_steps=st.integers(1, 1500))
    def test_the_range_of_a_run_is_the_sum_over_its_steps(
        self, model: StepTimeModel, batch: tuple[int, int], num_steps: int
    ) -> None:
        num_decodes, context = batch
        run = model.steps_in_range(step_log((num_steps, 0, 0, 0, num_decodes, context)))
        single = step_log(
            *((1, 0, 0, 0, num_decodes, context + j * num_decodes) for j in range(num_steps))
        )
        assert run[0] == model.steps_in_range(single).sum()

    @law(15)
    @given(drawn=st.lists(shapes, min_size=2, max_size=8))
    def test_an_answer_does_not_depend_on_what_was_asked_before(
        self, model: StepTimeModel, drawn: list[StepShape]
    ) -> None:
        used, asked = deepcopy(model), deepcopy(drawn)
        answers = [used.step_ms(step) for step in drawn]
        assert answers == [deepcopy(model).step_ms(step) for step in drawn]
        assert answers == [used.step_ms(step) for step in drawn]
        assert drawn == asked

    def test_it_says_where_its_times_come_from(self, model: StepTimeModel) -> None:
        assert model.source in (MEASURED, DERIVED, ESTIMATED)
        described = model.describe()
        assert described["source"] == model.source
        assert described["description"] == model.description
        assert described["notes"] == list(model.notes)
        assert model.ingress_ms >= 0 and model.egress_ms >= 0


def _parabola(knots: IntArray, values: FloatArray, at: IntArray) -> FloatArray:
    """The parabola through three points, of which some may be the same."""
    knots, first = np.unique(knots, return_index=True)
    values = values[first]
    result = np.zeros(len(at))
    for i, knot in enumerate(knots):
        others = np.delete(knots, i)
        shares = (at[:, None] - others) / (knot - others)
        result += values[i] * shares.prod(axis=1)
    return result


def decode_steps_ms(
    model: StepTimeModel, num_decodes: int, context: int, count: int
) -> list[float]:
    """Decode steps of one batch, one by one."""
    return [
        model.step_ms(StepShape.of_decodes(num_decodes, context + j * num_decodes))
        for j in range(count)
    ]


def step_log(*rows: tuple[int, int, int, int, int, int]) -> StepLog:
    """Rows of (steps, prefills, prefill tokens, prefix tokens, decodes, context tokens)."""
    columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
    nothing = np.zeros(len(rows), np.int64)
    return StepLog(
        worker_id=nothing,
        start_ms=nothing.astype(np.float64),
        duration_ms=nothing.astype(np.float64),
        num_steps=columns[0],
        num_prefills=columns[1],
        prefill_tokens=columns[2],
        prefix_tokens=columns[3],
        num_decodes=columns[4],
        decode_context_tokens=columns[5],
        num_running=nothing,
        num_waiting=nothing,
        used_blocks=nothing,
    )
