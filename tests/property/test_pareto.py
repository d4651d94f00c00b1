"""The Pareto frontier against its definition."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dynosim.sweep.pareto import pareto_front

VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.5, -1.0, math.inf, -math.inf, math.nan])


def brute_force(rows: list[list[float]], maximize: list[bool]) -> list[bool]:
    signed = [[v if up else -v for v, up in zip(r, maximize, strict=True)] for r in rows]
    valid = [not any(math.isnan(v) for v in row) for row in signed]

    def beats(a: list[float], b: list[float]) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and a != b

    return [
        valid[i] and not any(valid[j] and beats(signed[j], signed[i]) for j in range(len(rows)))
        for i in range(len(rows))
    ]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[float]], list[bool]]:
    width = draw(st.integers(1, 4))
    row = st.lists(VALUES | st.floats(-3, 3), min_size=width, max_size=width)
    rows = draw(st.lists(row, max_size=25))
    return rows, draw(st.lists(st.booleans(), min_size=width, max_size=width))


@given(tables())
def test_front_equals_its_definition(table: tuple[list[list[float]], list[bool]]) -> None:
    rows, maximize = table
    objectives = np.array(rows, dtype=np.float64).reshape(len(rows), len(maximize))
    assert pareto_front(objectives, maximize).tolist() == brute_force(rows, maximize)


@given(tables(), st.data())
def test_order_of_rows_does_not_matter(
    table: tuple[list[list[float]], list[bool]], data: st.DataObject
) -> None:
    rows, maximize = table
    order = data.draw(st.permutations(range(len(rows))))
    objectives = np.array(rows, dtype=np.float64).reshape(len(rows), len(maximize))
    front = pareto_front(objectives, maximize).tolist()
    shuffled = objectives[np.array(order, dtype=np.int64)]
    assert pareto_front(shuffled, maximize).tolist() == [front[index] for index in order]
