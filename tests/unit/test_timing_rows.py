"""Curves over the mean context: at their knots, between, beyond, and in exact sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.timing.rows import ContextRow, decode_ms_array, extended_row, interpolate_rows

ROW = ContextRow([10.0, 20.0, 50.0], [3.0, 5.0, 11.0])
"""Slopes of 0.2 between 10 and 20, and 0.2 between 20 and 50."""
BENT = ContextRow([10.0, 20.0, 50.0], [3.0, 5.0, 35.0])
"""Slopes of 0.2 and 1."""


@pytest.mark.parametrize(
    ("context", "expected_ms"),
    [
        (10, 3.0),
        (15, 4.0),
        (19.999999, 4.9999998),
        (20, 5.0),
        (21, 6.0),
        (49, 34.0),
        (50, 35.0),
        (60, 45.0),  # the last slope goes on
        (5, 2.0),  # and the first
        (-10, -1.0),
    ],
)
def test_a_row_is_linear_between_its_knots_and_beyond(context: float, expected_ms: float) -> None:
    assert BENT.at(context) == pytest.approx(expected_ms, rel=1e-12)


@given(start=st.integers(-4, 130).map(lambda half: half / 2), steps=st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_a_run_is_the_sum_of_its_steps(start: float, steps: int) -> None:
    naive = sum(BENT.at(start + j) for j in range(steps))
    assert BENT.run(start, steps) == pytest.approx(naive, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("start", "steps", "expected_ms"),
    [
        (18, 2, 4.6 + 4.8),  # ends before a knot
        (18, 3, 4.6 + 4.8 + 5.0),  # at it
        (18, 4, 4.6 + 4.8 + 5.0 + 6.0),  # behind it
        (19.5, 2, 4.9 + 5.5),
        (20, 1, 5.0),
        (49, 3, 34.0 + 35.0 + 36.0),
        (20, 0, 0.0),
    ],
)
def test_runs_across_a_knot(start: float, steps: int, expected_ms: float) -> None:
    assert BENT.run(start, steps) == pytest.approx(expected_ms, rel=1e-12)


def test_an_extended_row_reaches_down_to_no_context() -> None:
    row = extended_row([10.0, 20.0], [3.0, 5.0], monotone=False)
    assert row.at(0) == pytest.approx(1.0)
    assert row.at(5) == pytest.approx(2.0)
    assert row.at(30) == pytest.approx(7.0)
    assert row.at(1_000_000) == pytest.approx(3.0 + 0.2 * 999_990)


def test_extrapolation_stops_at_no_time() -> None:
    row = extended_row([10.0, 20.0], [3.0, 33.0], monotone=False)
    assert row.at(0) == 0.0  # and not 3 - 30
    assert row.at(5) == pytest.approx(1.5)  # on the line from there to the first knot
    assert row.at(10) == 3.0
    assert extended_row([1.0, 2.0], [1.0, 4.0], monotone=False).at(0.5) == pytest.approx(0.5)


def test_a_row_that_falls_at_its_end_stays_there() -> None:
    row = extended_row([0.0, 10.0, 20.0], [3.0, 9.0, 5.0], monotone=False)
    assert [row.at(x) for x in (0, 10, 15, 20, 25, 10_000)] == [3.0, 9.0, 7.0, 5.0, 5.0, 5.0]


def test_a_monotone_row_never_falls() -> None:
    row = extended_row([0.0, 10.0, 20.0, 30.0], [3.0, 9.0, 5.0, 12.0], monotone=True)
    assert [row.at(x) for x in (0, 10, 15, 20, 25, 30)] == [3.0, 9.0, 9.0, 9.0, 10.5, 12.0]
    falling = extended_row([10.0, 20.0], [5.0, 3.0], monotone=True)
    assert [falling.at(x) for x in (0, 10, 20, 99)] == [7.0, 7.0, 7.0, 7.0]


def test_a_first_knot_at_nothing_is_kept() -> None:
    row = extended_row([0.0, 10.0], [3.0, 5.0], monotone=False)
    assert (row.knots[0], row.values[0], len(row.knots)) == (0.0, 3.0, 3)


@pytest.mark.parametrize(
    ("at", "expected"),
    [(2, [1.0, 10.0]), (6, [3.0, 20.0]), (4, [2.0, 15.0]), (3, [1.5, 12.5]), (10, [5.0, 30.0])],
)
def test_rows_between_two_rows(at: float, expected: list[float]) -> None:
    found = interpolate_rows([0.0, 2.0, 6.0], 1, at, [1.0, 10.0], [3.0, 20.0])
    assert found == pytest.approx(expected, rel=1e-12)


def test_many_steps_at_once_take_the_row_of_their_batch() -> None:
    rows = {1: ROW, 4: BENT}
    batches = np.array([4, 0, 1, 4, 1, -1])
    contexts = np.array([4 * 60, 7, 12, 4 * 15, 50, 9])
    found = decode_ms_array(rows.__getitem__, batches, contexts)
    assert found.tolist() == pytest.approx([45.0, 0.0, 3.4, 4.0, 11.0, 0.0], rel=1e-12)
    assert decode_ms_array(rows.__getitem__, np.zeros(0, np.int64), np.zeros(0)).tolist() == []
