"""The keys that a sweep file adds to a run file."""

from math import ceil
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dynosim.config.base import Amount, Count, Section, check_rules
from dynosim.config.schema import SlaConfig
from dynosim.timing.mean_field import ALLOWANCES

Statistic = Literal["mean", "median", "p75", "p90", "p95", "p99"]
Goal = Literal["max", "min"]

DEFAULT_OBJECTIVES: dict[str, Goal] = {
    "output_tok_s_per_gpu": "max",
    "median_output_token_throughput_per_user": "max",
}


ATTAINMENT = 0.95
CONCURRENCIES = (1, 2, 8, 16, 32, 64, 128)
"""In flight, at which the field measures a deployment, beside what it is sized for."""
MAX_ADAPTIVE_SEED = (1 << 32) - 1
"""Of the generator that Optuna draws from."""


class SweepSla(SlaConfig):
    """What requests must keep, and how many of them must; or what a statistic of them must keep."""

    attainment: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the requests that must keep every bound; null: 0.95. Unit: share."""
    statistic: Statistic | None = None
    """Statistic of each bounded latency that must be within its bound, in place of attainment."""

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
    """Most GPUs of a trial; larger ones are infeasible; null: no limit. Unit: GPUs."""
    sla: SweepSla | None = None
    """What requests must keep for a trial to be recommended; null: nothing."""


class NeedConfig(Section):
    """A load that must be held: so many workers as that takes are sought, in place of a capacity.

    By what `load.vary` varies: one of the first two for a rate, the last for a closed loop.
    """

    rps: Annotated[float, Field(gt=0)] | None = None
    """Rate of requests, all turns counted. Unit: requests/s."""
    sessions_per_s: Annotated[float, Field(gt=0)] | None = None
    """Rate at which sessions start. Unit: sessions/s."""
    concurrency: Count | None = None
    """Requests (sessions, where there are any) in flight. Unit: requests."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_one = len(self.given) == 1
        check_rules([("rps", not is_one, "give one of rps, sessions_per_s and concurrency",
                      "write `need: {rps: 20}`")])  # fmt: skip
        return self

    @property
    def given(self) -> dict[str, float]:
        """What is asked for, by its key."""
        return {k: v for k, v in self.model_dump().items() if v is not None}


class LoadConfig(Section):
    """At which loads every layout is tried.

    `capacity` seeks the largest load that a layout carries within the SLA, and tries the loads
    below it that a picture needs; `curve` does so where there is no SLA, up to what does not pile
    up; `fixed` is the workload as it is. Not given, a space that varies the workload is `fixed`.
    """

    search: Literal["capacity", "curve", "fixed"] | None = None
    """What is sought: the largest load within the SLA and the loads below it; without an SLA those
    that do not pile up; or nothing (the workload as it is). null: capacity with an SLA, else
    curve; fixed where the space varies the workload."""
    vary: Literal["rate", "concurrency"] | None = None
    """What a load is: how many times as fast sessions start, or requests in flight; null: rate, but
    concurrency of a closed loop."""
    range: list[Annotated[float, Field(gt=0)]] | None = None
    """Lowest and highest load to try; null: 0.02 to 8, or 1 to 16384 in flight. Unit: multiples of
    the workload's load, or requests in flight."""
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.03
    """How far the first load that fails may lie above the capacity. Unit: share."""
    min_requests: Amount = 1200
    """Requests of a measurement at least; shorter workloads are put end to end. Unit: requests."""
    curve: list[Annotated[float, Field(gt=0)]] = Field([0.15, 0.3, 0.5, 0.7, 0.85, 1.0])
    """Loads of the picture. Unit: multiples of the capacity."""
    concurrencies: Annotated[list[Count], Field(min_length=1)] | None = None
    """Closed loop: loads of the curve that are tried whatever the capacity. Unit: requests in
    flight."""
    requests_per_slot: Amount = 40
    """Closed loop: requests of a measurement, for each request in flight. Unit: requests."""
    need: NeedConfig | None = None
    """A load to hold with the fewest GPUs, in place of a capacity; null: none."""
    exhaustive: bool = False
    """Whether the capacity of layouts that are far from the best is sought, too."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        ends = self.range
        is_pair = ends is None or len(ends) == 2
        is_empty = ends is not None and is_pair and ends[0] > ends[1]
        given = self.model_fields_set - {"search"}
        check_rules(
            [
                ("range", not is_pair, "expected two numbers", "write `[0.02, 8]`"),
                ("range", is_empty, "is empty: the first number is larger", "swap them"),
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
        return (1.0, 16384.0) if self.vary == "concurrency" else (0.02, 8.0)

    @property
    def ladder(self) -> tuple[float, ...]:
        """Loads of a curve that are tried whatever the capacity: the field's, for a closed loop."""
        if self.search != "curve" or self.vary != "concurrency":
            return ()
        given = CONCURRENCIES if self.concurrencies is None else self.concurrencies
        low, high = self.ends
        return tuple(float(load) for load in sorted(set(given)) if low <= load <= high)


