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
CONCURRENCIES = (1, 2, 8, 16, 32, 64, 128)
"""In flight, at which the field measures a deployment, beside what it is sized for."""


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


class NeedConfig(Section):
    """A load that must be held: so many workers as that takes are sought, in place of a capacity.

    By what `load.vary` varies: one of the first two for a rate, the last for a closed loop.
    """

    rps: Annotated[float, Field(gt=0)] | None = None  # requests a second, all turns counted
    sessions_per_s: Annotated[float, Field(gt=0)] | None = None  # sessions started a second
    concurrency: Count | None = None  # requests (sessions) in flight

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
    concurrencies: Annotated[list[Count], Field(min_length=1)] | None = (
        None  # closed loop, curve: tried whatever the capacity
    )
    requests_per_slot: Amount = 40  # closed loop: of a measurement, for each request in flight
    need: NeedConfig | None = None  # a load to hold, with the fewest GPUs
    exhaustive: bool = False  # seek the capacity of layouts that are far from the best, too

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
        is_closed, is_curve = self.vary == "concurrency", self.search == "curve"
        asked = set() if self.need is None else set(self.need.given)
        is_other = bool(asked) and (asked == {"concurrency"}) != is_closed
        check_rules(
            [
                ("concurrencies", "concurrencies" in given and not (is_closed and is_curve),
                 "are loads of a closed loop's curve",
                 "add `search: curve` and `vary: concurrency`, or remove them"),
                ("requests_per_slot", "requests_per_slot" in given and not is_closed,
                 "only a closed loop has slots", "use min_requests, or add `vary: concurrency`"),
                ("need", is_other, f"{next(iter(asked), '')} is not what vary: {self.vary} varies",
                 "use concurrency with `vary: concurrency`, else rps or sessions_per_s"),
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

    @property
    def ladder(self) -> tuple[float, ...]:
        """Loads of a curve that are tried whatever the capacity: the field's, for a closed loop."""
        if self.search != "curve" or self.vary != "concurrency":
            return ()
        given = CONCURRENCIES if self.concurrencies is None else self.concurrencies
        low, high = self.ends
        return tuple(float(load) for load in sorted(set(given)) if low <= load <= high)


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
    load: LoadConfig = LoadConfig.model_construct()
    top: Annotated[int, Field(ge=1, le=1000)] = 5  # run files to write for the best trials
