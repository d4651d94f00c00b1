"""A workload of agents: their tasks as a trace, with arrivals, names of blocks and priorities.

The same spec and seed give the same trace on every platform; each quantity has its own random
stream. Tasks may be in the middle of their lives when the load begins.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from dynosim.records import FloatArray, IntArray, Trace
from dynosim.workload.agent_tasks import LEAD, Agent, AgentCall, Draws, TaskWriter
from dynosim.workload.agents_spec import AgentsSpec, as_agents_spec
from dynosim.workload.arrivals import draw_arrivals
from dynosim.workload.calls import RecordedCall, trace_of_calls
from dynosim.workload.columns import Awaited
from dynosim.workload.distributions import Resolve
from dynosim.workload.priorities import draw_priorities
from dynosim.workload.prompt_pieces import BlockNames, Prompt, prompt_tokens
from dynosim.workload.retained import Wording
from dynosim.workload.spec import REQUESTS_MAX, check_size
from dynosim.workload.streams import stream
from dynosim.workload.synthetic import HASH_IDS_MAX, NOMINAL_TOKEN_MS

PRIMER = "primer"
"""Class of a call that only puts into the caches what an agent has behind it."""
SPECULATIVE = "speculative_prefill"
PREFETCH = "prefetch"
"""Class of what is sent ahead of an agent's next turn."""


def write_agents(
    spec: object, seed: int, *, resolve: Resolve = Path, wording: Wording | None = None
) -> Trace:
    """The trace that `spec` describes: an `AgentsSpec`, a mapping, or an object like one.

    `wording`: what calls say of their KV blocks; all but a lead's as a sub-agent's.

    Raises: ConfigError for a spec that cannot be drawn; TraceError of an empirical length's file.
    """
    checked = as_agents_spec(spec)
    draws = Draws(checked, seed, resolve)
    writer = TaskWriter(checked, draws)
    tasks = [writer.write(number) for number in range(checked.tasks)]
    return _trace_of_tasks(checked, tasks, draws, seed, wording)


