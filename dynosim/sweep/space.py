"""From points of the space to trials: a checked run configuration each, or why there is none."""

from dataclasses import dataclass

from dynosim.config.loading import check_run
from dynosim.config.overrides import put
from dynosim.config.problems import Problem, dotted
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.files.digest import digest
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


def trials_of(sweep: SweepConfig) -> list[Trial]:
    """All trials in their order. Raises: ConfigError for a space that cannot be searched."""
    points = points_of(sweep, lambda point: not excess_of(sweep, _checked(sweep, 0, point)))
    return [trial_at(sweep, index, point) for index, point in enumerate(points)]


def _checked(sweep: SweepConfig, index: int, point: Point) -> RunConfig | list[Problem]:
    data = sweep.point_data(point)
    data["name"] = f"{sweep.name}-{index}"
    sla = sweep.constraints.sla
    if sla is not None and data.get("sla") is None:
        bounds = sla.model_dump(exclude={"statistic", "attainment"}, exclude_none=True)
        data = put(data, ("sla",), bounds)
    return check_run(data, sweep.folder)


def trial_at(sweep: SweepConfig, index: int, point: Point) -> Trial:
    """The trial of a point."""
    checked = _checked(sweep, index, point)
    if not isinstance(checked, RunConfig):
        reasons = [f"{dotted(problem.path)}: {problem.text}" for problem in checked]
        return Trial(index, point, None, "; ".join(reasons))
    reason = excess_of(sweep, checked)
    return Trial(index, point, None, reason) if reason else Trial(index, point, checked)


def excess_of(sweep: SweepConfig, checked: RunConfig | list[Problem]) -> str:
    """In what a point exceeds the budget; empty if it does not, or is no configuration at all."""
    budget = sweep.constraints.gpu_budget
    if budget is None or not isinstance(checked, RunConfig) or checked.num_gpus <= budget:
        return ""
    return f"needs {checked.num_gpus} GPUs, constraints.gpu_budget is {budget}"
