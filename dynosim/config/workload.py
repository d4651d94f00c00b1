"""The `workload:` section: a trace, a synthetic load, a pool of prompts, or agents at work."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dynosim.blocks.retention import HIGHEST_PRIORITY, RetentionClasses
from dynosim.config.agents import AgentsConfig
from dynosim.config.base import (
    Amount,
    Count,
    NotNegative,
    PositiveMs,
    Rule,
    Section,
    Share,
    check_rules,
)
from dynosim.config.lengths import Distribution, PriorityConfig, TraceFormat

SOURCES = ("trace", "synthetic", "pool", "agents")
"""Where requests come from: one of them."""
STAGES_SAY = ("requests", "sessions", "rate_rps")
"""What load stages say in place of `synthetic`."""
Priority = Annotated[int, Field(ge=0, le=HIGHEST_PRIORITY)]
_CLASSES = RetentionClasses()


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
    priorities: list[PriorityConfig] = Field([])
    """Priority classes of sessions; empty: all alike."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        both = self.requests is not None and self.sessions is not None
        is_closed = self.arrival == "closed"
        both_shares = bool(self.shared_prefix_ratio) and self.shared_prefix_tokens is not None
        check_rules(
            [
                ("sessions", both, "requests and sessions exclude each other", "remove one"),
                ("rate_rps", is_closed and self.rate_rps is not None,
                 "a closed loop has no rate", "remove it and set workload.concurrency"),
                ("burstiness", self.arrival != "gamma" and self.burstiness != 1.0,
                 f"{self.arrival} arrivals have no burstiness", "use `arrival: gamma`"),
                ("shared_prefix_tokens", both_shares,
                 "excludes shared_prefix_ratio", "remove one"),
            ]
        )  # fmt: skip
        return self


class PoolConfig(Section):
    """Prompts that repeat exactly: each is a system prompt and one of the questions behind it."""

    system_prompts: Annotated[int, Field(ge=1, le=1 << 20)]
    """Different system prompts. Unit: prompts."""
    users_per_prompt: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    """Different questions behind each system prompt. Unit: questions."""
    system_tokens: Amount
    """Length of a system prompt. Unit: tokens."""
    question_tokens: Count
    """Length of a question. Unit: tokens."""
    output_tokens: Count
    """Length of each answer. Unit: tokens."""
    order: Literal["round_robin", "random"] = "round_robin"
    """Which prompt is next: each in turn, or any."""
    arrival: Literal["poisson", "gamma", "constant"] = "poisson"
    """How requests come within a stage."""
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    """Shape of `gamma` arrivals: below 1 they come in bursts. Unit: shape."""
    requests: Count | None = None
    """Requests in all, of a closed loop. Unit: requests."""
    block_size: Count = 16
    """Prompt tokens of one prefix hash. Unit: tokens."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_rules(
            [
                ("burstiness", self.arrival != "gamma" and self.burstiness != 1.0,
                 f"{self.arrival} arrivals have no burstiness", "use `arrival: gamma`"),
            ]
        )  # fmt: skip
        return self


class RetentionConfig(Section):
    """What requests say of their KV blocks: at priority 0 they are evicted first, at 100 last."""

    system_priority: Priority = _CLASSES.system_priority
    """Of blocks of the prefix that sessions share, or of a system prompt. Unit: priority."""
    history_priority: Priority = _CLASSES.history_priority
    """Of the rest of a prompt. Unit: priority."""
    history_duration_ms: PositiveMs | None = None
    """How long the rest of a prompt keeps that priority once nobody uses it; null: for good."""
    output_priority: Priority = _CLASSES.output_priority
    """Of what a request generates. Unit: priority."""
    pin_ttl_ms: PositiveMs | None = None
    """How long after its end a request keeps its prompt pinned; null: not at all."""
    pin_ends_with_session: bool = False
    """Whether pins end with their session, if not before."""
    sub_agent_priority: Priority = _CLASSES.subagent_priority
    """Of sub-agents and teammates (`agents`): all but the system prompt. Unit: priority."""
    sub_agent_duration_ms: PositiveMs | None = None
    """How long their prompts keep that priority once nobody uses them; null: for good."""
    sub_agent_pin_ttl_ms: PositiveMs | None = None
    """How long after its end their requests keep their prompts pinned, in place of `pin_ttl_ms`;
    null: not at all."""


class StageConfig(Section):
    """A part of the load: a rate for a time."""

    rate_rps: Annotated[float, Field(gt=0)]
    """Rate of requests, all turns counted."""
    duration_s: Annotated[float, Field(gt=0)]
    """How long requests come at that rate."""
    start_s: NotNegative | None = None
    """When the stage starts, from the first one's start; null: when the one before it ends."""


