"""Which share of a run's steps the step times were measured on, in all and by axis."""

from typing import Protocol, runtime_checkable

import numpy as np

from dynosim.records import IntArray, StepLog, WorkerLog
from dynosim.timing.axes import AXES


class RangedTiming(Protocol):
    """What is asked of a step-time model."""

    def steps_in_range(self, steps: StepLog) -> IntArray: ...


@runtime_checkable
class AxisTiming(Protocol):
    """A model that knows its range by axis, as fitted ones do."""

    def steps_in_range_by_axis(self, steps: StepLog) -> dict[str, IntArray]: ...


class PoolTimes:
    """Two models, one for the steps of prefill workers and one for those of decode workers."""

    def __init__(self, prefill: RangedTiming, decode: RangedTiming, workers: WorkerLog) -> None:
        self._models = prefill, decode
        self._is_prefill = np.array([role == "prefill" for role in workers.role])

    def steps_in_range(self, steps: StepLog) -> IntArray:
        """As each worker's own model has it."""
        inside = [model.steps_in_range(steps) for model in self._models]
        return np.where(self._is_prefill[steps.worker_id], *inside)

    def steps_in_range_by_axis(self, steps: StepLog) -> dict[str, IntArray]:
        """By the axes that both know."""
        prefill, decode = [
            model.steps_in_range_by_axis(steps) if isinstance(model, AxisTiming) else {}
            for model in self._models
        ]
        is_prefill = self._is_prefill[steps.worker_id]
        return {
            axis: np.where(is_prefill, inside, decode[axis])
            for axis, inside in prefill.items()
            if axis in decode
        }


def inside_shares(timing: RangedTiming, steps: StepLog) -> dict[str, float]:
    """Share of steps inside the measured range: `all`, and by axis where its range is known."""
    total = int(steps.num_steps.sum())
    if not total:
        return {}
    shares = {"all": int(timing.steps_in_range(steps).sum()) / total}
    if isinstance(timing, AxisTiming):
        for axis, inside in timing.steps_in_range_by_axis(steps).items():
            shares[axis] = int(inside.sum()) / total
    return shares


def in_range_keys(timing: RangedTiming, steps: StepLog) -> dict[str, float | None]:
    """The shares under the report's key names; None where there is none."""
    shares = inside_shares(timing, steps)
    return {
        "timing_in_range_share": shares.get("all"),
        **{f"timing_in_range_share_{axis}": shares.get(axis) for axis in AXES},
    }
