"""The description of agents at work and what it must obey.

Defaults follow what is published of coding agents where something is: a system prompt with tools of
about 32K tokens, a lead of 20 and more turns, sub-agents of 1 to 3, teams of 4, pauses of 2 to 30 s
for tools, contexts cut from about 175K to 40K tokens, 40 % of the answers thinking, tool outputs of
at most 10,000 tokens. The others are ours, chosen so that all but first calls find 85 to 97 % of
their prompts cached.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final

from dynosim.errors import ConfigError
from dynosim.workload.arrivals import check_arrivals
from dynosim.workload.distributions import Distribution, as_distribution
from dynosim.workload.priorities import PriorityShare, check_priorities

POLICIES: Final = ("keep", "drop_thinking", "regroup")
BYTES_PER_TOKEN = 4
"""Of tool outputs, mostly ASCII: what a limit in bytes comes to."""
TASKS_MAX = 1_000_000
LEAD_MS_MAX = 3_600_000.0
"""Of prefetches: an hour, more than any tool takes here."""

_TOKENS = (
    "user_tokens", "tool_output_tokens", "answer_tokens", "brief_tokens", "loop_turns",
    "lead_turns", "sub_agents_at_once", "sub_agent_turns", "teammate_turns",
)  # fmt: skip
_TIMES = ("tool_pause_ms", "user_pause_ms")


def _lognormal(
    mean: float, std: float, *, least: float | None = None, most: float | None = None
) -> Distribution:
    return Distribution(dist="lognormal", mean=mean, std=std, min=least, max=most)


def _geometric(mean: float, most: float | None = None) -> Distribution:
    return Distribution(dist="geometric", mean=mean, max=most)


_USER = _lognormal(600, 800)
_BRIEF = _lognormal(2000, 1500)
_TOOL_OUTPUT = _lognormal(5000, 8000)
_ANSWER = _lognormal(700, 600, most=8192)
_LEAD_TURNS = _lognormal(32, 12, least=20)
_LOOP_TURNS = _geometric(6)
_AT_ONCE = _geometric(1.5, 4)
_SUB_AGENT_TURNS = _geometric(2, 3)
_TEAMMATE_TURNS = Distribution(dist="normal", mean=7, std=2, min=3)
_TOOL_PAUSE = _lognormal(8000, 6000, least=2000, most=30_000)
_USER_PAUSE = _lognormal(30_000, 30_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsSpec:
    """Tasks of a lead agent, its sub-agents and its team. Lengths in tokens, times in ms."""

    tasks: int
    arrival: str = "poisson"  # of tasks: poisson, gamma, constant, closed (all at 0)
    rate_rps: float | None = None  # calls/s in the long run, all of a task counted
    burstiness: float = 1.0
    block_size: int = 64  # prompt tokens behind one hash id

    # What prompts begin with.
    system_tokens: int = 32_768  # system prompt and tools, of every agent
    sub_agent_shared_tokens: int | None = None  # of them, as the lead's; None: all
    teammate_shared_tokens: int | None = None
    unstable_preamble_tokens: int = 0  # in front of all, other ones each time
    preamble_varies: str = "session"  # session or call
    strip_preamble: bool = False  # whoever takes requests cuts it off

    # What a turn adds.
    user_tokens: Distribution = _USER
    brief_tokens: Distribution = _BRIEF  # what a lead tells those it starts
    tool_output_tokens: Distribution = _TOOL_OUTPUT
    tool_output_limit: int | None = 10_000
    tool_output_limit_unit: str = "tokens"  # tokens or bytes
    answer_tokens: Distribution = _ANSWER
    thinking_share: float = 0.4
    history_policy: str = "keep"
    answer_rendered_ratio: float = 1.0  # tokens in the next prompt for one of an answer's text

    # How long agents work.
    lead_turns: Distribution = _LEAD_TURNS
    loop_turns: Distribution = _LOOP_TURNS  # until the user speaks
    sub_agent_share: float = 0.2  # of a lead's turns that start some
    sub_agents_at_once: Distribution = _AT_ONCE
    sub_agent_turns: Distribution = _SUB_AGENT_TURNS
    sub_agents_share_session: bool = True  # their calls are of their lead's session
    team_share: float = 0.5  # of tasks that have a team
    team_size: int = 4
    teammate_turns: Distribution = _TEAMMATE_TURNS
    tool_pause_ms: Distribution = _TOOL_PAUSE
    user_pause_ms: Distribution = _USER_PAUSE
    compact_at_tokens: int | None = 175_000
    compact_to_tokens: int = 40_000

    # What clients say, and how the load begins.
    priorities: tuple[PriorityShare, ...] = ()  # of tasks
    hints_output_tokens: bool = False  # the mean answer, as a client's guess
    speculative_prefill: bool = False  # what is known of the next prompt is computed in pauses
    prefetch_lead_ms: float | None = None  # before a tool is back, KV is loaded; None: never
    prefetch_error: float = 0.0  # of the foreseen pause, up to this share of it
    snapshot_tasks: int = 0  # of the first, which start in the middle of their lives
    warm_up: bool = False  # calls of one token in front, with the prompts of where they are

    @property
    def preamble_tokens(self) -> int:
        """What reaches the engine of the preamble."""
        return 0 if self.strip_preamble else self.unstable_preamble_tokens

    @property
    def tool_output_tokens_max(self) -> int | None:
        """What is left of the longest tool output."""
        if self.tool_output_limit is None or self.tool_output_limit_unit == "tokens":
            return self.tool_output_limit
        return max(1, self.tool_output_limit // BYTES_PER_TOKEN)

    def check(self) -> None:
        """Raises: ConfigError naming the key whose value cannot be used."""
        for key in ("tasks", "block_size", "team_size"):
            _require(key, getattr(self, key), least=1)
        _require("tasks", self.tasks, most=TASKS_MAX)
        for key in ("system_tokens", "unstable_preamble_tokens", "snapshot_tasks"):
            _require(key, getattr(self, key), least=0)
        for key in ("sub_agent_shared_tokens", "teammate_shared_tokens"):
            _require(key, getattr(self, key), least=0, most=self.system_tokens)
        for key in ("thinking_share", "sub_agent_share", "team_share", "prefetch_error"):
            _require(key, getattr(self, key), least=0, most=1)
        _require("answer_rendered_ratio", self.answer_rendered_ratio, least=0, most=10)
        _require("prefetch_lead_ms", self.prefetch_lead_ms, least=0, most=LEAD_MS_MAX)
        if self.prefetch_error and self.prefetch_lead_ms is None:
            raise ConfigError("prefetch_error: nothing is foreseen: set prefetch_lead_ms")
        _require("tool_output_limit", self.tool_output_limit, least=1)
        _one_of("history_policy", self.history_policy, POLICIES)
        _one_of("preamble_varies", self.preamble_varies, ("session", "call"))
        _one_of("tool_output_limit_unit", self.tool_output_limit_unit, ("tokens", "bytes"))
        for key in _TOKENS:
            getattr(self, key).check(key, least=1.0)
        for key in _TIMES:
            getattr(self, key).check(key, least=0.0)
        check_arrivals(self.arrival, rate_rps=self.rate_rps, burstiness=self.burstiness)
        check_priorities(self.priorities)
        self._check_contexts()

    def _check_contexts(self) -> None:
        if self.warm_up and not self.snapshot_tasks:
            raise ConfigError("warm_up: only tasks in the middle of their lives need it: set "
                              "snapshot_tasks, or remove it")  # fmt: skip
        if self.compact_at_tokens is None:
            return
        start = self.system_tokens + self.preamble_tokens
        if not start < self.compact_to_tokens < self.compact_at_tokens:
            raise ConfigError(
                f"compact_to_tokens: {self.compact_to_tokens} does not lie between what every "
                f"prompt begins with ({start}) and compact_at_tokens ({self.compact_at_tokens})"
            )


def as_agents_spec(value: object) -> AgentsSpec:
    """A checked spec from a mapping or from any object with the spec's fields as attributes.

    In an object attributes that are absent mean the default. Raises: ConfigError.
    """
    if isinstance(value, AgentsSpec):
        value.check()
        return value
    names = [field.name for field in fields(AgentsSpec)]
    if isinstance(value, Mapping):
        given: dict[str, Any] = dict(value)
        check_agents_keys(given)
    else:
        given = {name: getattr(value, name) for name in names if hasattr(value, name)}
    if given.get("tasks") is None:
        raise ConfigError("tasks: missing: how many tasks agents work on")
    for key in (*_TOKENS, *_TIMES):
        if key in given:
            given[key] = as_distribution(given[key], key)
    shares = enumerate(given.get("priorities") or ())
    given["priorities"] = tuple(PriorityShare.of(one, f"priorities[{at}]") for at, one in shares)
    spec = AgentsSpec(**given)
    spec.check()
    return spec


def check_agents_keys(given: Mapping[str, Any]) -> None:
    """Raises: ConfigError for a key that agents do not have."""
    names = [field.name for field in fields(AgentsSpec)]
    for key in given:
        if key not in names:
            close = get_close_matches(str(key), names, 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
            raise ConfigError(f"{key}: unknown key of agents, {hint}")


def _require(
    key: str, value: float | None, *, least: float | None = None, most: float | None = None
) -> None:
    if value is None:
        return
    if least is not None and not value >= least:
        raise ConfigError(f"{key}: expected at least {least:g}, got {value:g}")
    if most is not None and not value <= most:
        raise ConfigError(f"{key}: expected at most {most:g}, got {value:g}")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{key}: expected one of {', '.join(known)}, got {value!r}")
