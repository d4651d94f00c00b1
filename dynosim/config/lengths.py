"""How quantities of a generated workload are drawn: lengths, counts, pauses, priorities."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from dynosim.config.base import NotNegative, Section, check_rules

TraceFormat = Literal["mooncake", "azure", "jsonl", "agentic_mooncake", "dynamo", "weka", "bailian"]


class DistributionConfig(Section):
    """How a quantity (tokens, turns, ms) is drawn. In a file a plain number stands for `fixed`.

    A value outside `[min, max]` is drawn again.
    """

    dist: Literal["fixed", "normal", "lognormal", "geometric", "exponential", "empirical"]
    """Kind of distribution."""
    mean: NotNegative | None = None
    """Mean, before bounds; every kind but `empirical` needs it. Unit: the quantity's."""
    std: NotNegative | None = None
    """Standard deviation, of `normal` and `lognormal`. Unit: the quantity's."""
    min: NotNegative | None = None
    """Lowest value; what is drawn below it is drawn again. Unit: the quantity's."""
    max: NotNegative | None = None
    """Highest value; what is drawn above it is drawn again. Unit: the quantity's."""
    trace: str | None = None
    """Trace whose lengths are drawn, for `empirical`."""
    format: TraceFormat | None = None
    """Format of that trace; null: by its name."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        names = ("mean", "std", "trace", "format")
        given = {name for name in names if getattr(self, name) is not None}
        needed = {"trace"} if self.dist == "empirical" else {"mean"}
        has_spread = self.dist in ("normal", "lognormal")
        allowed = needed | ({"format"} if self.dist == "empirical" else set())
        allowed |= {"std"} if has_spread else set()
        rules = [(key, True, f"{self.dist} needs it", f"add `{key}: ...`")
                 for key in sorted(needed - given)]  # fmt: skip
        rules += [(key, True, f"{self.dist} has no such key", "remove it")
                  for key in sorted(given - allowed)]  # fmt: skip
        is_empty = self.max is not None and self.min is not None and self.max < self.min
        check_rules([*rules, ("max", is_empty, f"is less than min ({self.min})", "raise it")])
        return self


def _distribution(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"dist": "fixed", "mean": value} if is_number else value


Distribution = Annotated[
    DistributionConfig,
    BeforeValidator(_distribution, json_schema_input_type=NotNegative | DistributionConfig),
]


class PriorityConfig(Section):
    """Sessions of one priority."""

    priority: int
    """Lower is served earlier. Unit: none."""
    share: NotNegative
    """Part of the sessions, relative to the other classes' shares. Unit: share."""
