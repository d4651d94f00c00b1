"""What a prediction says about itself: intervals, measured range, saturation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynosim.engine.spec import EngineSpec
from dynosim.metrics.saturation import judge_saturation
from dynosim.records import RunResult, StepLog
from dynosim.timing.fitted import AXES, Fit, FittedModel
from dynosim.timing.model import StepTimeModel
from dynosim.validate.fitting import DECODE_SHARE
from dynosim.validate.measurements import Measurements
from dynosim.validate.replay import replay
from dynosim.validate.scores import scores

JITTER_MS = 15.0
"""Spread of the way from a client to the scheduler (tokenisation, two processes), which logs do not
hold: arrivals of a draw are moved by a uniform amount of so much. vLLM 0.19 took 15 to 30 ms."""

FORM_ERROR = DECODE_SHARE
"""Standard deviation of what the physical form gets wrong of all step times together: the scale of
errors that a fit reckons with."""

MS_PER_S = 1000.0


def intervals(
    measured: Measurements, spec: EngineSpec, draws: Sequence[Fit], *, count: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Per statistic the range of 95 % of replays with other plausible constants and arrivals."""
    rng = np.random.default_rng(seed)
    trace = measured.trace()
    samples: dict[str, list[float]] = {}
    for index in np.linspace(0, len(draws) - 1, count).astype(int).tolist():
        arrival_ms = measured.arrival_ms + rng.uniform(0, JITTER_MS, len(measured))
        arrival_ms = np.maximum.accumulate(arrival_ms)  # requests keep their order
        factor = 1 + FORM_ERROR * float(rng.standard_normal())
        timing = FittedModel(scaled(draws[index], factor))
        predicted = replay(trace, spec, timing, measured.clock, arrival_ms=arrival_ms)
        for score in scores(measured, predicted):
            samples.setdefault(score.name, []).append(score.predicted)
    return {
        name: (float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5)))
        for name, values in samples.items()
    }


def scaled(fit: Fit, factor: float) -> Fit:
    """The fit with all step times longer by a factor."""
    parameters = fit.parameters
    names = ["overhead_ms", "prompt_step_ms", "per_decode_ms", "per_context_token_ms"]
    names += ["mixed_context_token_ms", "per_pair_ms"]
    names += ["curve_scale"] if fit.token_curve else ["weights_ms", "per_token_ms"]
    changes = {name: factor * getattr(parameters, name) for name in names}
    return replace(fit, parameters=replace(parameters, **changes))


def inside_shares(timing: StepTimeModel, steps: StepLog) -> dict[str, float]:
    """Share of steps inside the measured range: on all axes, and by axis where it is known."""
    total = int(steps.num_steps.sum())
    if not total:
        return {}
    shares = {"all": int(timing.steps_in_range(steps).sum()) / total}
    if isinstance(timing, FittedModel):
        for axis in AXES:
            shares[axis] = int(timing.steps_in_range_of(axis, steps).sum()) / total
    return shares


@dataclass(frozen=True, slots=True)
class Load:
    """Whether a run kept up, and what it sustained while requests waited."""

    is_saturated: bool
    reason: str
    sustained_tok_s: float | None  # output tokens a second while anything waited
    collapse_ms: float | None  # since when the queue did not empty before the last arrival

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "saturated": self.is_saturated,
            "reason": self.reason,
            "sustained_output_tok_s": self.sustained_tok_s,
            "time_to_collapse_ms": self.collapse_ms,
        }


def load_of(result: RunResult) -> Load:
    """The verdict on one worker's run."""
    verdict = judge_saturation(result)
    steps = result.steps
    waiting = steps.num_waiting > 0
    busy_ms = float(steps.duration_ms[waiting].sum())
    tokens = float((steps.num_decodes * steps.num_steps + steps.num_prefills)[waiting].sum())
    last_ms = float(np.nanmax(result.requests.arrival_ms))
    before = steps.start_ms <= last_ms
    idle = np.flatnonzero(before & ~waiting)
    since = int(idle[-1]) + 1 if len(idle) else 0
    has_collapsed = verdict.is_saturated and since < len(steps.start_ms)
    return Load(
        verdict.is_saturated,
        verdict.reason,
        tokens * MS_PER_S / busy_ms if busy_ms else None,
        float(steps.start_ms[since]) if has_collapsed else None,
    )
