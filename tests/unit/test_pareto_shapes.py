"""Edges of the Pareto frontier."""

import numpy as np
import pytest

from dynosim.sweep.pareto import pareto_front


def test_no_rows_and_only_nan() -> None:
    assert pareto_front(np.empty((0, 2)), [True, True]).tolist() == []
    assert pareto_front(np.full((3, 2), np.nan), [True, True]).tolist() == [False] * 3


def test_equal_rows_are_all_kept_and_nan_beats_nobody() -> None:
    rows = np.array([[1.0, 5.0], [1.0, 5.0], [9.0, np.nan], [0.0, 5.0]])
    assert pareto_front(rows, [True, True]).tolist() == [True, True, False, False]


def test_directions() -> None:
    rows = np.array([[1.0, 5.0], [2.0, 9.0]])
    assert pareto_front(rows, [True, False]).tolist() == [True, True]
    assert pareto_front(rows, [True, True]).tolist() == [False, True]


def test_shape_must_match_the_directions() -> None:
    with pytest.raises(ValueError, match="expected"):
        pareto_front(np.zeros((2, 3)), [True, True])
