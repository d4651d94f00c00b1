"""Agents at work: tasks of a lead that calls tools and starts sub-agents and a team.

A task is a tree of calls. The lead's turns follow each other after the pauses of its tools and,
when a loop of tool calls is over, of its user. A turn may start sub-agents (or once the team); the
next turn waits for all of them and has what they report for a tool output. Every prompt is rendered
anew from its agent's history: it begins with the system prompt and the tools, and what the
rendering leaves as it was is shared with the prompt before. A history that has become too long is
summed up. A history policy may change what is old:

* `keep`: thinking stays where it was.
* `drop_thinking`: when a loop of tool calls is over its thinking is dropped, so that all that
  follows moves.
* `regroup`: then its thinking is rendered in front of its calls: the same tokens in another order.

Answers themselves are never taken to be cached: an engine has computed their tokens behind another
prompt's end, and whether they come back unchanged is the renderer's matter.

The same spec and seed give the same trace on every platform; each quantity has its own stream.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dynosim.workload.agents_spec import AgentsSpec
from dynosim.workload.distributions import Distribution, Resolve, draw_ms, draw_tokens
from dynosim.workload.prompt_pieces import Piece, Prompt, prompt_tokens
from dynosim.workload.streams import stream

if TYPE_CHECKING:
    from numpy.random import Generator

LEAD: Final = "lead"
SUB_AGENT: Final = "sub_agent"
TEAMMATE: Final = "teammate"
COMPACTION_ORDER_TOKENS = 200
"""What a lead is told when it is to sum up what it did (ours)."""
_AT_ONCE = 64
"""How many numbers of a quantity are drawn together."""


@dataclass(slots=True, eq=False)
class AgentCall:
    """One call of an agent: its prompt, its answer, and what it waits for."""

    prompt: Prompt
    output_tokens: int
    kind: str
    session: str
    waits: list[tuple["AgentCall", float]] = field(default_factory=list)  # ends, and ms behind
    known_next: Prompt = ()  # once it has ended: what the agent's next prompt begins with; (): none
    prefetch_ms: float | None = None  # so long after its end its KV is wanted; None: nobody says


@dataclass(slots=True)
class Agent:
    """Calls that each go on from the one before."""

    kind: str
    session: str
    calls: list[AgentCall] = field(default_factory=list)


class Draws:
    """Random numbers, one stream for each quantity, so that none shifts another."""

    def __init__(self, spec: AgentsSpec, seed: int, resolve: Resolve = Path) -> None:
        self._spec, self._seed, self._resolve = spec, seed, resolve
        self._rngs: dict[str, Generator] = {}
        self._drawn: dict[str, list[float]] = {}

    def tokens(self, key: str) -> int:
        """A length or a count, of the distribution of that key."""
        return int(self._next(key, self._tokens))

    def ms(self, key: str) -> float:
        """A pause."""
        return self._next(key, self._ms)

    def chance(self, key: str) -> bool:
        """Whether it happens, at the share of that key."""
        share: float = getattr(self._spec, key)
        return self._next(key, self._points) < share

    def point(self, key: str) -> float:
        """A number in [0, 1)."""
        return self._next(key, self._points)

    def _next(self, key: str, draw: Callable[[str], list[float]]) -> float:
        drawn = self._drawn.get(key)
        if not drawn:
            drawn = self._drawn[key] = draw(key)[::-1]
        return drawn.pop()

    def _rng(self, key: str) -> "Generator":
        if key not in self._rngs:
            self._rngs[key] = stream(self._seed, f"agents {key}")
        return self._rngs[key]

    def _tokens(self, key: str) -> list[float]:
        found: Distribution = getattr(self._spec, key)
        column = "output_tokens" if key == "answer_tokens" else "input_tokens"
        rng, resolve = self._rng(key), self._resolve
        drawn = draw_tokens(found, _AT_ONCE, rng, key=key, column=column, resolve=resolve)
        return [float(number) for number in drawn]

    def _ms(self, key: str) -> list[float]:
        drawn: list[float] = draw_ms(
            getattr(self._spec, key), _AT_ONCE, self._rng(key), key=key
        ).tolist()
        return drawn

    def _points(self, key: str) -> list[float]:
        points: list[float] = self._rng(key).random(_AT_ONCE).tolist()
        return points


class Texts:
    """Numbers of texts: the common ones are the same in all tasks."""

    def __init__(self) -> None:
        self._common: dict[tuple[str, int], int] = {}
        self._count = 0

    def new(self) -> int:
        """The number of a text that nobody else has."""
        self._count += 1
        return self._count

    def common(self, kind: str, number: int = 0) -> int:
        """The number of a text that all agents of a kind have."""
        known = self._common.get((kind, number))
        if known is None:
            known = self._common[kind, number] = self.new()
        return known


class History:
    """What an agent's next prompt consists of, behind its beginning."""

    def __init__(self, spec: AgentsSpec, texts: Texts) -> None:
        self._spec, self._texts = spec, texts
        self._settled: list[Piece] = []  # of loops that are over
        self._open: list[tuple[Piece, bool]] = []  # of this loop; whether it is thinking

    def pieces(self) -> tuple[Piece, ...]:
        """All of it."""
        return (*self._settled, *(piece for piece, _ in self._open))

    def add(self, tokens: int) -> None:
        """A new text: what a user says, a tool puts out, others report."""
        self._open.append(((self._texts.new(), tokens), False))

    def answer(self, thinking_tokens: int, text_tokens: int) -> None:
        """An answer as it is rendered while its loop goes on."""
        if thinking_tokens:
            self._open.append(((self._texts.new(), thinking_tokens), True))
        rendered = round(text_tokens * self._spec.answer_rendered_ratio)
        if rendered:
            self._open.append(((self._texts.new(), rendered), False))

    def end_loop(self) -> None:
        """The loop of tool calls is over: its thinking becomes what the policy makes of it."""
        thinking = [piece for piece, is_thinking in self._open if is_thinking]
        others = [piece for piece, is_thinking in self._open if not is_thinking]
        policy = self._spec.history_policy
        if policy == "keep":
            self._settled += [piece for piece, _ in self._open]
        elif policy == "drop_thinking":
            self._settled += others
        else:
            self._settled += [*others[:1], *thinking, *others[1:]]
        self._open = []

    def compact(self, summary_tokens: int) -> None:
        """A summary takes the place of everything."""
        self._settled, self._open = [(self._texts.new(), summary_tokens)], []


