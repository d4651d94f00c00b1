"""The `workload.agents:` section: tasks of a lead agent, its sub-agents and its team."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dynosim.config.base import Amount, Count, Section, Share, check_rules
from dynosim.config.lengths import Distribution, DistributionConfig, PriorityConfig
from dynosim.workload.agents_spec import LEAD_MS_MAX, AgentsSpec
from dynosim.workload.distributions import Distribution as Drawn

_SPEC = AgentsSpec(tasks=1)


def _default(drawn: Drawn) -> DistributionConfig:
    """Made without checks, as those would be built for every command that reads a file."""
    bounds = {name: getattr(drawn, name) for name in ("mean", "std", "min", "max")}
    given: dict[str, Any] = {name: float(value) for name, value in bounds.items() if value}
    return DistributionConfig.model_construct(None, dist=drawn.dist, **given)


class AgentsConfig(Section):
    """Agents at work: each task is a tree of calls, of a lead, its sub-agents and its team."""

    tasks: Count
    """Tasks in all. Unit: tasks."""
    arrival: Literal["poisson", "gamma", "constant", "closed"] = "poisson"
    """How tasks start; `closed`: whenever one is over, `workload.concurrency` at a time."""
    rate_rps: Annotated[float, Field(gt=0)] | None = None
    """Rate of calls in the long run, all calls of a task counted."""
    burstiness: Annotated[float, Field(gt=0)] = _SPEC.burstiness
    """Shape of `gamma` arrivals: below 1 they come in bursts. Unit: shape."""
    block_size: Count = _SPEC.block_size
    """Prompt tokens of one prefix hash. Unit: tokens."""
    system_tokens: Amount = _SPEC.system_tokens
    """System prompt and tools that every prompt begins with."""
    sub_agent_shared_tokens: Amount | None = _SPEC.sub_agent_shared_tokens
    """What of them sub-agents have in common with leads; null: all."""
    teammate_shared_tokens: Amount | None = _SPEC.teammate_shared_tokens
    """What of them teammates have in common with leads; null: all."""
    unstable_preamble_tokens: Amount = _SPEC.unstable_preamble_tokens
    """Tokens in front of all others that are not always the same."""
    preamble_varies: Literal["session", "call"] = "session"
    """Whether the preamble is another one in every session, or in every call."""
    strip_preamble: bool = _SPEC.strip_preamble
    """Whether the preamble is cut off before the prompt reaches an engine."""
    user_tokens: Distribution = _default(_SPEC.user_tokens)
    """What a user says to the lead, at first and after a loop of tool calls. Unit: tokens."""
    brief_tokens: Distribution = _default(_SPEC.brief_tokens)
    """What a lead tells a sub-agent or teammate that it starts. Unit: tokens."""
    tool_output_tokens: Distribution = _default(_SPEC.tool_output_tokens)
    """What a tool puts out, before it is cut. Unit: tokens."""
    tool_output_limit: Count | None = _SPEC.tool_output_limit
    """What of a tool's output is left at most, in `tool_output_limit_unit`; null: all. Unit: its
    own."""
    tool_output_limit_unit: Literal["tokens", "bytes"] = "tokens"
    """What the limit counts; four bytes are taken to be a token."""
    answer_tokens: Distribution = _default(_SPEC.answer_tokens)
    """Length of each answer, thinking included. Unit: tokens."""
    thinking_share: Share = _SPEC.thinking_share
    """Part of an answer that is thinking. Unit: share."""
    history_policy: Literal["keep", "drop_thinking", "regroup"] = "keep"
    """What becomes of the thinking of a loop of tool calls when it is over: it stays, is dropped,
    or is rendered in front of the loop's calls."""
    answer_rendered_ratio: Annotated[float, Field(ge=0, le=10)] = _SPEC.answer_rendered_ratio
    """Tokens that the rest of an answer has in the next prompt, for one that was produced. Unit:
    factor."""
    lead_turns: Distribution = _default(_SPEC.lead_turns)
    """Turns of a lead. Unit: calls."""
    loop_turns: Distribution = _default(_SPEC.loop_turns)
    """Turns of a lead until its user speaks again. Unit: calls."""
    sub_agent_share: Share = _SPEC.sub_agent_share
    """Part of a lead's turns that start sub-agents. Unit: share."""
    sub_agents_at_once: Distribution = _default(_SPEC.sub_agents_at_once)
    """Sub-agents that such a turn starts. Unit: agents."""
    sub_agent_turns: Distribution = _default(_SPEC.sub_agent_turns)
    """Turns of a sub-agent. Unit: calls."""
    sub_agents_share_session: bool = _SPEC.sub_agents_share_session
    """Whether sub-agents' calls are of their lead's session, as a router with affinity sees it."""
    team_share: Share = _SPEC.team_share
    """Part of the tasks that have a team, started by one of the lead's turns. Unit: share."""
    team_size: Count = _SPEC.team_size
    """Agents of a team. Unit: agents."""
    teammate_turns: Distribution = _default(_SPEC.teammate_turns)
    """Turns of a teammate. Unit: calls."""
    tool_pause_ms: Distribution = _default(_SPEC.tool_pause_ms)
    """From an answer that calls a tool to the next turn."""
    user_pause_ms: Distribution = _default(_SPEC.user_pause_ms)
    """From the end of a loop of tool calls to what the user says next."""
    compact_at_tokens: Count | None = _SPEC.compact_at_tokens
    """A context that grows longer is summed up; null: never."""
    compact_to_tokens: Count = _SPEC.compact_to_tokens
    """How long it is then, system prompt and tools included."""
    priorities: list[PriorityConfig] = Field([])
    """Priority classes of tasks; empty: all alike."""
    hints_output_tokens: bool = _SPEC.hints_output_tokens
    """Whether clients tell the router how long they expect answers to be: the mean."""
    speculative_prefill: bool = _SPEC.speculative_prefill
    """Whether, once a turn has ended, the conversation with its answer is sent for one token, so
    that the next turn finds it cached. No client's request: it takes the engines' time, and counts
    in `speculative_*` of the report alone."""
    prefetch_lead_ms: Annotated[float, Field(ge=0, le=LEAD_MS_MAX)] | None = _SPEC.prefetch_lead_ms
    """So long before an agent is back from a tool, what tiers below the devices hold of its last
    prompt is loaded to a device; null: never. No client's request: it counts in `prefetch*` of the
    report alone. Needs `cluster.tiers`."""
    prefetch_error: Share = _SPEC.prefetch_error
    """By up to this part of it a tool's pause is foreseen too long or too short. Unit: share."""
    snapshot_tasks: Amount = _SPEC.snapshot_tasks
    """So many of the first tasks start in the middle of their lives. Unit: tasks."""
    warm_up: bool = _SPEC.warm_up
    """Whether the agents of such tasks first send their last prompt for one token (class
    `primer`)."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        start = self.system_tokens + self.unstable_preamble_tokens
        limit = self.compact_at_tokens
        is_wrong = limit is not None and not start < self.compact_to_tokens < limit
        more = [key for key in ("sub_agent_shared_tokens", "teammate_shared_tokens")
                if (getattr(self, key) or 0) > self.system_tokens]  # fmt: skip
        check_rules(
            [
                ("rate_rps", self.arrival == "closed" and self.rate_rps is not None,
                 "a closed loop has no rate", "remove it and set workload.concurrency"),
                ("burstiness", self.arrival != "gamma" and self.burstiness != 1.0,
                 f"{self.arrival} arrivals have no burstiness", "use `arrival: gamma`"),
                ("compact_to_tokens", is_wrong,
                 f"does not lie between what prompts begin with ({start} tokens) and "
                 f"compact_at_tokens ({limit})", "change one of them"),
                *((key, True, f"is more than system_tokens ({self.system_tokens})", "lower it")
                  for key in more),
                ("prefetch_error", bool(self.prefetch_error) and self.prefetch_lead_ms is None,
                 "nothing is foreseen", "set prefetch_lead_ms"),
                ("warm_up", self.warm_up and not self.snapshot_tasks,
                 "only tasks in the middle of their lives need it", "set snapshot_tasks"),
            ]
        )  # fmt: skip
        return self
