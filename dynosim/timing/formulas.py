"""Step times from closed formulas: constants, a linear law, and the mocker's polynomials.

None of them is measured on anything; they serve conformance scenarios, comparisons with other
simulators that use the same formulas, and quick what-if questions.
"""

from typing import Final

import numpy as np
from mypy_extensions import mypyc_attr

from dynosim.records import FloatArray, IntArray
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape


@mypyc_attr(allow_interpreted_subclasses=True)
class FixedModel(StepTimeModel):
    """`prefill_ms` for a step that computes any prompt token, plus `decode_ms` if any decodes."""

    source = "estimated"
    decode_is_monotone = True

    def __init__(self, prefill_ms: float, decode_ms: float) -> None:
        self.prefill_ms, self.decode_ms = float(prefill_ms), float(decode_ms)
        self.description = (
            f"fixed: {self.prefill_ms} ms per prefill step, {self.decode_ms} ms per decode"
        )

    def step_ms(self, step: StepShape) -> float:
        total: float = 0.0
        if step.prefill_tokens > 0:
            total += self.prefill_ms
        if step.num_decodes > 0:
            total += self.decode_ms
        return total

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        return num_steps * self.decode_ms if num_decodes > 0 else 0.0

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        return np.where(num_decodes > 0, float(self.decode_ms), 0.0)

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        return num_steps


@mypyc_attr(allow_interpreted_subclasses=True)
class LinearModel(StepTimeModel):
    """base + a * prompt tokens + b * decodes + c * tokens in context.

    The context of a step counts cached and new prompt tokens and the decodes' contexts. Whole
    coefficients of any unit give whole numbers, exact below 2**53: scenarios can count nanoseconds.
    """

    source = "estimated"

    def __init__(
        self,
        *,
        base_ms: float,
        per_prefill_token_ms: float,
        per_decode_ms: float,
        per_context_token_ms: float,
    ) -> None:
        self.base_ms = float(base_ms)
        self.per_prefill_token_ms = float(per_prefill_token_ms)
        self.per_decode_ms = float(per_decode_ms)
        self.per_context_token_ms = float(per_context_token_ms)
        self.decode_is_monotone = per_context_token_ms >= 0
        self.description = (
            f"linear: {self.base_ms} + {self.per_prefill_token_ms}/prompt token"
            f" + {self.per_decode_ms}/decode + {self.per_context_token_ms}/context token (ms)"
        )

    def step_ms(self, step: StepShape) -> float:
        prefill_tokens, num_decodes = step.prefill_tokens, step.num_decodes
        if prefill_tokens <= 0 and num_decodes <= 0:
            return 0.0
        context_tokens = step.prefix_tokens + prefill_tokens + step.decode_context_tokens
        return (
            self.base_ms
            + self.per_prefill_token_ms * prefill_tokens
            + self.per_decode_ms * num_decodes
            + self.per_context_token_ms * context_tokens
        )

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        if num_decodes <= 0:
            return 0.0
        contexts = num_steps * decode_context_tokens + num_decodes * (
            num_steps * (num_steps - 1) // 2
        )
        return (
            num_steps * (self.base_ms + self.per_decode_ms * num_decodes)
            + self.per_context_token_ms * contexts
        )

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        total = (
            self.base_ms
            + self.per_decode_ms * num_decodes
            + self.per_context_token_ms * decode_context_tokens
        )
        return np.where(num_decodes > 0, total, 0).astype(np.float64)

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        return num_steps


# Synthetic constants of the Dynamo mocker's default performance model (ai-dynamo 1.6.1).
_PREFILL_SQUARE: Final = 4.209989e-07
_PREFILL_LINEAR: Final = 1.518344e-02
_PREFILL_BASE: Final = 1.650142e01
_DECODE_SQUARE: Final = -25.74
_DECODE_LINEAR: Final = 54.01
_DECODE_BASE: Final = 5.74
_DECODE_FLOOR_MS: Final = 1.0
_DECODE_FULL_MS: Final = _DECODE_SQUARE + _DECODE_LINEAR + _DECODE_BASE


@mypyc_attr(allow_interpreted_subclasses=True)
class PolynomialModel(StepTimeModel):
    """The formulas of Dynamo's mocker: prefill by new tokens, decode by the share of cache in use.

    Prefill of n prompts with N = n * (mean prompt length - mean cached length), integer means,
    takes 4.209989e-07 N^2 + 1.518344e-02 N + 16.50142 ms (0 when N is 0). Decoding contexts that
    sum to S takes max(1, -25.74 u^2 + 54.01 u + 5.74) ms, u = min(1, S / `capacity_tokens`). A
    mixed step takes the sum. The floor of 1 ms never binds: the parabola rises from 5.74 at u = 0
    to 34.01 at u = 1.
    """

    source = "estimated"
    decode_is_monotone = True

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.description = f"polynomial: mocker formulas over {capacity_tokens} tokens of KV cache"

    def step_ms(self, step: StepShape) -> float:
        total = 0.0
        num_prefills = step.num_prefills
        if num_prefills > 0:
            prefix_tokens = step.prefix_tokens
            mean_new = (prefix_tokens + step.prefill_tokens) // num_prefills - (
                prefix_tokens // num_prefills
            )
            tokens = num_prefills * mean_new
            if tokens > 0:
                total = _PREFILL_SQUARE * tokens * tokens + _PREFILL_LINEAR * tokens + _PREFILL_BASE
        if step.num_decodes > 0:
            context_tokens = step.decode_context_tokens
            if context_tokens >= self.capacity_tokens:
                return total + _DECODE_FULL_MS
            use = context_tokens / self.capacity_tokens
            decode = _DECODE_SQUARE * use * use + _DECODE_LINEAR * use + _DECODE_BASE
            total += decode if decode > _DECODE_FLOOR_MS else _DECODE_FLOOR_MS
        return total

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        if num_decodes <= 0 or num_steps <= 0:
            return 0.0
        room = self.capacity_tokens - decode_context_tokens
        # Steps whose contexts still fit below the capacity; at and above it u stays 1.
        growing = min(num_steps, -(-room // num_decodes)) if room > 0 else 0
        total = (num_steps - growing) * _DECODE_FULL_MS
        if growing:
            use = decode_context_tokens / self.capacity_tokens
            rise = num_decodes / self.capacity_tokens
            sum_j = growing * (growing - 1) // 2
            sum_jj = sum_j * (2 * growing - 1) / 3
            total += (
                growing * (_DECODE_SQUARE * use * use + _DECODE_LINEAR * use + _DECODE_BASE)
                + rise * (2 * _DECODE_SQUARE * use + _DECODE_LINEAR) * sum_j
                + _DECODE_SQUARE * rise * rise * sum_jj
            )
        return total

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        decode = decode_context_tokens / self.capacity_tokens
        np.minimum(decode, 1.0, out=decode)
        # (a u + b) u + c in place; the floor never binds, see above.
        result = _DECODE_SQUARE * decode
        result += _DECODE_LINEAR
        result *= decode
        result += _DECODE_BASE
        result[num_decodes <= 0] = 0.0
        return result

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        room = self.capacity_tokens - decode_context_tokens
        growing = -(-room // np.maximum(num_decodes, 1))
        return np.where(room > 0, np.minimum(growing, num_steps), num_steps)
