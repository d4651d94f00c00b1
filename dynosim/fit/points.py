"""What is measured of a live engine: points, each the time of one kind of step."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dynosim.timing.step import StepShape

STEADY_ERROR = 0.02
"""Relative error of a point that shows no spread: what no repetition averages out."""

Kind = Literal["prefill", "cached prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A step, by its numbers, and what it took.

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
    def step(self) -> StepShape:
        """The step alone, as step times take it."""
        return StepShape(
            self.num_prefills,
            self.prefill_tokens,
            self.prefix_tokens,
            self.num_decodes,
            self.context_tokens,
        )

    @property
    def weight(self) -> float:
        """How much its relative error counts: 1 for a steady point, less for an unsteady one.

        One over the standard error of the median (of a normal distribution with this spread), in
        units of the error that a steady point is taken to have.
        """
        standard_error = 1.25 * self.spread / 1.35 / math.sqrt(self.num_samples)
        return STEADY_ERROR / math.hypot(STEADY_ERROR, standard_error)

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


@dataclass(frozen=True, slots=True)
class Shape:
    """What a point is meant to be, before it is measured."""

    kind: Kind
    prefill_tokens: int = 0
    prefix_tokens: int = 0
    num_decodes: int = 0
    prompt_tokens: int = 0  # of each decoding sequence

    def label(self) -> str:
        """The step in a few words."""
        return self.point(1.0, self.num_decodes * self.prompt_tokens).label()

    def point(self, measured_ms: float, context_tokens: int) -> Point:
        """The point, measured once."""
        return Point(
            kind=self.kind,
            num_prefills=int(self.prefill_tokens > 0),
            prefill_tokens=self.prefill_tokens,
            prefix_tokens=self.prefix_tokens,
            num_decodes=self.num_decodes,
            context_tokens=context_tokens,
            is_outside_included=self.num_decodes == 0,
            measured_ms=measured_ms,
        )


@dataclass(slots=True)
class Series:
    """All samples of a shape."""

    samples_ms: list[float] = field(default_factory=list)
    context_tokens: list[float] = field(default_factory=list)  # of all sequences, by measurement

    def point(self, shape: Shape) -> Point:
        """The median of the samples, at the mean of the contexts."""
        low, middle, high = np.percentile(self.samples_ms, [25, 50, 75]).tolist()
        spread = (high - low) / middle if middle > 0 else 0.0
        blank = shape.point(middle, round(float(np.mean(self.context_tokens))))
        return replace(blank, spread=spread, num_samples=len(self.samples_ms))
