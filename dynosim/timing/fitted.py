"""Step times of a physical form whose constants were fitted to measurements of one deployment.

A step takes

    overhead + prompt step + soft maximum(weights, tokens * per token)
    + decodes * per decode + contexts * per context token + attention pairs * per pair
    (+ contexts * mixed context token, in a step that also computes prompt tokens)

where tokens counts all that the step computes, padded as the engine pads (CUDA graphs exist for
some batch sizes only), contexts is the sum over decoding sequences, and a prompt chunk of n tokens
behind p cached ones makes n * (p + (n + 1) / 2) attention pairs. The soft maximum is the mixed-step
rule: while reading the weights takes longer than computing, prompt tokens ride along for free;
beyond, every token costs. Where a curve of the matrix products over tokens is known (from measured
tables), `curve_scale` times it stands in for the soft maximum; a second curve tells by how much
reading a token of context is faster or slower in batches of some sizes (kernels split small batches
over the device, middling ones leave a part of it idle). Either form of the products is bent by
factors at a few token counts, in between in line over the logarithm: experts fill up, kernels
change, the device hides behind the host. Decode steps of one batch are linear in their contexts, so
that runs have a closed form.

`ingress_ms` and `egress_ms` lie outside the steps, see `StepTimeModel`.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import log2
from typing import Any

import numpy as np

from dynosim.records import FloatArray, IntArray, StepLog
from dynosim.timing.axes import AXES
from dynosim.timing.graphs import padded_tokens
from dynosim.timing.model import DERIVED, StepTimeModel, contexts_below
from dynosim.timing.step import StepShape

DEFAULT_KNEE = 4.0

DRIFT = "drift"
"""Among a fit's errors: standard deviation of the engine's speed over the time of the log."""


Curve = tuple[tuple[float, float], ...]
"""Points to interpolate between, two at least; empty: no curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedParameters:
    """The constants of one deployment, none negative; in ms but for `curve_scale` and factors."""

    overhead_ms: float = 0.0  # of every step: launches, sampling, the host between two steps
    weights_ms: float = 0.0  # reading all weights once
    per_token_ms: float = 0.0  # matrix products of one token where computing is the limit
    curve_scale: float = 1.0  # of the token curve, where there is one
    factor_at_8: float = 1.0  # of the products of so many tokens; at one token there is none
    factor_at_32: float = 1.0
    factor_at_128: float = 1.0
    factor_at_512: float = 1.0
    factor_at_2048: float = 1.0  # and beyond
    prompt_step_ms: float = 0.0  # once per step that computes any prompt token
    per_decode_ms: float = 0.0  # one decoding sequence
    per_context_token_ms: float = 0.0  # reading one token of cache for a decoding sequence
    mixed_context_token_ms: float = 0.0  # more, if the step also computes prompt tokens
    per_pair_ms: float = 0.0  # one prompt token attending to one token
    ingress_ms: float = 0.0  # arrival until the scheduler sees a request
    egress_ms: float = 0.0  # token made until token delivered


BENT_AT = (8, 32, 128, 512, 2048)
FACTOR_NAMES = tuple(f"factor_at_{tokens}" for tokens in BENT_AT)
PARAMETER_NAMES = tuple(parameter.name for parameter in fields(FittedParameters))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRange:
    """The largest step of each kind that the measurements held; None: not known."""

    prefill_tokens: int | None = None  # new prompt tokens in a step
    prefix_tokens: float | None = None  # cached tokens per prompt, in the mean of a step
    num_decodes: int | None = None
    mean_context: float | None = None  # tokens per decoding sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted model as its file tells it: constants, how sure they are, where they come from."""

    parameters: FittedParameters
    token_curve: Curve = ()  # (tokens, ms of products), tokens rising
    context_curve: Curve = ()  # (decodes, factor of per_context_token_ms), decodes rising
    knee: float = DEFAULT_KNEE  # sharpness of the soft maximum; >= 1, larger is sharper
    graph_sizes: tuple[int, ...] = ()  # token counts the engine pads to, rising; empty: no padding
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, by parameter
    draws: tuple[FittedParameters, ...] = ()  # other constants, as plausible as the spread of these
    unidentified: tuple[str, ...] = ()  # parameters that the measurements cannot tell
    measured: MeasuredRange = field(default_factory=MeasuredRange)
    errors: Mapping[str, float] = field(default_factory=dict)  # metric -> held out; and `DRIFT`
    source: str = ""  # of the measurements: file, engine, model, hardware
    method: str = ""  # how the constants were found
    misfits: tuple[
        str, ...
    ] = ()  # what of its own measurements it does not explain; should be none


