"""What is measured of a live engine: points, each the time of one kind of step."""

from dataclasses import dataclass
from typing import Literal

STEADY_ERROR = 0.02
"""Relative error of a point that shows no spread: what no repetition averages out."""

Kind = Literal["prefill", "cached prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A step as `StepTimeModel.step_ms` describes it, and what it took.

    A prompt's time to its first token also holds what lies outside of the step: HTTP, tokens'
    way to the scheduler and back (`is_outside_included`). Gaps between tokens do not.
    """

    kind: Kind
    num_prefills: int = 0
    prefill_tokens: int = 0
    prefix_tokens: int = 0
    num_decodes: int = 0
    context_tokens: int = 0  # of all decoding sequences together
    is_outside_included: bool = False
    measured_ms: float  # median
    spread: float = 0.0  # interquartile range over the median
    num_samples: int = 1

    @property
    def weight(self) -> float:
        """How much its relative error counts: 1 for a steady point, less for an unsteady one.

        One over the standard error of the median (of a normal distribution with this spread), in
        units of the error that a steady point is taken to have.
        """
        standard_error = 1.25 * self.spread / 1.35 / self.num_samples**0.5
        return STEADY_ERROR / (STEADY_ERROR**2 + standard_error**2) ** 0.5

    def label(self) -> str:
        """The step in a few words."""
        prompt = f"{self.prefill_tokens} prompt tokens"
        if self.prefix_tokens:
            prompt += f" after {self.prefix_tokens} cached"
        if not self.num_decodes:
            return prompt
        mean_context = round(self.context_tokens / self.num_decodes)
        decodes = f"{self.num_decodes} decoding at {mean_context}"
        return decodes if not self.prefill_tokens else f"{prompt}, {decodes}"
