"""From points of the space to trials: a checked run configuration each, or why there is none."""

from dataclasses import dataclass, field

from dynosim.config.loading import check_run
from dynosim.config.overrides import put
from dynosim.config.problems import Problem, dotted
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.files.digest import digest
from dynosim.sweep.same_plan import plan_digest
from dynosim.sweep.search import Point, num_combinations, points_of


@dataclass(frozen=True, slots=True)
class Trial:
    """One point. Exactly one of `config` and `reason` (why it cannot be run) is set."""

    index: int
    values: Point
    config: RunConfig | None
    reason: str = ""

    known_as: str = ""
    """What a ledger knows it by, where that is not its configuration: another one's hash."""
    config_hash: str = field(init=False, compare=False)
    """Equal for equal configurations; of an infeasible point, of its values."""

    @property
    def ledger_hash(self) -> str:
        """What a ledger knows it by."""
        return self.known_as or self.config_hash

    def __post_init__(self) -> None:
        data = self.values if self.config is None else self.config.model_dump(mode="json")
        object.__setattr__(self, "config_hash", digest(data))


def trials_of(sweep: SweepConfig) -> list[Trial]:
    """All trials in their order. Points that come to the same plan are one trial, the first.

    Raises: ConfigError for a space that cannot be searched.
    """
    points = points_of(sweep, lambda point: not excess_of(sweep, _checked(sweep, 0, point)))
    trials: list[Trial] = []
    first: RunConfig | None = None
    plans: set[str] = set()
    for point in points:
        trial = trial_at(sweep, len(trials), point)
        if trial.config is not None:
            plan = plan_digest(trial.config)
            if plan in plans:
                continue
            plans.add(plan)
            first = first or trial.config
            _share_sections(trial.config, first)
        trials.append(trial)
    return trials


def num_same_points(sweep: SweepConfig, num_trials: int) -> int:
    """Combinations of a grid's values that come to a plan which another one has."""
    return num_combinations(sweep) - num_trials if sweep.search.method == "grid" else 0


def _share_sections(config: RunConfig, first: RunConfig) -> None:
    """Let sections that are as in the first configuration be that one's: of ten thousand trials
    they take most of the memory, and nobody can change them."""
    for name, section in first.__dict__.items():
        if config.__dict__[name] == section:
            config.__dict__[name] = section


def _checked(sweep: SweepConfig, index: int, point: Point) -> RunConfig | list[Problem]:
    data = sweep.point_data(point)
    data["name"] = f"{sweep.name}-{index}"
    sla = sweep.constraints.sla
    if sla is not None and data.get("sla") is None:
        bounds = sla.model_dump(exclude={"statistic", "attainment"}, exclude_none=True)
        data = put(data, ("sla",), bounds)
    return check_run(data, sweep.folder)


def trial_at(sweep: SweepConfig, index: int, point: Point) -> Trial:
    """The trial of a point, of which only the values that count in its mode are kept."""
    point = sweep.values_that_count(point)
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