def _trace_of_tasks(
    spec: AgentsSpec,
    tasks: Sequence[Sequence[Agent]],
    draws: Draws,
    seed: int,
    wording: Wording | None,
) -> Trace:
    """The calls of all tasks. Raises: ConfigError if that is too much."""
    total = sum(len(agent.calls) for agents in tasks for agent in agents)
    prompts = [
        prompt_tokens(one) for agents in tasks for agent in agents for call in agent.calls
        for one in _prompts(call)
    ]  # fmt: skip
    check_size("tasks", len(prompts), REQUESTS_MAX, "calls")
    blocks = sum(tokens // spec.block_size + 1 for tokens in prompts)
    check_size("block_size", blocks, HASH_IDS_MAX, "hash ids")
    starts_ms = _starts_ms(spec, total, seed)
    priorities = draw_priorities(spec.priorities, len(tasks), seed)
    names = BlockNames(spec.block_size)
    calls: list[RecordedCall] = []
    for number, agents in enumerate(tasks):
        written = _calls(agents, names, f"t{number}", _hint(spec, tasks))
        if wording is not None:
            _say(agents, written, spec.preamble_tokens + spec.system_tokens, wording)
        if number < spec.snapshot_tasks:
            written = _from_the_middle(written, draws.point("snapshot"), warms_up=spec.warm_up)
        for call in written:
            call.priority = 0 if priorities is None else int(priorities[number])
            if not call.waits:
                call.arrival_ms = float(starts_ms[number])
        calls += written
    return trace_of_calls(calls, block_tokens=spec.block_size, path=f"agents, seed {seed}")


def _starts_ms(spec: AgentsSpec, total: int, seed: int) -> FloatArray:
    """When each task starts, at the rate that makes the rate of calls."""
    return draw_arrivals(
        spec.arrival,
        spec.tasks,
        stream(seed, "arrivals"),
        rate_per_s=(spec.rate_rps or 1.0) * spec.tasks / total,
        burstiness=spec.burstiness,
    )


def _hint(spec: AgentsSpec, tasks: Sequence[Sequence[Agent]]) -> int:
    """What a client takes answers to be long: their mean, and never one's own length."""
    if not spec.hints_output_tokens:
        return 0
    if spec.answer_tokens.mean is not None:
        return max(1, round(spec.answer_tokens.mean))
    answers = [call.output_tokens for agents in tasks for agent in agents for call in agent.calls]
    return max(1, round(float(np.mean(answers))))


def _calls(agents: Sequence[Agent], names: BlockNames, task: str, hint: int) -> list[RecordedCall]:
    """The calls of a task, the first one first."""
    written: dict[int, RecordedCall] = {}
    in_order: list[tuple[AgentCall, RecordedCall]] = []
    ahead: list[RecordedCall] = []
    for agent in agents:
        ids = iter(names.of_thread([one for call in agent.calls for one in _prompts(call)]))
        for call in agent.calls:
            name = f"{task}.{len(written)}"
            recorded = RecordedCall(
                name, 0, prompt_tokens(call.prompt), call.output_tokens, next(ids),
                session=call.session, kind=call.kind, expected_output_tokens=hint,
            )  # fmt: skip
            written[id(call)] = recorded
            in_order.append((call, recorded))
            known, known_ids = call.prompt, recorded.block_ids
            if call.known_next:
                known, known_ids = call.known_next, next(ids)
                ahead.append(_speculative(recorded, known, known_ids))
            if call.prefetch_ms is not None:
                ahead.append(_prefetch(recorded, known, known_ids, call.prefetch_ms))
    for call, recorded in in_order:
        recorded.waits = [
            Awaited(written[id(other)].name, delay_ms, False) for other, delay_ms in call.waits
        ]
    return [*(recorded for _, recorded in in_order), *ahead]


def _prompts(call: AgentCall) -> tuple[Prompt, ...]:
    """A call's, and what is sent ahead of the next one."""
    return (call.prompt, call.known_next) if call.known_next else (call.prompt,)


def _speculative(call: RecordedCall, prompt: Prompt, ids: IntArray) -> RecordedCall:
    """What is sent the moment that a call has ended, so that the next one finds more cached."""
    return RecordedCall(
        f"{call.name}.ahead", 0, prompt_tokens(prompt), 1, ids,
        waits=[Awaited(call.name, 0.0, False)], session=call.session, kind=SPECULATIVE,
        expected_output_tokens=min(1, call.expected_output_tokens), is_speculative=True,
    )  # fmt: skip


def _prefetch(
    call: RecordedCall, prompt: Prompt, ids: Sequence[Hashable] | IntArray, at_ms: float
) -> RecordedCall:
    """What a harness says so long after a call, so that the next one finds its KV on the device."""
    return RecordedCall(
        f"{call.name}.prefetch", 0, prompt_tokens(prompt), 1, ids,
        waits=[Awaited(call.name, at_ms, False)], session=call.session, kind=PREFETCH,
        is_speculative=True, is_prefetch=True,
    )  # fmt: skip


def _say(
    agents: Sequence[Agent], written: Sequence[RecordedCall], system_tokens: int, wording: Wording
) -> None:
    """Let calls say what blocks are worth: those of the agents, one after the other, and then what
    is sent ahead, which speaks as the call that it follows."""
    kinds = [agent.kind for agent in agents for _ in agent.calls]
    by_name = {call.name: kind for kind, call in zip(kinds, written[: len(kinds)], strict=True)}
    for call in written:
        kind = by_name[call.waits[0].request_id if call.is_speculative else call.name]
        call.retention = wording.of(system_tokens, call.input_tokens, is_subagent=kind != LEAD)


# ---- lives that began before -------------------------------------------------------------------


def _from_the_middle(
    calls: list[RecordedCall], point: float, *, warms_up: bool
) -> list[RecordedCall]:
    """What is left of a task at a moment of its life, `point` in [0, 1) of it.

    Calls that began before are left out. The others wait for what is left of what they waited for,
    and for as long as they would have from that moment on. With `warms_up` every agent that goes on
    first sends its last prompt again and wants one token.
    """
    start_ms = _nominal_ms(calls)
    moment_ms = point * max(start_ms.values())
    kept = [call for call in calls if start_ms[call.name] >= moment_ms]
    going = {call.name for call in kept}
    kept = [
        call for call in kept if not call.is_speculative or call.waits[0].request_id in going
    ]  # nothing is sent ahead for what ended before
    names = {call.name for call in kept}
    before = {call.name: call for call in calls if call.name not in names}
    primers: dict[str, RecordedCall] = {}
    first: RecordedCall | None = None
    for call in kept:
        gone = [wait for wait in call.waits if wait.request_id in before]
        call.waits = [wait for wait in call.waits if wait.request_id in names]
        if not gone:
            continue
        later_ms = round(start_ms[call.name] - moment_ms, 3)
        if warms_up:
            for wait in gone:
                primer = primers.setdefault(wait.request_id, _primer(before[wait.request_id]))
                call.waits.append(Awaited(primer.name, later_ms, False))
        elif call.waits:
            continue  # waits for others that go on
        elif first is None:
            first, first_ms = call, later_ms
        else:  # comes by itself, as long after the first one of those that do
            after_ms = round(later_ms - first_ms, 3)
            call.waits.append(Awaited(first.name, max(0.0, after_ms), True))
    return [*primers.values(), *kept]


def _primer(call: RecordedCall) -> RecordedCall:
    return RecordedCall(
        f"{call.name}.primer", 0, call.input_tokens, 1, call.block_ids,
        session=call.session, kind=PRIMER, retention=call.retention,
    )  # fmt: skip


def _nominal_ms(calls: Sequence[RecordedCall]) -> dict[str, float]:
    """When each call would come if answers took `NOMINAL_TOKEN_MS` a token and prompts nothing."""
    by_name = {call.name: call for call in calls}
    found: dict[str, float] = {}
    todo = [call.name for call in reversed(calls)]
    while todo:
        waits = by_name[todo[-1]].waits
        unknown = [wait.request_id for wait in waits if wait.request_id not in found]
        if unknown:
            todo += unknown
            continue
        ends_ms = [
            found[name] + by_name[name].output_tokens * NOMINAL_TOKEN_MS + delay_ms
            for name, delay_ms, _ in waits
        ]
        found[todo.pop()] = max(ends_ms, default=0.0)
    return found
