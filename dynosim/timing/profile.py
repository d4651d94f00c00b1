"""Step times interpolated between measured points, in the two layouts that profiles have.

Between points times are interpolated (linear, bilinear), beyond them extrapolated; steps beyond
count as out of range. A step that prefills and decodes takes the sum of both times.
"""

from bisect import bisect_right
from typing import Any

import numpy as np

from dynosim.records import FloatArray, IntArray, StepLog
from dynosim.timing.model import MEASURED, StepTimeModel, contexts_below
from dynosim.timing.rows import (
    ContextRow,
    decode_ms_array,
    extended_row,
    interpolate_rows,
    steps_to_knot,
)
from dynosim.timing.step import StepShape


class PrefillCurve:
    """Prefill milliseconds against new tokens; extrapolated in line, never below 0."""

    __slots__ = ("first_tokens", "last_tokens", "row")

    def __init__(self, tokens: list[float], values: list[float]) -> None:
        self.row = ContextRow(tokens, values)
        self.first_tokens = tokens[0]
        self.last_tokens = tokens[-1]

    def ms(self, tokens: float) -> float:
        return max(0.0, self.row.at(tokens)) if tokens > 0 else 0.0

    def covers(self, tokens: IntArray) -> Any:
        """Per element: no prefill work, or an amount between the measured ends."""
        inside = (tokens >= self.first_tokens) & (tokens <= self.last_tokens)
        return (tokens == 0) | inside


class ProfileModel(StepTimeModel):
    """The dynosim layout: decode by batch size and mean context."""

    source = MEASURED

    def __init__(
        self,
        prefill: PrefillCurve,
        batches: FloatArray,
        contexts: FloatArray,
        decode_ms: FloatArray,
        *,
        name: str,
    ) -> None:
        self._prefill = prefill
        self._batches: list[float] = batches.tolist()
        self._contexts: list[float] = contexts.tolist()
        self._decode_ms: list[list[float]] = decode_ms.tolist()
        self._rows: dict[int, ContextRow] = {}
        self.decode_is_monotone = bool(np.all(np.diff(decode_ms, axis=1) >= 0))
        self.description = f"profile {name}: {decode_ms.size} decode points, interpolated"

    def _row(self, num_decodes: int) -> ContextRow:
        row = self._rows.get(num_decodes)
        if row is None:
            nodes = self._batches
            i = bisect_right(nodes, num_decodes, 1, len(nodes) - 1) - 1
            values = interpolate_rows(
                nodes, i, num_decodes, self._decode_ms[i], self._decode_ms[i + 1]
            )
            row = extended_row(self._contexts, values, monotone=self.decode_is_monotone)
            self._rows[num_decodes] = row
        return row

    def step_ms(self, step: StepShape) -> float:
        total = self._prefill.ms(step.prefill_tokens)
        num_decodes = step.num_decodes
        if num_decodes > 0:
            total += self._row(num_decodes).at(step.decode_context_tokens / num_decodes)
        return total

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        if num_decodes <= 0:
            return 0.0
        return self._row(num_decodes).run(decode_context_tokens / num_decodes, num_steps)

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        return decode_ms_array(self._row, num_decodes, decode_context_tokens)

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        knots = np.array(self._contexts)
        return steps_to_knot(knots, num_decodes, decode_context_tokens, num_steps)

    def steps_in_range(self, steps: StepLog) -> IntArray:
        batch_fits = (steps.num_decodes == 0) | (
            (steps.num_decodes >= self._batches[0]) & (steps.num_decodes <= self._batches[-1])
        )
        known = self._prefill.covers(steps.prefill_tokens) & batch_fits
        full = np.full(len(steps.num_steps), self._contexts[-1])
        below_first = np.full(len(steps.num_steps), self._contexts[0] - 1e-6)
        inside = contexts_below(steps, full)
        too_short = contexts_below(steps, below_first)
        decoding = steps.num_decodes > 0
        return np.where(known, inside - np.where(decoding, too_short, 0), 0).astype(np.int64)


