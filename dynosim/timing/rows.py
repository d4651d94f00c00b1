"""Piecewise linear curves over the mean context, with exact sums over runs of decode steps."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from mypy_extensions import mypyc_attr

from dynosim.records import FloatArray, IntArray


@mypyc_attr(allow_interpreted_subclasses=True)  # hence can be copied
class ContextRow:
    """Milliseconds of a decode step against mean context, linear between knots and beyond the ends.

    `knots` rise strictly and number at least two; `values` are the milliseconds at the knots.
    """

    __slots__ = ("_arrays", "knots", "last", "slopes", "values")

    def __init__(self, knots: list[float], values: list[float]) -> None:
        self.knots = knots
        self.values = values
        self.last = len(knots) - 1
        self.slopes = [
            (values[i + 1] - values[i]) / (knots[i + 1] - knots[i]) for i in range(self.last)
        ]
        self._arrays: tuple[FloatArray, FloatArray, FloatArray] | None = None

    def at(self, context: float) -> float:
        """Milliseconds of a step with this mean context."""
        i = bisect_right(self.knots, context, 1, self.last) - 1
        return self.values[i] + self.slopes[i] * (context - self.knots[i])

    def at_each(self, contexts: FloatArray) -> FloatArray:
        """`at` of many."""
        arrays = self._arrays
        if arrays is None:
            arrays = np.array(self.knots), np.array(self.values), np.array(self.slopes)
            self._arrays = arrays
        knots, values, slopes = arrays
        segment = np.searchsorted(knots[1:-1], contexts, side="right")
        found: FloatArray = values[segment] + slopes[segment] * (contexts - knots[segment])
        return found

    def run(self, context: float, num_steps: int) -> float:
        """Sum of `at(context + j)` for j in 0..num_steps-1, one closed sum per segment touched."""
        knots = self.knots
        i = bisect_right(knots, context, 1, self.last) - 1
        total = 0.0
        while num_steps > 0:
            count = num_steps
            if i < self.last - 1:
                gap = knots[i + 1] - context
                whole = int(gap)
                count = min(count, whole + (whole < gap))
            if count > 0:
                slope = self.slopes[i]
                first = self.values[i] + slope * (context - knots[i])
                total += count * first + slope * (count * (count - 1) // 2)
                context += count
                num_steps -= count
            i += 1
        return total


def raised_row(row: ContextRow, floor_ms: float, added_ms: float) -> ContextRow:
    """Like `row`, but at least `floor_ms`, and `added_ms` more; with a knot where it passes."""
    if floor_ms <= 0.0 and added_ms == 0.0:
        return row
    knots: list[float] = []
    values: list[float] = []
    for i in range(row.last + 1):
        value = row.values[i]
        if i > 0:
            before = row.values[i - 1]
            if (before < floor_ms) != (value < floor_ms):
                share = (floor_ms - before) / (value - before)
                knot = row.knots[i - 1] + share * (row.knots[i] - row.knots[i - 1])
                if row.knots[i - 1] < knot < row.knots[i]:
                    knots.append(knot)
                    values.append(floor_ms + added_ms)
        knots.append(row.knots[i])
        values.append(max(value, floor_ms) + added_ms)
    return ContextRow(knots, values)


_FAR_TOKENS = float(2**40)
"""A context that no sequence reaches: where the last segment of an extended row ends."""


def extended_row(knots: list[float], values: list[float], *, monotone: bool) -> ContextRow:
    """A row whose extrapolation stays sensible: never below 0 ms, never falling beyond the knots.

    With `monotone` also between the knots (what interpolation between monotone rows keeps anyway,
    but extrapolation over the batch size may lose).
    """
    first_slope = (values[1] - values[0]) / (knots[1] - knots[0])
    last_slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
    all_knots = [*knots, _FAR_TOKENS]
    all_values = [*values, values[-1] + max(0.0, last_slope) * (_FAR_TOKENS - knots[-1])]
    if knots[0] > 0:
        all_knots.insert(0, 0.0)
        all_values.insert(0, values[0] - first_slope * knots[0])
    all_values = [max(0.0, value) for value in all_values]
    if monotone:
        all_values = list(accumulate(all_values, max))
    return ContextRow(all_knots, all_values)


def interpolate_rows(
    nodes: Sequence[float], index: int, at: float, low: Sequence[float], high: Sequence[float]
) -> list[float]:
    """The row at `at`, on the line through `low` at nodes[index] and `high` at nodes[index + 1]."""
    weight = (at - nodes[index]) / (nodes[index + 1] - nodes[index])
    return [a + weight * (b - a) for a, b in zip(low, high, strict=True)]


def decode_ms_array(
    row: Callable[[int], ContextRow], num_decodes: IntArray, decode_context_tokens: IntArray
) -> FloatArray:
    """Decode step times of many steps from the rows of their batch sizes; 0 without decodes."""
    total = np.zeros(len(num_decodes), dtype=np.float64)
    order = np.argsort(num_decodes, kind="stable")
    batches, starts = np.unique(num_decodes[order], return_index=True)
    bounds = [*starts.tolist(), len(order)]
    for position, batch in enumerate(batches.tolist()):
        if batch <= 0:
            continue
        chosen = order[bounds[position] : bounds[position + 1]]
        total[chosen] = row(batch).at_each(decode_context_tokens[chosen] / batch)
    return total


def steps_to_row_knot(
    row: Callable[[int], ContextRow],
    num_decodes: IntArray,
    decode_context_tokens: IntArray,
    num_steps: IntArray,
) -> IntArray:
    """As `steps_to_knot`, where each batch size's row has knots of its own."""
    found: IntArray = np.zeros(len(num_steps), np.int64)
    for batch in np.unique(num_decodes).tolist():
        here = num_decodes == batch
        knots = np.array(row(batch).knots if batch > 0 else [0.0])
        found[here] = steps_to_knot(
            knots, num_decodes[here], decode_context_tokens[here], num_steps[here]
        )
    return found


def steps_to_knot(
    knots: FloatArray, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
) -> IntArray:
    """How many steps of each run come before its mean context passes a knot: their times are in
    line, since rows of all batch sizes have the same knots."""
    contexts = decode_context_tokens / np.maximum(num_decodes, 1)
    following = np.append(knots, np.inf)[np.searchsorted(knots, contexts, side="right")]
    return np.minimum(np.ceil(following - contexts), num_steps).astype(np.int64)
