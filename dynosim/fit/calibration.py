"""Calibration from a request log: fit, choose the scheduling loop, judge on what was not fitted."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynosim.errors import DynosimError
from dynosim.fit.alternatives import Recorded, fit_recorded
from dynosim.fit.capacity import Start, start_of
from dynosim.fit.deployment import Deployment, balance_notes, deployment_of, hardware_notes
from dynosim.fit.fitting import Fitted
from dynosim.fit.log_file import read_measurements
from dynosim.fit.measurements import Measurements
from dynosim.fit.needed import needed_blocks
from dynosim.fit.other_gpu import gpu_warning
from dynosim.fit.own_part import OwnPart
from dynosim.fit.prior import Prior, prior_of, table_timing
from dynosim.fit.scores import Distance, Score, distances, error_values, scores
from dynosim.metrics.in_range import inside_shares
from dynosim.metrics.saturation import load_of
from dynosim.timing.fitted import Fit

KEPT_DRAWS = 32
"""Of the bootstrap's parameters, in the file of a fit: for the intervals of predictions."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fit of one log and how it did, on its own part and on the requests behind it."""

    measured: Measurements
    deployment: Deployment
    prior: Prior
    count: int
    recorded: Recorded
    fitted: Fitted
    held_out: list[Score]  # empty if all requests were fitted
    apart: list[Distance]
    notes: list[str]
    gpu_warning: str | None = None  # step times that are not those of the GPU that was named

    @property
    def fit(self) -> Fit:
        """What goes into the file."""
        return self.fitted.fit

    @property
    def own(self) -> OwnPart:
        """How it does on the fitted requests."""
        return self.recorded.chosen.own

    @property
    def is_async(self) -> bool:
        """The scheduling loop."""
        return self.recorded.chosen.is_async

    @property
    def refusal(self) -> str | None:
        """Why nobody should use the fit, and what may be missing; None if it explains its part."""
        if not self.own.misfits:
            return None
        return failure_text(self.measured, self.deployment, self.recorded, self.gpu_warning)

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        fit = self.fit
        return {
            "measurements": self.measured.source,
            "clock": self.measured.clock,
            "num_requests": len(self.measured),
            "fitted_requests": self.count,
            "prior": self.prior.source,
            "parameters": {
                name: {
                    "value": getattr(fit.parameters, name),
                    "interval": list(fit.intervals[name]),
                    "identified": name not in fit.unidentified,
                }
                for name in self.fitted.names
            },
            "unidentified": list(fit.unidentified),
            "correlations": dict(self.fitted.correlations),
            "async_scheduling": self.is_async,
            "scheduling_costs": self.recorded.loop_costs,
            "capacity": self.recorded.chosen.capacity.to_dict(),
            "fitted_part": self.own.to_dict(),
            "gpu_warning": self.gpu_warning,
            "held_out_errors": error_values(self.held_out),
            "held_out_distances": {
                one.metric: {"mean_ape": one.mean_ape, "median_ape": one.median_ape, "ks": one.ks}
                for one in self.apart
            },
            "steps_in_range": inside_shares(
                self.fitted.model(), self.fitted.predicted.result.steps
            ),
            "load": load_of(self.fitted.predicted.result).to_dict(),
            "replays": self.fitted.num_replays,
            "notes": self.notes,
        }


def calibrate_log(
    path: Path,
    *,
    model: str | None = None,
    hardware: str | None = None,
    fit_fraction: float = 0.7,
    num_gpu_blocks: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Fits the leading part of a log.

    Raises: TraceError for an unusable log; ConfigError for unknown names or too few requests.
    """
    measured = read_measurements(path)
    count = measured.fit_count(fit_fraction)
    deployment = deployment_of(
        measured.setup, model=model, hardware=hardware, num_gpu_blocks=num_gpu_blocks
    )
    notes = [f"the log does not state {key}: vLLM's default is taken" for key in deployment.assumed]
    prior = prior_of(deployment, measured)
    notes += prior.notes
    notes += hardware_notes(deployment) + balance_notes(deployment)
    start = start_of(deployment, measured.first(count))
    notes += [] if start.warning is None else [start.warning]
    recorded = fit_recorded(measured, prior, deployment, start, count=count, seed=seed)
    fitted = recorded.chosen.fitted
    notes += recorded.notes
    rest = slice(count, None)
    has_rest = count < len(measured)
    held_out = scores(measured, fitted.predicted, rest) if has_rest else []
    fit = replace(
        fitted.fit,
        draws=tuple(draw.parameters for draw in fitted.draws[:KEPT_DRAWS]),
        errors={**fitted.fit.errors, **error_values(held_out)},
        source=f"{path.name}, {count} of {len(measured)} requests" + _what(deployment),
        method=f"simulation in the loop, {fitted.num_replays} replays; prior: {prior.source}",
        misfits=recorded.chosen.own.misfits,
    )
    return Calibration(
        measured,
        deployment,
        prior,
        count,
        recorded,
        replace(fitted, fit=fit),
        held_out,
        distances(measured, fitted.predicted, rest) if has_rest else [],
        notes,
        gpu_warning_of(measured, deployment, prior),
    )


def gpu_warning_of(measured: Measurements, deployment: Deployment, prior: Prior) -> str | None:
    """`gpu_warning` where step times of the named GPU are known."""
    if not prior.fit.token_curve:
        return None
    try:
        timing = table_timing(deployment, measured.clock)
    except DynosimError:
        return None
    return None if timing is None else gpu_warning(measured, deployment, timing)


def failure_text(
    measured: Measurements, deployment: Deployment, recorded: Recorded, other_gpu: str | None
) -> str:
    """What of its own part a fit does not explain, and what is likely missing or wrong."""
    engine = deployment.engine
    needed = needed_blocks(measured, engine.block_size, num_engines=deployment.num_engines)
    start: Start = recorded.chosen.capacity.start
    likely = [other_gpu] if other_gpu else []
    likely.append(
        f"the KV capacity: started from {start.words} (the log's own concurrency needs {needed});"
        " state --num-gpu-blocks, as the engine prints it"
    )
    if deployment.assumed:
        likely.append(f"{' and '.join(deployment.assumed)}: not stated, vLLM's defaults are taken")
    if deployment.hardware is None or deployment.model is None:
        likely.append("model and --hardware: without both nothing is known but the log")
    likely.append("other load: requests on the same engine that the log does not hold")
    reasons = "; ".join(recorded.chosen.own.misfits)
    return (
        f"{measured.source}: the fit does not explain the requests it was fitted to: {reasons}."
        f" What may be missing or wrong: {'. '.join(likely)}"
    )


def _what(deployment: Deployment) -> str:
    parts = [part for part in (deployment.model, deployment.hardware) if part]
    return f" ({' on '.join(parts)})" if parts else ""
