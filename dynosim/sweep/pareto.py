"""The Pareto frontier of a table of objectives."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dynosim.records import FloatArray


def pareto_front(objectives: FloatArray, maximize: Sequence[bool]) -> NDArray[np.bool_]:
    """Which rows (n,) no other row beats: at least as good in every column, better in one.

    `objectives` is (n, m); `maximize` says for each column whether more is better. A row with a NaN
    is never on the front and beats nobody. Equal rows stand or fall together.
    """
    table = np.asarray(objectives, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(maximize):
        raise ValueError(f"expected (n, {len(maximize)}) objectives, got {table.shape}")
    front = np.zeros(len(table), dtype=np.bool_)
    valid = np.flatnonzero(~np.isnan(table).any(axis=1))
    if len(valid) == 0:
        return front
    signs = np.where(np.asarray(maximize, dtype=np.bool_), 1.0, -1.0)
    rows = table[valid] * signs + 0.0  # adding 0 makes -0 and 0 the same row
    distinct, which = np.unique(rows, axis=0, return_inverse=True)
    front[valid] = _undominated(distinct)[which.reshape(-1)]
    return front


def _undominated(rows: FloatArray) -> NDArray[np.bool_]:
    """The same for distinct rows in ascending lexicographic order, more being better.

    Only a later row can beat an earlier one, so one pass from the end against the front so far
    is enough.
    """
    if rows.shape[1] == 2:  # the first column rises: only more in the second saves a row
        best_later = np.maximum.accumulate(rows[::-1, 1])[::-1]
        return np.append(rows[:-1, 1] > best_later[1:], True)
    kept = np.zeros(len(rows), dtype=np.bool_)
    best = np.empty_like(rows)
    size = 0
    for index in range(len(rows) - 1, -1, -1):
        if not (best[:size] >= rows[index]).all(axis=1).any():
            kept[index] = True
            best[size] = rows[index]
            size += 1
    return kept
