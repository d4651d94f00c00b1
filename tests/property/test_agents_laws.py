"""Laws of generated agents: blocks are named by their tokens, seeds decide everything."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.records import NO_REQUEST, Trace
from dynosim.workload.agents import write_agents
from dynosim.workload.prompt_pieces import BlockNames, Prompt

SEEDS = st.integers(0, 2**32 - 1)


def tokens_of(prompt: Prompt) -> list[tuple[int, int]]:
    return [(text, place) for text, tokens in prompt for place in range(tokens)]


def random_threads(rng: random.Random) -> list[list[Prompt]]:
    """Prompts that grow, lose their middle, or start anew."""
    threads = []
    for _ in range(rng.randint(1, 4)):
        prompt: tuple[tuple[int, int], ...] = ((rng.randint(0, 1), rng.randint(1, 9)),)
        thread = []
        for _ in range(rng.randint(1, 6)):
            thread.append(prompt)
            if len(prompt) > 2 and rng.random() < 0.3:
                prompt = (*prompt[:1], *prompt[2:])
            piece = (rng.randint(2, 5), rng.randint(1, 9))
            prompt = (*prompt, piece)
        threads.append(thread)
    return threads


@given(SEEDS, st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_prompts_share_ids_as_far_as_they_share_tokens(seed: int, block: int) -> None:
    names = BlockNames(block)
    found = [
        (tokens_of(prompt), ids.tolist())
        for thread in random_threads(random.Random(seed))
        for prompt, ids in zip(thread, names.of_thread(thread), strict=True)
    ]
    for tokens, ids in found:
        assert len(ids) == -(-len(tokens) // block)
    for one, own in found:
        for other, theirs in found:
            for depth in range(min(len(own), len(theirs))):
                start = depth * block
                if one[:start] != other[:start]:
                    break
                mine, yours = one[start : start + block], other[start : start + block]
                if len(mine) == len(yours) == block:
                    assert (own[depth] == theirs[depth]) == (mine == yours)
                elif own[depth] == theirs[depth]:
                    both = min(len(mine), len(yours))
                    assert mine[:both] == yours[:both]


@given(
    SEEDS,
    st.sampled_from(["keep", "drop_thinking", "regroup"]),
    st.integers(0, 2),
    st.booleans(),
    st.integers(1, 64),
)
@settings(max_examples=25, deadline=None)
def test_a_trace_of_agents_is_one_that_can_run(
    seed: int, policy: str, snapshot_tasks: int, warms_up: bool, block: int
) -> None:
    spec = {
        "tasks": 2, "rate_rps": 1.0, "history_policy": policy, "block_size": block,
        "snapshot_tasks": snapshot_tasks, "warm_up": warms_up and snapshot_tasks > 0,
        "system_tokens": 200, "user_tokens": 20, "brief_tokens": 30, "tool_output_tokens": 40,
        "answer_tokens": {"dist": "geometric", "mean": 20}, "lead_turns": 12,
        "compact_at_tokens": 700, "compact_to_tokens": 300,
    }  # fmt: skip
    trace = write_agents(spec, seed)
    counts = np.diff(trace.hash_offsets)
    assert (counts == -(-trace.input_tokens // block)).all()
    assert trace.arrival_ms[0] == 0 and (np.diff(trace.arrival_ms) >= 0).all()
    assert (trace.input_tokens >= 1).all() and (trace.output_tokens >= 1).all()
    for row, other in edges_of(trace):
        assert other < row  # nothing stands before what it waits for
    again = write_agents(spec, seed)
    assert again.hash_ids.tobytes() == trace.hash_ids.tobytes()
    assert again.arrival_ms.tobytes() == trace.arrival_ms.tobytes()


def edges_of(trace: Trace) -> list[tuple[int, int]]:
    edges = []
    if trace.previous_turn is not None:
        rows = np.flatnonzero(trace.previous_turn != NO_REQUEST).tolist()
        edges += [(row, int(trace.previous_turn[row])) for row in rows]
    if trace.dependencies is not None:
        waiting, others = trace.dependencies.waiting(), trace.dependencies.rows
        edges += list(zip(waiting.tolist(), others.tolist(), strict=True))
    return edges
