"""What every step-time model answers: how long an engine step with a given composition takes.

A model knows nothing of requests, schedulers or clocks. All methods are pure. Scalar methods use
plain Python numbers (they are called tens of thousands of times per run), array methods numpy.
"""

from abc import ABC, abstractmethod
from operator import attrgetter
from typing import Any, Final

import numpy as np
from mypy_extensions import mypyc_attr

from dynosim.records import FloatArray, IntArray, StepLog
from dynosim.timing.step import StepShape

MEASURED = "measured"
DERIVED = "derived"
ESTIMATED = "estimated"


# A subclass may state these as class attributes, which compiled code looks past; Python does not.
_about = attrgetter("source", "description", "notes")

_NEWTON_EVALUATIONS: Final = 6
"""After so many looks the step time is taken to jump, and the bracket is halved instead."""


@mypyc_attr(allow_interpreted_subclasses=True)
class StepTimeModel(ABC):
    """Milliseconds of engine steps.

    `source` is "measured" (timed on the hardware), "derived" (from measurements, with substitutes)
    or "estimated" (from formulas). `description` is one line for reports, `notes` are warnings and
    qualifications that a report must show. `decode_is_monotone` promises that a step never gets
    faster as contexts grow while the number of decoding sequences stays the same. `ingress_ms` and
    `egress_ms` are what every request spends outside the steps: from its arrival until a scheduler
    can see it, and from a token's making until its delivery.
    """

    source: str = "estimated"
    description: str = ""
    notes: tuple[str, ...] = ()
    decode_is_monotone: bool = False
    ingress_ms: float = 0.0
    egress_ms: float = 0.0

    @abstractmethod
    def step_ms(self, step: StepShape) -> float:
        """Duration of one step; nothing to compute takes 0 ms."""

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        """Sum of `num_steps` decode steps of an unchanged batch whose contexts grow by one token.

        Equals adding the `step_ms` of `num_decodes` sequences whose contexts sum to
        `decode_context_tokens + j * num_decodes` for j in 0..num_steps-1, up to rounding. Models
        override this loop with closed forms.
        """
        total: float = 0.0
        step = StepShape.of_decodes(num_decodes, decode_context_tokens)
        for _ in range(num_steps):
            total += self.step_ms(step)
            step.decode_context_tokens += num_decodes
        return total

    def decode_steps_until(
        self, num_decodes: int, decode_context_tokens: int, max_steps: int, elapsed_ms: float
    ) -> int:
        """Smallest j in 1..max_steps whose `decode_run_ms` reaches `elapsed_ms`.

        Returns `max_steps` when none does. Newton's method inside a bracket: one or two runs are
        typically looked at, and a step time that jumps costs at most a bisection.
        """
        low, high = 0, max_steps  # the run of `low` steps falls short, the answer is <= high
        rounding_ms = 1e-9 * abs(elapsed_ms)
        evaluations = 0
        at, surplus_ms = 0, -elapsed_ms  # how far the last run looked at lies above the target
        shape = StepShape(0, 0, 0, num_decodes, decode_context_tokens)
        step = self.step_ms(shape)
        while high - low > 1:
            guess = _newton(at, surplus_ms, step, high)
            if evaluations >= _NEWTON_EVALUATIONS:
                guess = (low + high) // 2
            at = min(max(guess, low + 1), high - 1)
            surplus_ms = self.decode_run_ms(num_decodes, decode_context_tokens, at) - elapsed_ms
            evaluations += 1
            # One step to the other side often settles it without looking at another run.
            if surplus_ms >= 0:
                high = at
                shape.decode_context_tokens = decode_context_tokens + (at - 1) * num_decodes
                step = self.step_ms(shape)
                if surplus_ms - step < -rounding_ms:
                    return at
            else:
                low = at
                shape.decode_context_tokens = decode_context_tokens + at * num_decodes
                step = self.step_ms(shape)
                if surplus_ms + step > rounding_ms:
                    return at + 1
        return high

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        """`step_ms` of pure decode steps, element by element."""
        pairs = zip(num_decodes.tolist(), decode_context_tokens.tolist(), strict=True)
        return np.array(
            [self.step_ms(StepShape.of_decodes(n, s)) for n, s in pairs], dtype=np.float64
        )

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        """Of each run of decode steps: the time of how many of its first steps is smooth.

        That is to say, it rises or falls throughout and lies on a parabola (a line, a constant)
        over the step's number. Reports look at few steps of such a piece. 0 promises nothing, and
        every step is looked at; so does what a model inherits.
        """
        return np.zeros(len(num_steps), np.int64)

    def steps_in_range(self, steps: StepLog) -> IntArray:
        """Per row: how many of its steps lay inside what the model was measured on.

        All of them for formulas, which have no range.
        """
        return steps.num_steps.astype(np.int64)

    def describe(self) -> dict[str, Any]:
        """What a report says about the model; plain JSON values."""
        source, description, notes = _about(self)
        return {"source": source, "description": description, "notes": list(notes)}


def set_client_path(
    model: StepTimeModel, *, ingress_ms: float | None, egress_ms: float | None
) -> None:
    """State a model's way between client and engine; None leaves what it has."""
    if ingress_ms is not None:
        model.ingress_ms = ingress_ms
    if egress_ms is not None:
        model.egress_ms = egress_ms


def _newton(at: int, surplus_ms: float, step_ms: float, high: int) -> int:
    """Number of steps whose run ends at the target if every step takes `step_ms`.

    `surplus_ms` is how far the run of `at` steps ends behind the target (negative: before it).
    """
    if surplus_ms < 0:
        if step_ms <= 0 or -surplus_ms >= step_ms * (high - at):
            return high
        missing = -surplus_ms / step_ms
        return at + int(missing) + (missing > int(missing))
    if step_ms <= 0 or surplus_ms >= step_ms * at:
        return 0
    return at - int(surplus_ms / step_ms)


def contexts_below(steps: StepLog, limit: FloatArray) -> IntArray:
    """Per row: how many of its decode steps have a mean context of at most `limit` tokens.

    Rows without decodes count as all inside. Step j of a row has the mean context of its first
    step plus j.
    """
    decodes = np.maximum(steps.num_decodes, 1)
    first_context = steps.decode_context_tokens / decodes
    fitting = np.floor(limit - first_context + 1e-9).astype(np.int64) + 1
    inside = np.clip(fitting, 0, steps.num_steps)
    return np.where(steps.num_decodes > 0, inside, steps.num_steps).astype(np.int64)
