"""The keys that a sweep file adds to a run file."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dynosim.config.base import Amount, Count, Section, check_rules
from dynosim.config.schema import SlaConfig

Statistic = Literal["mean", "median", "p75", "p90", "p95", "p99"]
Goal = Literal["max", "min"]

DEFAULT_OBJECTIVES: dict[str, Goal] = {
    "output_tok_s_per_gpu": "max",
    "mean_output_token_throughput_per_user": "max",
}


ATTAINMENT = 0.95
MAX_ADAPTIVE_SEED = (1 << 32) - 1
"""Of the generator that Optuna draws from."""


class SweepSla(SlaConfig):
    """What requests must keep, and how many of them must; or what a statistic of them must keep."""

    attainment: Annotated[float, Field(gt=0, le=1)] | None = None  # share of requests; None: 0.95
    statistic: Statistic | None = None  # in place of attainment, of each latency that has a bound

    @model_validator(mode="after")
    def _rules(self) -> Self:
        both = self.statistic is not None and self.attainment is not None
        check_rules([("statistic", both, "takes the place of attainment", "remove one of them")])
        return self

    @property
    def share(self) -> float:
        """Of how many requests every bound must be kept."""
        return ATTAINMENT if self.attainment is None else self.attainment


class SweepConstraints(Section):
    """What a trial must keep to be run (`gpu_budget`) or recommended (`sla`)."""

    gpu_budget: Count | None = None
    sla: SweepSla | None = None


class LoadConfig(Section):
    """At which loads every layout is tried.

    `capacity` seeks the largest load that a layout carries within the SLA, `curve` the same and the
    loads below it that a picture needs; `fixed` is the workload as it is.
    """

    search: Literal["capacity", "curve", "fixed"] = "fixed"
    vary: Literal["rate", "concurrency"] = "rate"
    range: list[Annotated[float, Field(gt=0)]] | None = None  # lowest and highest load to try
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.03  # between what is carried and what is not
    min_requests: Amount = 1200  # of a measurement; shorter workloads are put end to end
    curve: list[Annotated[float, Field(gt=0)]] = Field(
        [0.15, 0.3, 0.5, 0.7, 0.85, 1.0]
    )  # multiples of the capacity

    @model_validator(mode="after")
    def _rules(self) -> Self:
        ends = self.range
        is_pair = ends is None or len(ends) == 2
        is_empty = ends is not None and is_pair and ends[0] > ends[1]
        is_part = (
            ends is not None
            and is_pair
            and self.vary == "concurrency"
            and any(end != int(end) for end in ends)
        )
        given = self.model_fields_set - {"search"}
        check_rules(
            [
                ("range", not is_pair, "expected two numbers", "write `[0.02, 8]`"),
                ("range", is_empty, "is empty: the first number is larger", "swap them"),
                ("range", is_part, "concurrency is counted in whole requests", "round them"),
                (next(iter(sorted(given)), "search"), self.search == "fixed" and bool(given),
                 "has no effect with `search: fixed`", "add `search: capacity`"),
            ]
        )  # fmt: skip
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The range that is meant: multiples of the workload's load, or requests in flight."""
        if self.range is not None:
            return self.range[0], self.range[1]
        return (0.02, 8.0) if self.vary == "rate" else (1.0, 16384.0)


BATCH = 16


class Search(Section):
    """How points of the space are chosen: all of them, at random, or by what others gave."""

    method: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    trials: Count | None = None  # how many; not for a grid
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] = 0
    batch: Count | None = None  # tpe, nsga2: so many are chosen at once; None: 16

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_grid = self.method == "grid"
        check_rules(
            [
                ("trials", not is_grid and self.trials is None,
                 f"{self.method} search needs it", "add `trials: ...`"),
                ("trials", is_grid and self.trials is not None,
                 "a grid runs every point", "remove it, or use `method: random`"),
                ("batch", self.batch is not None and not self.is_adaptive,
                 f"has no effect with `method: {self.method}`", "remove it, or use `method: tpe`"),
                ("seed", self.is_adaptive and self.seed > MAX_ADAPTIVE_SEED,
                 f"{self.method} takes seeds up to {MAX_ADAPTIVE_SEED}", "use a smaller one"),
            ]
        )  # fmt: skip
        return self

    @property
    def is_adaptive(self) -> bool:
        """Whether later points are chosen by what earlier ones gave."""
        return self.method in ("tpe", "nsga2")

    @property
    def batch_size(self) -> int:
        """How many points an adaptive search chooses before it hears of them."""
        return BATCH if self.batch is None else self.batch


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
    load: LoadConfig = LoadConfig.model_construct()
    top: Annotated[int, Field(ge=1, le=1000)] = 5  # run files to write for the best trials
