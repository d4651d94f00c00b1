"""What a set-up leaves open and a log can tell: the scheduling loop, the KV capacity.

The version's loop is taken unless the other explains the log better by a margin: single requests
that miss a step move likelihoods by more than the loops do, so that the better likelihood alone
says little. What must differ are the distributions of times, by more than those of two samples of
so many requests differ by chance.
"""

from dataclasses import dataclass
from functools import partial

from dynosim.fit.capacity import GAIN, FoundCapacity, Start, fit_with_capacity
from dynosim.fit.deployment import Deployment
from dynosim.fit.fitting import Fitted
from dynosim.fit.measurements import Measurements
from dynosim.fit.own_part import OwnPart, own_part, sample_ks
from dynosim.fit.prior import Prior
from dynosim.fit.replay import Engines
from dynosim.records import Trace


@dataclass(frozen=True, slots=True)
class LoopFit:
    """The fit with one scheduling loop."""

    is_async: bool
    engines: Engines
    fitted: Fitted
    capacity: FoundCapacity
    own: OwnPart

    @property
    def loop(self) -> str:
        """For messages."""
        return "asynchronous" if self.is_async else "synchronous"


@dataclass(frozen=True, slots=True)
class Recorded:
    """The engine of a log as a fit found it, and what was tried."""

    chosen: LoopFit
    other: LoopFit | None  # the loop that was tried and not taken
    reason: str  # why this loop

    @property
    def loop_costs(self) -> dict[str, float]:
        """Cost of the fit by loop, those that were tried."""
        tried = [one for one in (self.chosen, self.other) if one is not None]
        costs = {"async" if one.is_async else "sync": one.fitted.cost for one in tried}
        return dict(sorted(costs.items(), key=lambda pair: pair[1]))

    @property
    def notes(self) -> list[str]:
        """What a report must say."""
        return [f"scheduling: {self.reason}", self.chosen.capacity.note]


def fit_recorded(
    measured: Measurements,
    prior: Prior,
    deployment: Deployment,
    start: Start,
    *,
    count: int,
    trace: Trace | None = None,
    loops: tuple[bool, ...] | None = None,
    seed: int = 0,
) -> Recorded:
    """The fit of the first `count` requests with the loop and the capacity that explain them."""
    trace = measured.trace() if trace is None else trace

    def fit(is_async: bool) -> LoopFit:
        engines, fitted, capacity = fit_with_capacity(
            measured,
            prior,
            partial(deployment.engines, trace, is_async=is_async),
            start,
            count=count,
            seed=seed,
        )
        own = own_part(measured, fitted.predicted, count)
        return LoopFit(is_async, engines, fitted, capacity, own)

    loops = loops or deployment.loops
    version = measured.setup.get("vllm_version")
    usual = fit(loops[0])
    if len(loops) == 1:
        return Recorded(usual, None, f"{usual.loop}, as the set-up says")
    margin = sample_ks(count)
    whose = f"the default of vLLM {version}" if version else "taken where no version is stated"
    if version and usual.own.ks <= margin and not usual.own.misfits:
        near = f"distributions within {usual.own.ks:.2f} (the other must gain {margin:.2f})"
        return Recorded(usual, None, f"{usual.loop}, {whose}, explains the log: {near}")
    other = fit(loops[1])
    gain = usual.own.ks - other.own.ks
    is_better = other.fitted.cost < usual.fitted.cost - GAIN
    mends = bool(usual.own.misfits) and not other.own.misfits
    if is_better and (gain > margin or mends or not version):
        apart = f"distributions within {other.own.ks:.2f} instead of {usual.own.ks:.2f}"
        why = f"explains the log better than {usual.loop}, {whose}: {apart}"
        return Recorded(other, usual, f"{other.loop} {why}")
    why = f"{other.loop} is not better by the margin of {margin:.2f} (gain {gain:.2f})"
    return Recorded(usual, other, f"{usual.loop}, {whose}; {why}")