class DynamoProfileModel(StepTimeModel):
    """The layout of Dynamo's profiler: decode by the sum of all contexts and their mean.

    Prefill takes the mocker's token count n * (mean prompt - mean cached), integer means; the mean
    context is the integer quotient, both as in Dynamo's mocker.
    """

    source = MEASURED

    def __init__(
        self,
        prefill: PrefillCurve,
        kv_tokens: FloatArray,
        contexts: FloatArray,
        decode_ms: FloatArray,
        *,
        name: str,
    ) -> None:
        self._prefill = prefill
        self._x: list[float] = kv_tokens.tolist()
        self._y: list[float] = contexts.tolist()
        self._z: list[list[float]] = decode_ms.tolist()
        self.description = f"profile {name}: {decode_ms.size} decode points, interpolated"

    def step_ms(self, step: StepShape) -> float:
        total = 0.0
        num_prefills, num_decodes = step.num_prefills, step.num_decodes
        if num_prefills > 0:
            cached = step.prefix_tokens
            new = (cached + step.prefill_tokens) // num_prefills - cached // num_prefills
            total = self._prefill.ms(num_prefills * new)
        if num_decodes > 0:
            context_tokens = step.decode_context_tokens
            mean = context_tokens // num_decodes
            i, j = self._cell(context_tokens, mean)
            base, _, _ = self._quadratic(i, j, context_tokens, mean, 0)
            total += max(0.0, base)
        return total

    def _cell(self, kv_tokens: float, context: float) -> tuple[int, int]:
        i = bisect_right(self._x, kv_tokens, 1, len(self._x) - 1) - 1
        j = bisect_right(self._y, context, 1, len(self._y) - 1) - 1
        return i, j

    def _quadratic(
        self, i: int, j: int, kv_tokens: float, context: float, num_decodes: int
    ) -> tuple[float, float, float]:
        """Coefficients q of q0 + q1 t + q2 t^2: the cell's time after t more decode steps."""
        x0, y0, z = self._x[i], self._y[j], self._z
        width, height = self._x[i + 1] - x0, self._y[j + 1] - y0
        z00, z01, z10, z11 = z[i][j], z[i][j + 1], z[i + 1][j], z[i + 1][j + 1]
        by_x, by_y = (z10 - z00) / width, (z01 - z00) / height
        by_xy = (z11 - z10 - z01 + z00) / (width * height)
        dx, dy = kv_tokens - x0, context - y0
        return (
            z00 + by_x * dx + by_y * dy + by_xy * dx * dy,
            by_x * num_decodes + by_y + by_xy * (dx + dy * num_decodes),
            by_xy * num_decodes,
        )

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        if num_decodes <= 0:
            return 0.0
        total, kv_tokens = 0.0, decode_context_tokens
        while num_steps > 0:
            mean = kv_tokens // num_decodes
            i, j = self._cell(kv_tokens, mean)
            count = num_steps
            if i < len(self._x) - 2:
                count = min(count, -int(-(self._x[i + 1] - kv_tokens) // num_decodes))
            if j < len(self._y) - 2:
                count = min(count, -int(-(self._y[j + 1] - mean) // 1))
            total += _sum_not_negative(
                self._quadratic(i, j, kv_tokens, mean, num_decodes), max(count, 1)
            )
            kv_tokens += max(count, 1) * num_decodes
            num_steps -= max(count, 1)
        return total

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        x, y, z = np.array(self._x), np.array(self._y), np.array(self._z)
        mean = decode_context_tokens // np.maximum(num_decodes, 1)
        i = np.clip(np.searchsorted(x, decode_context_tokens, side="right") - 1, 0, len(x) - 2)
        j = np.clip(np.searchsorted(y, mean, side="right") - 1, 0, len(y) - 2)
        u = (decode_context_tokens - x[i]) / (x[i + 1] - x[i])
        v = (mean - y[j]) / (y[j + 1] - y[j])
        low = (1 - v) * z[i, j] + v * z[i, j + 1]
        high = (1 - v) * z[i + 1, j] + v * z[i + 1, j + 1]
        times = np.maximum(0.0, (1 - u) * low + u * high)
        return np.where(num_decodes > 0, times, 0.0)

    def steps_in_range(self, steps: StepLog) -> IntArray:
        decodes = np.maximum(steps.num_decodes, 1)
        first = steps.decode_context_tokens
        upper = np.minimum(self._y[-1], (self._x[-1] - first) / decodes + first // decodes)
        lower = np.maximum(self._y[0], (self._x[0] - first) / decodes + first // decodes)
        last_step = np.floor(upper - first // decodes + 1e-9).astype(np.int64)
        first_step = np.ceil(lower - first // decodes - 1e-9).astype(np.int64)
        inside = np.minimum(last_step, steps.num_steps - 1) - np.maximum(first_step, 0) + 1
        inside = np.where(steps.num_decodes > 0, np.maximum(inside, 0), steps.num_steps)
        known = self._prefill.covers(steps.prefill_tokens)
        return np.where(known, inside, 0).astype(np.int64)


def _sum_not_negative(q: tuple[float, float, float], count: int) -> float:
    """Sum of max(0, q0 + q1 t + q2 t^2) for t in 0..count-1; closed unless a term is negative."""
    q0, q1, q2 = q
    last = count - 1
    lowest = min(q0, q0 + last * (q1 + last * q2))
    if q2 > 0 and 0 < -q1 < 2 * q2 * last:
        lowest = q0 - q1 * q1 / (4 * q2)
    if lowest < 0:
        return sum(max(0.0, q0 + t * (q1 + t * q2)) for t in range(count))
    sum_t = count * last // 2
    return q0 * count + q1 * sum_t + q2 * (sum_t * (2 * last + 1) / 3)