class FittedModel(StepTimeModel):
    """Evaluates a `Fit`; about 1 us a step."""

    source = DERIVED
    decode_is_monotone = True

    def __init__(self, fit: Fit, *, name: str = "fitted") -> None:
        self.fit = fit
        parameters = fit.parameters
        self.ingress_ms = parameters.ingress_ms
        self.egress_ms = parameters.egress_ms
        self._overhead_ms = parameters.overhead_ms
        self._weights_ms = parameters.weights_ms
        self._per_token_ms = parameters.per_token_ms
        self._prompt_step_ms = parameters.prompt_step_ms
        self._per_decode_ms = parameters.per_decode_ms
        self._per_context_token_ms = parameters.per_context_token_ms
        self._mixed_context_token_ms = parameters.mixed_context_token_ms
        self._per_pair_ms = parameters.per_pair_ms
        bends = zip(BENT_AT, FACTOR_NAMES, strict=True)
        self._factors: Curve = (
            (0.0, 1.0),
            *((log2(tokens), getattr(parameters, name)) for tokens, name in bends),
        )
        self._token_work: dict[int, float] = {}  # remembered, by token count
        self._context_token: dict[int, float] = {}  # remembered, by number of decodes
        self.description = f"fitted: {name}" + (f", from {fit.source}" if fit.source else "")
        self.notes = _notes(fit)

    def step_ms(self, step: StepShape) -> float:
        prefill_tokens, num_decodes = step.prefill_tokens, step.num_decodes
        tokens = prefill_tokens + num_decodes
        if tokens <= 0:
            return 0.0
        work = self._token_work.get(tokens)
        total = self._step_base_ms(tokens) if work is None else work
        if prefill_tokens > 0:
            num_prefills = step.num_prefills
            reach = (step.prefix_tokens + (prefill_tokens + num_prefills) / 2) / num_prefills
            total += self._prompt_step_ms + prefill_tokens * reach * self._per_pair_ms
            total += step.decode_context_tokens * self._mixed_context_token_ms
        if num_decodes > 0:
            total += num_decodes * self._per_decode_ms
            total += step.decode_context_tokens * self._context_ms(num_decodes)
        return total

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        if num_decodes <= 0:
            return 0.0
        step = self._step_base_ms(num_decodes) + num_decodes * self._per_decode_ms
        contexts = num_steps * decode_context_tokens + num_decodes * (
            num_steps * (num_steps - 1) // 2
        )
        return num_steps * step + contexts * self._context_ms(num_decodes)

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        batches, inverse = np.unique(num_decodes, return_inverse=True)
        parts = [
            (self._step_base_ms(n) + n * self._per_decode_ms, self._context_ms(n))
            if n > 0
            else (0.0, 0.0)
            for n in batches.tolist()
        ]
        fixed, per_context = np.array(parts).reshape(-1, 2).T
        return np.asarray(fixed[inverse] + decode_context_tokens * per_context[inverse])

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        return num_steps

    def steps_ms(self, steps: IntArray) -> FloatArray:
        """`step_ms` of many steps at once; a row holds the five numbers of a `StepShape`."""
        num_prefills, prompts, prefix, decodes, contexts = steps.reshape(-1, 5).T
        tokens, row = np.unique(prompts + decodes, return_inverse=True)
        bases = [self._step_base_ms(count) if count > 0 else 0.0 for count in tokens.tolist()]
        batches, column = np.unique(decodes, return_inverse=True)
        slopes = [self._context_ms(count) if count > 0 else 0.0 for count in batches.tolist()]
        reach = (prefix + (prompts + num_prefills) / 2) / np.maximum(num_prefills, 1)
        of_prompts = self._prompt_step_ms + prompts * reach * self._per_pair_ms
        of_prompts = of_prompts + contexts * self._mixed_context_token_ms
        of_prompts = np.where(prompts > 0, of_prompts, 0.0)
        of_decodes = decodes * self._per_decode_ms + contexts * np.array(slopes)[column]
        return np.asarray(
            np.array(bases)[row] + np.where(prompts > 0, of_prompts, 0.0) + of_decodes
        )

    def _context_ms(self, num_decodes: int) -> float:
        """One token of context in a batch of so many decodes; remembered."""
        value = self._context_token.get(num_decodes)
        if value is None:
            curve = self.fit.context_curve
            bounded = min(num_decodes, curve[-1][0]) if curve else num_decodes
            factor = on_curve(curve, bounded) if curve else 1.0
            value = self._context_token[num_decodes] = self._per_context_token_ms * factor
        return value

    def _step_base_ms(self, tokens: int) -> float:
        """Overhead and matrix products of a step of so many tokens; remembered."""
        work = self._token_work.get(tokens)
        if work is None:
            padded = padded_tokens(tokens, self.fit.graph_sizes)
            work = self._token_work[tokens] = self._overhead_ms + self._products_ms(padded)
        return work

    def _products_ms(self, tokens: int) -> float:
        """Matrix products of so many tokens; beyond a curve's end, its last slope goes on."""
        fit = self.fit
        bent = on_curve(self._factors, log2(min(tokens, BENT_AT[-1])))
        if not fit.token_curve:
            return bent * soft_maximum(self._weights_ms, tokens * self._per_token_ms, fit.knee)
        return bent * fit.parameters.curve_scale * on_curve(fit.token_curve, tokens)

    def steps_in_range(self, steps: StepLog) -> IntArray:
        """See `StepTimeModel`; a step is inside if it is on every axis."""
        inside = steps.num_steps.astype(np.int64)
        for on_axis in self.steps_in_range_by_axis(steps).values():
            inside = np.minimum(inside, on_axis)
        return inside

    def steps_in_range_by_axis(self, steps: StepLog) -> dict[str, IntArray]:
        """Per row the steps in range on each of the `AXES` of which it is known."""
        known = [axis for axis in AXES if getattr(self.fit.measured, axis) is not None]
        return {axis: self.steps_in_range_of(axis, steps) for axis in known}

    def steps_in_range_of(self, axis: str, steps: StepLog) -> IntArray:
        """Per row: how many of its steps are no larger on one of the `AXES` than was measured."""
        limit = getattr(self.fit.measured, axis)
        if limit is None:
            return steps.num_steps.astype(np.int64)
        if axis == "mean_context":
            return contexts_below(steps, np.full(len(steps.num_steps), float(limit)))
        size = getattr(steps, axis)
        if axis == "prefix_tokens":
            size = size / np.maximum(steps.num_prefills, 1)
        return np.where(size <= limit, steps.num_steps, 0).astype(np.int64)

    def describe(self) -> dict[str, Any]:
        """See `StepTimeModel`; with the errors on data that the fit has not seen."""
        return {**super().describe(), "held_out_errors": dict(self.fit.errors)}


def on_curve(curve: Curve, x: float) -> float:
    """The curve's height at `x`, beyond its ends in line with the nearest two points."""
    i = bisect_right(curve, x, 1, len(curve) - 1, key=_first)
    (x0, y0), (x1, y1) = curve[i - 1], curve[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _first(point: tuple[float, float]) -> float:
    return point[0]


def soft_maximum(a: float, b: float, knee: float) -> float:
    """A smooth stand-in for max(a, b) of numbers >= 0: (a^knee + b^knee)^(1 / knee)."""
    high, low = (a, b) if a >= b else (b, a)
    if high <= 0:
        return 0.0
    return float(high * (1.0 + (low / high) ** knee) ** (1.0 / knee))


def _notes(fit: Fit) -> tuple[str, ...]:
    notes = ["constants fitted to measurements of one deployment; not of single steps"]
    if fit.misfits:
        notes.append(f"DOES NOT EXPLAIN ITS OWN MEASUREMENTS: {'; '.join(fit.misfits)}")
    if fit.unidentified:
        notes.append(f"not told apart by the measurements: {', '.join(fit.unidentified)}")
    return tuple(notes)
