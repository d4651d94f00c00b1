"""The `workload:` section: a trace to replay, or a synthetic load."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dynosim.config.base import Amount, Count, NotNegative, Section, Share, check_rules

TraceFormat = Literal["mooncake", "azure", "jsonl"]


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


class SyntheticConfig(Section):
    """A generated load: `requests` in all, or `sessions` of `turns` requests each."""

    requests: Count | None = None
    """Requests in all; excludes `sessions`. Unit: requests."""
    sessions: Count | None = None
    """Sessions in all, of `turns` requests each; excludes `requests`. Unit: sessions."""
    isl: Distribution
    """Length of a session's first prompt, the shared prefix included. Unit: tokens."""
    osl: Distribution
    """Length of each answer. Unit: tokens."""
    turn_isl: Distribution | None = None
    """New prompt tokens of a later turn; null: as `isl`. Unit: tokens."""
    turns: Distribution | None = None
    """Requests of a session; null: one. Unit: requests."""
    think_time_ms: Distribution | None = None
    """From the end of an answer to the next turn; null: 0."""
    arrival: Literal["poisson", "gamma", "constant", "closed"] = "poisson"
    """How sessions start; `closed`: whenever one ends, `workload.concurrency` at a time."""
    rate_rps: Annotated[float, Field(gt=0)] | None = None
    """Rate of requests, all turns counted."""
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    """Shape of `gamma` arrivals: below 1 they come in bursts. Unit: shape."""
    shared_prefix_ratio: Share = 0.0
    """Part of the first prompt that a prefix group has in common. Unit: share."""
    shared_prefix_tokens: Amount | None = None
    """Tokens that a prefix group has in common, in place of the ratio."""
    prefix_groups: Count = 1
    """Groups of sessions that share a prefix each. Unit: groups."""
    prefix_group_skew: NotNegative = 0.0
    """How unequal the groups are: at 0 equally likely, at 1 by Zipf's law. Unit: exponent."""
    max_context_tokens: Count | None = None
    """A session ends before its context exceeds them; null: never for that reason."""
    block_size: Count = 512
    """Prompt tokens of one prefix hash. Unit: tokens."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        both = self.requests is not None and self.sessions is not None
        neither = self.requests is None and self.sessions is None
        is_closed = self.arrival == "closed"
        both_shares = bool(self.shared_prefix_ratio) and self.shared_prefix_tokens is not None
        check_rules(
            [
                ("sessions", both, "requests and sessions exclude each other", "remove one"),
                ("requests", neither, "neither requests nor sessions is given", "add one of them"),
                ("rate_rps", not is_closed and self.rate_rps is None,
                 f"{self.arrival} arrivals need it", "add `rate_rps: ...`"),
                ("rate_rps", is_closed and self.rate_rps is not None,
                 "a closed loop has no rate", "remove it and set workload.concurrency"),
                ("burstiness", self.arrival != "gamma" and self.burstiness != 1.0,
                 f"{self.arrival} arrivals have no burstiness", "use `arrival: gamma`"),
                ("shared_prefix_tokens", both_shares,
                 "excludes shared_prefix_ratio", "remove one"),
            ]
        )  # fmt: skip
        return self


class WorkloadConfig(Section):
    """What is offered to the cluster."""

    trace: str | None = None
    """Trace file to replay; sought from the current folder, the run file's and its parent."""
    synthetic: SyntheticConfig | None = None
    """A generated load, in place of a trace."""
    format: TraceFormat | None = None
    """Format of the trace; null: by the file's name."""
    trace_block_size: Count = 512
    """Prompt tokens behind one hash id of the trace. Unit: tokens."""
    speedup: Annotated[float, Field(gt=0)] = 1.0
    """Divides arrival times and pauses. Unit: factor."""
    arrival_scale: Annotated[float, Field(gt=0)] = 1.0
    """So many times as many sessions start a second; pauses and lengths stay. Unit: factor."""
    limit: Count | None = None
    """Only the first requests of the trace; null: all. Unit: requests."""
    repeat: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    """How often the workload comes, end to end, each time with other prompts. Unit: times."""
    concurrency: Count | None = None
    """A closed loop: so many requests (sessions, where there are any) in flight; null: requests
    come when the workload says. Unit: requests."""
    skip_bad_lines: bool = False
    """Whether bad lines of a trace are left out and counted, instead of stopping."""
    lengths_from_hash_ids: bool = False
    """Whether prompts without a length fill their blocks; they are counted."""
    sort: bool = False
    """Whether a trace whose times go back is put in order; moved rows are counted."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        closed = self.synthetic is not None and self.synthetic.arrival == "closed"
        check_rules(
            [
                ("trace", self.trace is None and self.synthetic is None,
                 "neither trace nor synthetic is given", "name a trace file"),
                ("trace", self.trace is not None and self.synthetic is not None,
                 "trace and synthetic exclude each other", "set one of them to null"),
                ("format", self.format is not None and self.trace is None,
                 "only a trace has a format", "remove it"),
                ("concurrency", closed and self.concurrency is None,
                 "a closed loop needs it", "add `concurrency: ...`"),
            ]
        )  # fmt: skip
        return self
