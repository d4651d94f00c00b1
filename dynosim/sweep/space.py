"""From points of the space to trials: a checked run configuration each, or why there is none."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dynosim.config.loading import check_run
from dynosim.config.overrides import put
from dynosim.config.problems import dotted
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.search import Point, points_of


@dataclass(frozen=True, slots=True)
class Trial:
    """One point. Exactly one of `config` and `reason` (why it cannot be run) is set."""

    index: int
    values: Point
    config: RunConfig | None
    reason: str = ""

    @property
    def config_hash(self) -> str:
        """Equal for equal configurations; of an infeasible point, of its values."""
        return digest(self.values if self.config is None else self.config.model_dump(mode="json"))


def digest(data: Any) -> str:
    """16 hexadecimal digits that stand for plain data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def trials_of(sweep: SweepConfig) -> list[Trial]:
    """All trials in their order. Raises: ConfigError for a space that cannot be searched."""
    return [_trial(sweep, index, point) for index, point in enumerate(points_of(sweep))]


def _trial(sweep: SweepConfig, index: int, point: Point) -> Trial:
    data = sweep.point_data(point)
    data["name"] = f"{sweep.name}-{index}"
    sla = sweep.constraints.sla
    if sla is not None and data.get("sla") is None:
        bounds = sla.model_dump(exclude={"statistic"}, exclude_none=True)
        data = put(data, ("sla",), bounds)
    checked = check_run(data, sweep.folder)
    if not isinstance(checked, RunConfig):
        reasons = [f"{dotted(problem.path)}: {problem.text}" for problem in checked]
        return Trial(index, point, None, "; ".join(reasons))
    budget = sweep.constraints.gpu_budget
    if budget is not None and checked.num_gpus > budget:
        reason = f"needs {checked.num_gpus} GPUs, constraints.gpu_budget is {budget}"
        return Trial(index, point, None, reason)
    return Trial(index, point, checked)
