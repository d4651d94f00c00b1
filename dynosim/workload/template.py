"""Tokens that a chat template puts in front of every prompt, the same in all."""

from dataclasses import replace
from math import gcd

import numpy as np

from dynosim.blocks.retention import moved
from dynosim.records import IntArray, Retention, Trace, gather_runs
from dynosim.workload.assemble import first_appearance_ids

BLOCK_TOKENS = 16
"""Prompts are named in blocks of so many tokens once a template has moved them."""


def with_template(trace: Trace, template_tokens: int) -> Trace:
    """The trace with so many more tokens in front of every prompt.

    A block that the template has moved is shared by those prompts that shared all of its tokens
    before. So the last tokens of what prompts share, fewer than `BLOCK_TOKENS`, may become each
    one's own. A later turn's prompt holds the template already, so it is in front of it once.
    """
    if not template_tokens:
        return trace
    longer = replace(
        trace,
        input_tokens=trace.input_tokens + template_tokens,
        retention=_moved_retention(trace, template_tokens),
    )
    if not len(trace.hash_ids):
        return longer
    block = gcd(trace.trace_block_size, BLOCK_TOKENS)
    ids, offsets = _in_smaller_blocks(trace, block)
    return replace(
        longer,
        hash_ids=_moved_ids(ids, offsets, longer.input_tokens, template_tokens, block),
        hash_offsets=np.concatenate(([0], np.cumsum(-(-longer.input_tokens // block)))),
        trace_block_size=block,
    )


def _moved_retention(trace: Trace, num_tokens: int) -> tuple[Retention | None, ...] | None:
    if trace.retention is None:
        return None
    return tuple(one and moved(one, num_tokens) for one in trace.retention)


def _in_smaller_blocks(trace: Trace, block: int) -> tuple[IntArray, IntArray]:
    """Ids of blocks of `block` tokens that hold prompt tokens, and where each request's begin."""
    parts = trace.trace_block_size // block
    ids = (trace.hash_ids[:, None] * parts + np.arange(parts)).ravel()
    counts = -(-trace.input_tokens // block)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return gather_runs(ids, trace.hash_offsets[:-1] * parts, counts), offsets


def _moved_ids(
    ids: IntArray, offsets: IntArray, input_tokens: IntArray, template_tokens: int, block: int
) -> IntArray:
    """The ids behind the template's, and one more where the prompt's end has moved on into it."""
    whole = template_tokens // block
    counts = -(-input_tokens // block)
    own = np.diff(offsets)
    total = int(counts.sum())
    starts = np.cumsum(counts) - counts
    depth = np.arange(total) - np.repeat(starts, counts)
    place = np.repeat(offsets[:-1], counts) + depth - whole
    is_template = depth < whole
    is_beyond = depth >= np.repeat(own, counts) + whole
    num_ids = int(ids.max()) + 1
    taken = ids[np.where(is_template, 0, place - is_beyond)]
    named = np.where(is_beyond, num_ids + taken, taken)
    return first_appearance_ids(np.where(is_template, 2 * num_ids + depth, named))
