"""Calibration from a request log: fit, choose the scheduling loop, judge on what was not fitted."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynosim.fit.alternatives import fit_capacity, fit_loops
from dynosim.fit.deployment import (
    Deployment,
    balance_notes,
    capacity_note,
    deployment_of,
    hardware_notes,
)
from dynosim.fit.fitting import Fitted
from dynosim.fit.log_file import read_measurements
from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import Prior, prior_of
from dynosim.fit.scores import Distance, Score, distances, error_values, scores
from dynosim.metrics.in_range import inside_shares
from dynosim.metrics.saturation import load_of
from dynosim.timing.fitted import Fit

KEPT_DRAWS = 32
"""Of the bootstrap's parameters, in the file of a fit: for the intervals of predictions."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fit of one log and how it did on the requests behind the fitted ones."""

    measured: Measurements
    deployment: Deployment
    prior: Prior
    count: int
    fitted: Fitted
    is_async: bool
    loop_costs: dict[str, float]  # cost of the fit by scheduling loop, those that were tried
    held_out: list[Score]  # empty if all requests were fitted
    apart: list[Distance]
    notes: list[str]

    @property
    def fit(self) -> Fit:
        """What goes into the file."""
        return self.fitted.fit

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
            "scheduling_costs": self.loop_costs,
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
    trace = measured.trace()
    blocks = deployment.given_blocks
    if blocks is None:
        blocks, said = deployment.assumed_blocks(measured)
        notes += said
    engines = deployment.engines(trace, blocks)
    fits = fit_loops(measured, prior, engines, deployment.loops, count=count, seed=seed)
    is_async, fitted = next(iter(fits.items()))
    if deployment.given_blocks is None:
        guessed = engines.scheduling(is_async=is_async)
        found, fitted = fit_capacity(measured, prior, guessed, fitted, count=count, seed=seed)
        if found.engine.num_gpu_blocks != guessed.engine.num_gpu_blocks:
            notes.append(capacity_note(guessed.engine, found.engine))
    rest = slice(count, None)
    has_rest = count < len(measured)
    held_out = scores(measured, fitted.predicted, rest) if has_rest else []
    fit = replace(
        fitted.fit,
        draws=tuple(draw.parameters for draw in fitted.draws[:KEPT_DRAWS]),
        errors={**fitted.fit.errors, **error_values(held_out)},
        source=f"{path.name}, {count} of {len(measured)} requests" + _what(deployment),
        method=f"simulation in the loop, {fitted.num_replays} replays; prior: {prior.source}",
    )
    return Calibration(
        measured,
        deployment,
        prior,
        count,
        replace(fitted, fit=fit),
        is_async,
        {_loop_name(loop): one.cost for loop, one in fits.items()},
        held_out,
        distances(measured, fitted.predicted, rest) if has_rest else [],
        notes,
    )


def _loop_name(is_async: bool) -> str:
    return "async" if is_async else "sync"


def _what(deployment: Deployment) -> str:
    parts = [part for part in (deployment.model, deployment.hardware) if part]
    return f" ({' on '.join(parts)})" if parts else ""
