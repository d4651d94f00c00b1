"""The keys that a sweep file adds to a run file."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dynosim.config.base import Count, Section, check_rules
from dynosim.config.schema import SlaConfig

Statistic = Literal["mean", "median", "p75", "p90", "p95", "p99"]
Goal = Literal["max", "min"]

DEFAULT_OBJECTIVES: dict[str, Goal] = {
    "output_tok_s_per_gpu": "max",
    "mean_output_token_throughput_per_user": "max",
}


class SweepSla(SlaConfig):
    """Bounds on a statistic over a trial's requests: the mean, unless a stricter one is named."""

    statistic: Statistic = "mean"


class SweepConstraints(Section):
    """What a trial must keep to be run (`gpu_budget`) or recommended (`sla`)."""

    gpu_budget: Count | None = None
    sla: SweepSla | None = None


class Search(Section):
    """How points of the space are chosen."""

    method: Literal["grid", "random"] = "grid"
    trials: Count | None = None  # random: how many
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] = 0

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_random = self.method == "random"
        check_rules(
            [
                ("trials", is_random and self.trials is None,
                 "random search needs it", "add `trials: ...`"),
                ("trials", not is_random and self.trials is not None,
                 "a grid runs every point", "remove it, or use `method: random`"),
            ]
        )  # fmt: skip
        return self


class RangeConfig(Section):
    """Numbers from `min` to `max`, both included: every `step`, or doubling with `log`."""

    min: float
    max: float
    step: Annotated[float, Field(gt=0)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_rules(
            [
                ("max", self.max < self.min, f"is less than min ({self.min:g})", "raise it"),
                ("step", self.log and self.step is not None, "log excludes step", "remove one"),
                ("min", self.log and self.min <= 0, "log needs min > 0", "raise it"),
            ]
        )  # fmt: skip
        return self


class SweepKeys(Section):
    """The sections beside those of a run file; `space` is checked by `dynosim.sweep.space`."""

    space: dict[str, Any]
    constraints: SweepConstraints = SweepConstraints.model_construct()
    objectives: dict[str, Goal] = DEFAULT_OBJECTIVES  # report key: direction
    search: Search = Search.model_construct()
    top: Annotated[int, Field(ge=1, le=1000)] = 5  # run files to write for the best trials