BATCH = 16
KEEP = 0.1
Factor = Annotated[float, Field(gt=0, le=1)]


class Search(Section):
    """How points of the space are chosen: all of them, at random, or by what others gave; and
    which of them are tried, if a screen ranks them first."""

    method: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    """How points are chosen: all, at random, or by a sampler of Optuna from what others gave."""
    trials: Count | None = None
    """How many points are tried; not for a grid. Unit: trials."""
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] = 0
    """Seed of the points that are drawn."""
    batch: Count | None = None
    """So many points are chosen at once, of tpe and nsga2; null: 16. Unit: trials."""
    screen: Literal["meanfield"] | None = None
    """Ranks all points before any is tried: `meanfield`, by step times of steady batches; null: all
    points are tried."""
    keep: Count | Annotated[float, Field(gt=0, le=1)] | None = None
    """How many of the ranked points are tried, as a number (20) or a share (0.1); those that the
    screen cannot tell from the last of them are, too; null: 0.1. Unit: trials, or share."""
    prefill_factor: Factor | None = None
    """Screen: part of their steady rate that prefill workers make; null: 0.9. Unit: share."""
    decode_factor: Factor | None = None
    """Screen: likewise decode workers; null: 0.92. Unit: share."""
    ttft_factor: Annotated[float, Field(ge=1)] | None = None
    """Screen: how many times the prefill's own time the first token takes, of a disaggregated
    cluster; null: 1.8. Unit: factor."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_grid = self.method == "grid"
        of_screen = ("keep", "prefill_factor", "decode_factor", "ttft_factor")
        idle = next((key for key in of_screen if getattr(self, key) is not None), "")
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
                ("screen", self.screen is not None and self.is_adaptive,
                 f"{self.method} chooses by what was tried", "use `method: grid` or random"),
                (idle, self.screen is None and bool(idle), "has no effect without a screen",
                 "add `screen: meanfield`"),
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

    def num_kept(self, num_ranked: int) -> int:
        """How many of so many ranked points are tried."""
        kept = KEEP if self.keep is None else self.keep
        return kept if isinstance(kept, int) else max(1, ceil(kept * num_ranked - 1e-9))

    @property
    def factors(self) -> tuple[float, float, float]:
        """Those of the screen: prefill, decode, TTFT."""
        given = (self.prefill_factor, self.decode_factor, self.ttft_factor)
        usual = (ALLOWANCES.prefill, ALLOWANCES.decode, ALLOWANCES.ttft)
        prefill, decode, ttft = (
            other if own is None else own for own, other in zip(given, usual, strict=True)
        )
        return prefill, decode, ttft


class RangeConfig(Section):
    """Numbers from `min` to `max`, both included: every `step`, or doubling with `log`."""

    min: float
    """Lowest value. Unit: the key's."""
    max: float
    """Highest value. Unit: the key's."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance of two values; null: every number (random search), or doublings with `log`. Unit:
    the key's."""
    log: bool = False
    """Whether equal factors are equally likely; in a grid, whether values double."""

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
    """The sections beside those of a run file."""

    space: dict[str, Any]
    """What varies: dotted keys of the run file, each with a list of values or a range."""
    constraints: SweepConstraints = SweepConstraints.model_construct()
    """What a trial must keep to be run or recommended."""
    objectives: dict[str, Goal] = DEFAULT_OBJECTIVES
    """What is sought: numbers of the report, each to be raised (`max`) or lowered (`min`)."""
    search: Search = Search.model_construct()
    """How points of the space are chosen."""
    load: LoadConfig = LoadConfig.model_construct()
    """At which loads every layout is tried."""
    top: Annotated[int, Field(ge=1, le=1000)] = 5
    """Folders to write for the best trials. Unit: trials."""
