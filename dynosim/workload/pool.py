"""Pools of prompts that repeat exactly: some system prompts, some questions behind each.

This is what shared-prefix benchmarks send: the (system prompt, question) pairs in turn, over and
over, so that after one round every prompt has been seen whole.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynosim.records import FloatArray, IntArray, Trace
from dynosim.workload.assemble import first_appearance_ids
from dynosim.workload.streams import stream

Order = Literal["round_robin", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPool:
    """What the prompts of a pool consist of, front to back: template, system prompt, question."""

    system_prompts: int
    users_per_prompt: int  # questions behind each system prompt
    system_tokens: int
    question_tokens: int
    output_tokens: int
    template_tokens: int = 0  # equal in all prompts
    order: Order = "round_robin"
    block_size: int = 16  # prompt tokens behind one hash id


def pool_trace(
    pool: PromptPool, arrival_ms: FloatArray, *, seed: int, stages: IntArray | None = None
) -> Trace:
    """The requests of a pool that arrive then; `stages` is the load stage of each."""
    size = len(arrival_ms)
    num_prompts = pool.system_prompts * pool.users_per_prompt
    if pool.order == "random":
        prompts = stream(seed, "pool").integers(0, num_prompts, size)
    else:
        prompts = np.arange(size) % num_prompts
    ids = _prompt_ids(pool)
    tokens = pool.template_tokens + pool.system_tokens + pool.question_tokens
    return Trace(
        arrival_ms=arrival_ms,
        input_tokens=np.full(size, tokens, np.int64),
        output_tokens=np.full(size, pool.output_tokens, np.int64),
        hash_ids=first_appearance_ids(ids[prompts].ravel()),
        hash_offsets=np.arange(size + 1) * ids.shape[1],
        trace_block_size=pool.block_size,
        stages=stages,
        source=f"pool of {num_prompts} prompts, seed {seed}",
    )


def _prompt_ids(pool: PromptPool) -> IntArray:
    """The ids of each prompt's blocks (prompts, blocks).

    A block is shared as far as all of its tokens are: by all prompts where the template fills it,
    by those of a system prompt up to that one's end.
    """
    block, system_end = pool.block_size, pool.template_tokens + pool.system_tokens
    blocks = np.arange(-(-(system_end + pool.question_tokens) // block))
    of_all = blocks < pool.template_tokens // block
    of_system = blocks < system_end // block
    prompts = np.arange(pool.system_prompts * pool.users_per_prompt)[:, None]
    systems = prompts // pool.users_per_prompt
    # Who owns a block, numbered in one line: everybody, a system prompt, a prompt.
    of_one = 1 + pool.system_prompts + prompts
    owners = np.where(of_all, 0, np.where(of_system, 1 + systems, of_one))
    return np.asarray(owners * len(blocks) + blocks, np.int64)
