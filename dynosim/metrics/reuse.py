"""How much of a trace's prompts caches of any size would have: its blocks, and curves over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynosim.engine.spec import EvictionPolicy
from dynosim.errors import TraceError
from dynosim.memory.reuse import CacheVisits, LruReuse, OptimalReuse, tier_hits
from dynosim.records import Trace
from dynosim.workload.extents import prefix_extents


def cache_visits(
    trace: Trace, block_size: int, *, single_blocks: bool = False, with_answers: bool = True
) -> CacheVisits:
    """What the requests of `trace` touch in the cache of an engine, in the order of its rows.

    All full blocks of prompts; the last is not to be hit if it ends the prompt, because an engine
    computes at least one token. With answers also the full blocks of tokens computed behind it,
    the last answered token not being one. `single_blocks`: extents of one block each.
    Raises: TraceError if the trace does not tell what prompts share.
    """
    if not len(trace.hash_ids):
        raise TraceError(f"{trace.source}: it has no hash ids, so that reuse is unknown")
    found = prefix_extents(trace, block_size, single_blocks=single_blocks)
    blocks = found.extent_blocks[found.path]
    ends_prompt = trace.input_tokens % block_size == 0  # and not only with a part of a block
    lasts = found.path_offsets[1:][ends_prompt] - 1
    assert bool((blocks[lasts] == 1).all()), "prompts that end with a block are cut before it"
    is_hittable = np.ones(len(blocks), np.bool_)
    is_hittable[lasts] = False
    computed = trace.input_tokens + np.maximum(trace.output_tokens, 1) - 1
    answers = computed // block_size - trace.input_tokens // block_size
    return CacheVisits(
        extents=found.path,
        blocks=blocks,
        is_hittable=is_hittable,
        offsets=found.path_offsets,
        answer_blocks=answers if with_answers else np.zeros_like(answers),
    )
