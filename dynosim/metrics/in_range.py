"""Which share of a run's steps the step times were measured on, in all and by axis."""

from typing import Protocol

from dynosim.records import IntArray, StepLog
from dynosim.timing.fitted import AXES, FittedModel


class RangedTiming(Protocol):
    """What is asked of a step-time model."""

    def steps_in_range(self, steps: StepLog) -> IntArray: ...


def inside_shares(timing: RangedTiming, steps: StepLog) -> dict[str, float]:
    """Share of steps inside the measured range: `all`, and by axis where its range is known."""
    total = int(steps.num_steps.sum())
    if not total:
        return {}
    shares = {"all": int(timing.steps_in_range(steps).sum()) / total}
    if isinstance(timing, FittedModel):
        for axis in AXES:
            if getattr(timing.fit.measured, axis) is not None:
                shares[axis] = int(timing.steps_in_range_of(axis, steps).sum()) / total
    return shares


def in_range_keys(timing: RangedTiming, steps: StepLog) -> dict[str, float | None]:
    """The shares under the report's key names; None where there is none."""
    shares = inside_shares(timing, steps)
    return {
        "timing_in_range_share": shares.get("all"),
        **{f"timing_in_range_share_{axis}": shares.get(axis) for axis in AXES},
    }