class WorkloadConfig(Section):
    """What is offered to the cluster."""

    trace: str | None = None
    """Trace file to replay; sought from the current folder, the run file's and its parent."""
    synthetic: SyntheticConfig | None = None
    """A generated load, in place of a trace."""
    pool: PoolConfig | None = None
    """Prompts that repeat exactly, in place of a trace."""
    agents: AgentsConfig | None = None
    """Agents at work, in place of a trace."""
    stages: Annotated[list[StageConfig], Field(min_length=1)] | None = None
    """Rates of a generated load or a pool, one after another; null: as `synthetic` says."""
    retention: RetentionConfig | None = None
    """What requests of `synthetic` or `pool` say of their KV blocks; null: nothing."""
    template_tokens: Amount = 0
    """Tokens that the chat template puts in front of every prompt, the same in all."""
    format: TraceFormat | None = None
    """Format of the trace; null: by the file's first line or name."""
    trace_block_size: Count | None = None
    """Prompt tokens behind one hash id of the trace; null: as the file says, or else 512. Unit:
    tokens."""
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
    sampling: Literal["greedy", "random", "truncated", "model"] = "greedy"
    """How tokens are chosen: the likeliest, at a temperature, so with top-k or top-p (`truncated`),
    or as the model's own generation config says (`model`: requests that state nothing)."""
    client_timeout_ms: PositiveMs | None = None
    """How long after it was sent a client gives up a request that has not ended; null: never."""
    warm_up_requests: Amount = 0
    """How many of the first requests are served and left out of the results. Unit: requests."""
    warm_up_s: NotNegative = 0.0
    """How long after the first request what is sent is served and left out of the results."""
    skip_bad_lines: bool = False
    """Whether bad lines of a trace are left out and counted, instead of stopping."""
    lengths_from_hash_ids: bool = False
    """Whether prompts without a length fill their blocks; they are counted."""
    sort: bool = False
    """Whether a trace whose times go back is put in order; moved rows are counted."""

    @property
    def has_warm_up(self) -> bool:
        """Whether some requests are left out of the results."""
        return bool(self.warm_up_requests or self.warm_up_s)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        generated = self.synthetic or self.agents
        closed = generated is not None and generated.arrival == "closed"
        sources = [key for key in SOURCES if getattr(self, key) is not None]
        more = sources[1] if len(sources) > 1 else sources[0] if sources else ""
        check_rules(
            [
                ("trace", not sources, f"neither {' nor '.join(SOURCES)} is given",
                 "name a trace file"),
                (more, len(sources) > 1, f"{' and '.join(sources)} exclude each other",
                 "keep one of them, set the others to null"),
                ("format", self.format is not None and self.trace is None,
                 "only a trace has a format", "remove it"),
                ("retention", self.retention is not None and self.trace is not None,
                 "rows of a trace say it themselves",
                 "remove it, and give rows `retention`, `pin_ttl_ms` or `ephemeral`"),
                ("retention.pin_ends_with_session", self._pins_nothing(),
                 "nothing is pinned", "add pin_ttl_ms"),
                *((f"retention.{key}", self.agents is None, "only agents have sub-agents",
                   "remove it, or use workload.agents") for key in self._of_sub_agents()),
                ("concurrency", closed and self.concurrency is None,
                 "a closed loop needs it", "add `concurrency: ...`"),
                ("warm_up_s", bool(self.warm_up_s) and bool(self.warm_up_requests),
                 "excludes warm_up_requests", "remove one"),
                *self._amount_rules(),
                *self._stage_rules(),
            ]
        )  # fmt: skip
        return self

    def _pins_nothing(self) -> bool:
        said = self.retention
        if said is None or not said.pin_ends_with_session:
            return False
        return said.pin_ttl_ms is None and said.sub_agent_pin_ttl_ms is None

    def _of_sub_agents(self) -> list[str]:
        """What is stated that sub-agents say."""
        stated = () if self.retention is None else self.retention.model_fields_set
        return sorted(key for key in stated if key.startswith("sub_agent_"))

    def _amount_rules(self) -> list[Rule]:
        """How much comes, and how fast, is said once: by the source or by the stages."""
        synthetic, pool, is_staged = self.synthetic, self.pool, self.stages is not None
        says, rules = "the load stages say it", list[Rule]()
        if synthetic is not None:
            neither = synthetic.requests is None and synthetic.sessions is None
            is_paced = synthetic.rate_rps is not None or synthetic.arrival == "closed"
            rules += [
                ("synthetic.requests", neither and not is_staged,
                 "neither requests nor sessions is given", "add one of them, or `stages`"),
                ("synthetic.rate_rps", not is_paced and not is_staged,
                 f"{synthetic.arrival} arrivals need it", "add `rate_rps: ...`, or `stages`"),
                *((f"synthetic.{key}", is_staged and getattr(synthetic, key) is not None,
                   says, "remove it, or the stages") for key in STAGES_SAY),
                ("synthetic.arrival", is_staged and synthetic.arrival == "closed",
                 "a closed loop has no load stages", "use poisson, or remove the stages"),
            ]  # fmt: skip
        agents = self.agents
        if agents is not None:
            is_paced = agents.rate_rps is not None or agents.arrival == "closed"
            rules += [
                ("agents.rate_rps", not is_paced, f"{agents.arrival} arrivals need it",
                 "add `rate_rps: ...`, or `arrival: closed`"),
                ("stages", is_staged, "agents work as long as their tasks take",
                 "remove them, or use synthetic"),
            ]  # fmt: skip
        if pool is not None:
            is_closed = self.concurrency is not None
            rules += [
                ("stages", not is_staged and not is_closed, "a pool needs them",
                 "add `stages: [{rate_rps: ..., duration_s: ...}]`, or a `concurrency`"),
                ("pool.requests", is_staged and pool.requests is not None, says, "remove it"),
                ("pool.requests", is_closed and pool.requests is None,
                 "a closed loop needs it", "add `requests: ...`"),
            ]  # fmt: skip
        return rules

    def _stage_rules(self) -> list[Rule]:
        if self.stages is None:
            return []
        rules: list[Rule] = [
            ("stages", self.trace is not None, "a trace has arrivals of its own",
             "remove them, or use synthetic or pool"),
            ("stages", self.concurrency is not None, "a closed loop has no load stages",
             "remove one of them"),
            ("repeat", self.repeat != 1, "load stages come once",
             "remove it, or list the stages again"),
            ("stages.0.start_s", bool(self.stages[0].start_s),
             "the first stage starts at 0", "remove it"),
        ]  # fmt: skip
        end_s = 0.0
        for place, stage in enumerate(self.stages):
            start_s = end_s if stage.start_s is None else stage.start_s
            rules.append(
                (f"stages.{place}.start_s", start_s < end_s,
                 f"starts at {start_s:g} s, before stage {place - 1} ends at {end_s:g} s",
                 "stages follow each other: leave it out, or raise it")
            )  # fmt: skip
            end_s = start_s + stage.duration_s
        return rules