class TaskWriter:
    """Writes the calls of tasks, one after the other."""

    def __init__(self, spec: AgentsSpec, draws: Draws) -> None:
        self._spec, self._draws = spec, draws
        self._texts = Texts()
        self._agents: list[Agent] = []

    def write(self, number: int) -> list[Agent]:
        """The agents of a task with their calls, the lead first."""
        self._agents = []
        turns = self._draws.tokens("lead_turns")
        team_turn = None
        if self._draws.chance("team_share"):
            team_turn = int(self._draws.point("team_turn") * max(turns - 1, 1))
        self._lead(f"t{number}", turns, team_turn)
        return self._agents

    # ---- agents --------------------------------------------------------------------------------

    def _lead(self, session: str, turns: int, team_turn: int | None) -> None:
        spec, draws = self._spec, self._draws
        agent = self._agent(LEAD, session)
        base = self._base(agent, spec.system_tokens, 0)
        history = History(spec, self._texts)
        history.add(draws.tokens("user_tokens"))
        waits: list[tuple[AgentCall, float]] = []
        left_of_loop = draws.tokens("loop_turns")
        for turn in range(turns):
            call = self._call(agent, base, history, waits)
            if turn == turns - 1:
                return
            thinking, text = self._parts(call.output_tokens)
            self._answered(call, history, thinking, text)
            left_of_loop -= 1
            waits, reports = self._started(agent, call, has_team=turn == team_turn)
            if reports:
                for tokens in reports:
                    history.add(tokens)
            elif left_of_loop > 0:
                history.add(self._tool_output())
                waits = [(call, self._tool_pause_ms(call))]
            else:
                history.end_loop()
                history.add(draws.tokens("user_tokens"))
                waits = [(call, draws.ms("user_pause_ms"))]
                left_of_loop = draws.tokens("loop_turns")
            waits = self._compacted(agent, base, history, waits)

    def _started(
        self, lead: Agent, call: AgentCall, *, has_team: bool
    ) -> tuple[list[tuple[AgentCall, float]], list[int]]:
        """What a lead's next turn waits for if this one starts others, and what they report."""
        spec, draws = self._spec, self._draws
        others: list[Agent] = []
        if has_team:
            others = [self._worker(TEAMMATE, lead, call, place) for place in range(spec.team_size)]
        elif draws.chance("sub_agent_share"):
            count = draws.tokens("sub_agents_at_once")
            others = [self._worker(SUB_AGENT, lead, call, 0) for _ in range(count)]
        if not others:
            return [], []
        last = [agent.calls[-1] for agent in others]
        reports = [max(1, self._parts(one.output_tokens)[1]) for one in last]
        return [(call, 0.0), *((one, 0.0) for one in last)], reports

    def _worker(self, kind: str, lead: Agent, spawner: AgentCall, role: int) -> Agent:
        """A sub-agent or a teammate, from its brief to its report."""
        spec, draws = self._spec, self._draws
        shares_session = kind == SUB_AGENT and spec.sub_agents_share_session
        number = len(self._agents)
        agent = self._agent(kind, lead.session if shares_session else f"{lead.session}/{number}")
        is_team = kind == TEAMMATE
        shared = spec.teammate_shared_tokens if is_team else spec.sub_agent_shared_tokens
        base = self._base(agent, spec.system_tokens if shared is None else shared, role)
        history = History(spec, self._texts)
        history.add(draws.tokens("brief_tokens"))
        waits = [(spawner, 0.0)]
        turns = draws.tokens("teammate_turns" if is_team else "sub_agent_turns")
        for turn in range(turns):
            call = self._call(agent, base, history, waits)
            if turn < turns - 1:
                self._answered(call, history, *self._parts(call.output_tokens))
                history.add(self._tool_output())
                waits = [(call, self._tool_pause_ms(call))]
                waits = self._compacted(agent, base, history, waits)
        return agent

    # ---- calls ---------------------------------------------------------------------------------

    def _agent(self, kind: str, session: str) -> Agent:
        agent = Agent(kind, session)
        self._agents.append(agent)
        return agent

    def _base(self, agent: Agent, shared_tokens: int, role: int) -> Prompt:
        """What all prompts of an agent begin with: system prompt and tools, partly its kind's."""
        spec = self._spec
        pieces: list[Piece] = []
        if spec.preamble_tokens:
            preamble = self._texts.common(f"preamble {agent.session}")
            pieces.append((preamble, spec.preamble_tokens))
        own_tokens = spec.system_tokens - shared_tokens
        if shared_tokens:
            pieces.append((self._texts.common(LEAD), shared_tokens))
        if own_tokens:
            pieces.append((self._texts.common(agent.kind, role + 1), own_tokens))
        return tuple(pieces)

    def _call(
        self,
        agent: Agent,
        base: Prompt,
        history: History,
        waits: list[tuple[AgentCall, float]],
        output_tokens: int | None = None,
    ) -> AgentCall:
        if self._spec.preamble_tokens and self._spec.preamble_varies == "call":
            base = ((self._texts.new(), base[0][1]), *base[1:])
        if output_tokens is None:
            output_tokens = self._draws.tokens("answer_tokens")
        prompt = (*base, *history.pieces())
        call = AgentCall(prompt, output_tokens, agent.kind, agent.session, waits)
        agent.calls.append(call)
        return call

    def _answered(self, call: AgentCall, history: History, thinking: int, text: int) -> None:
        """A call that the agent goes on from has ended: its answer is rendered behind its prompt.

        Whether a loop of tool calls is over with it is seen when the user speaks.
        """
        before = len(history.pieces())
        history.answer(thinking, text)
        if self._spec.speculative_prefill:
            call.known_next = (*call.prompt, *history.pieces()[before:])

    def _compacted(
        self, agent: Agent, base: Prompt, history: History, waits: list[tuple[AgentCall, float]]
    ) -> list[tuple[AgentCall, float]]:
        """What the next call waits for: a call that sums up, where the context has become too long.

        It comes when the next call would, with all that is there, and its answer is what is left.
        """
        spec = self._spec
        limit = spec.compact_at_tokens
        tokens = prompt_tokens(base) + prompt_tokens(history.pieces())
        if limit is None or tokens <= limit:
            return waits
        history.add(COMPACTION_ORDER_TOKENS)
        summary = spec.compact_to_tokens - prompt_tokens(base)
        call = self._call(agent, base, history, waits, summary)
        history.compact(summary)
        return [(call, 0.0)]

    def _parts(self, output_tokens: int) -> tuple[int, int]:
        """How many tokens of an answer are thinking, and how many are not."""
        thinking = round(output_tokens * self._spec.thinking_share)
        return thinking, output_tokens - thinking

    def _tool_pause_ms(self, call: AgentCall) -> float:
        """How long a call's tool takes. Its harness may say ahead when it takes it to be back; one
        that is back before then needs no such word any more."""
        spec, draws = self._spec, self._draws
        pause_ms = draws.ms("tool_pause_ms")
        if spec.prefetch_lead_ms is not None:
            error = spec.prefetch_error * (2.0 * draws.point("prefetch_error") - 1.0)
            at_ms = max(0.0, pause_ms * (1.0 + error) - spec.prefetch_lead_ms)
            if at_ms < pause_ms:
                call.prefetch_ms = at_ms
        return pause_ms

    def _tool_output(self) -> int:
        tokens, most = self._draws.tokens("tool_output_tokens"), self._spec.tool_output_tokens_max
        return tokens if most is None else min(tokens, most)
