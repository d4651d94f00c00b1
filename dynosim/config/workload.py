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
    mean: NotNegative | None = None
    std: NotNegative | None = None
    min: NotNegative | None = None
    max: NotNegative | None = None
    trace: str | None = None  # empirical: whose lengths to draw
    format: TraceFormat | None = None  # of that trace; None: by its name

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


Distribution = Annotated[DistributionConfig, BeforeValidator(_distribution)]


class SyntheticConfig(Section):
    """A generated load: `requests` in all, or `sessions` of `turns` requests each."""

    requests: Count | None = None
    sessions: Count | None = None
    isl: Distribution  # tokens of a session's first prompt, the shared prefix included
    osl: Distribution  # tokens of each answer
    turn_isl: Distribution | None = None  # new tokens of a later turn; None: as isl
    turns: Distribution | None = None  # per session; None: one
    think_time_ms: Distribution | None = None  # from an answer's end to the next turn; None: 0
    arrival: Literal["poisson", "gamma", "constant", "closed"] = "poisson"
    rate_rps: Annotated[float, Field(gt=0)] | None = None  # requests/s, all turns counted
    burstiness: Annotated[float, Field(gt=0)] = 1.0  # gamma's shape: below 1 comes in bursts
    shared_prefix_ratio: Share = 0.0  # part of the first prompt that a group has in common
    shared_prefix_tokens: Amount | None = None  # instead of the ratio
    prefix_groups: Count = 1
    prefix_group_skew: NotNegative = 0.0  # 0: groups equally likely; 1: Zipf
    max_context_tokens: Count | None = None  # a session ends before it exceeds them
    block_size: Count = 512  # tokens per prefix hash

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

    trace: str | None = None  # sought from the current folder, the file's, and that one's parent
    synthetic: SyntheticConfig | None = None
    format: TraceFormat | None = None  # None: by the file's name
    trace_block_size: Count = 512  # prompt tokens per hash id
    speedup: Annotated[float, Field(gt=0)] = 1.0  # divides arrival times and pauses
    arrival_scale: Annotated[float, Field(gt=0)] = 1.0  # so many times as many sessions a second
    limit: Count | None = None  # first N requests
    repeat: Annotated[int, Field(ge=1, le=1 << 20)] = 1  # end to end, each time with other prompts
    concurrency: Count | None = None  # closed loop: requests (sessions) in flight
    skip_bad_lines: bool = False  # leave out and count, instead of stopping
    lengths_from_hash_ids: bool = False  # prompts without a length fill their blocks; counted
    sort: bool = False  # allow a trace whose times go back

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
