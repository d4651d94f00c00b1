"""Where a prediction's error comes from: one part at a time is replaced by the measured one."""

from dataclasses import replace

import numpy as np

from dynosim.experiment.intervals import JITTER_MS
from dynosim.fit.fitting import FIRST_TOKEN_MS, FIRST_TOKEN_SHARE
from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import PROMPT_OVERHEAD_MS
from dynosim.fit.replay import Engines, replay
from dynosim.fit.scores import mean_absolute_error, scores
from dynosim.records import FloatArray
from dynosim.timing.fitted import FACTOR_NAMES, Fit, FittedModel
from dynosim.timing.model import StepTimeModel

HOST = ("overhead_ms", "prompt_step_ms", "per_decode_ms", "ingress_ms", "egress_ms")
"""Constants of what the host adds."""

KERNELS = (
    "curve_scale",
    *FACTOR_NAMES,
    "weights_ms",
    "per_token_ms",
    "per_context_token_ms",
    "mixed_context_token_ms",
    "per_pair_ms",
)
"""Constants of what the device computes."""

_SEARCH_ROUNDS = 40


def blind_fit(prior: Fit, times: StepTimeModel) -> Fit:
    """The prior without what only a log could tell; `times`, the blind step times, have the way
    between client and engine."""
    return replace(
        prior,
        parameters=replace(
            prior.parameters,
            prompt_step_ms=max(prior.parameters.prompt_step_ms - PROMPT_OVERHEAD_MS, 0.0),
            per_decode_ms=0.0,
            ingress_ms=times.ingress_ms,
            egress_ms=times.egress_ms,
        ),
    )


def attribute(
    measured: Measurements,
    *,
    blind: Fit,
    fitted: Fit,
    blind_engines: Engines,
    given_engines: Engines | None,
) -> dict[str, float]:
    """Mean absolute relative error of all statistics, by the part that was replaced.

    `none` is the blind prediction. Kernel and host times are taken from the fit, the capacity from
    the log, scheduling is the other of the two loops, and arrivals are moved to where the measured
    first tokens say that the scheduler took the requests.
    """

    def error(fit: Fit, engines: Engines, arrival_ms: FloatArray | None = None) -> float:
        predicted = replay(
            measured.trace(), engines, FittedModel(fit), measured.clock, arrival_ms=arrival_ms
        )
        return mean_absolute_error(scores(measured, predicted))

    other_loop = blind_engines.scheduling(is_async=not blind_engines.engine.async_scheduling)
    errors = {
        "none": error(blind, blind_engines),
        "step time": error(swapped(blind, fitted, KERNELS), blind_engines),
        "host overhead": error(swapped(blind, fitted, HOST), blind_engines),
        "scheduling": error(blind, other_loop),
    }
    if given_engines is not None:
        errors["KV capacity"] = error(blind, given_engines)
    errors["step time and host overhead"] = error(fitted, given_engines or blind_engines)
    arrival_ms = implied_arrivals(measured, given_engines or blind_engines, FittedModel(fitted))
    errors["step time, host overhead and arrival jitter"] = error(
        fitted, given_engines or blind_engines, arrival_ms
    )
    return errors


def swapped(base: Fit, other: Fit, names: tuple[str, ...]) -> Fit:
    """`base` with some constants of another fit of the same form."""
    changes = {name: getattr(other.parameters, name) for name in names}
    return replace(base, parameters=replace(base.parameters, **changes))


def implied_arrivals(
    measured: Measurements, engines: Engines, timing: StepTimeModel, *, seed: int = 0
) -> FloatArray:
    """Arrivals moved, each by less than the jitter, so that first tokens fit best.

    A seeded random search: the worst requests are moved, and stay where they fit better as long as
    the whole does.
    """
    rng = np.random.default_rng(seed)
    trace = measured.trace()
    scale = FIRST_TOKEN_SHARE * measured.ttft_ms + FIRST_TOKEN_MS

    def misfit(arrival_ms: FloatArray) -> FloatArray:
        predicted = replay(trace, engines, timing, measured.clock, arrival_ms=arrival_ms)
        return np.log1p(((predicted.ttft_ms - measured.ttft_ms) / scale) ** 2)

    best_ms = measured.arrival_ms.copy()
    lowest = misfit(best_ms)
    for _ in range(_SEARCH_ROUNDS):
        is_moved = rng.random(len(measured)) < 0.3 * lowest / max(float(lowest.max()), 1e-9)
        moves_ms = rng.uniform(-JITTER_MS / 2, JITTER_MS / 2, len(measured))
        trial_ms = np.where(is_moved, measured.arrival_ms + moves_ms, best_ms)
        trial_ms = np.maximum.accumulate(np.maximum(trial_ms, 0.0))
        found = misfit(trial_ms)
        if found.sum() < lowest.sum():
            best_ms, lowest = trial_ms, found
    return best_ms
