"""Extents agree with brute-force block hashing: who shares which blocks with whom."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_trace

from dynosim.records import Trace
from dynosim.workload.extents import PrefixExtents, prefix_extents


def block_names(trace: Trace, request: int, block_size: int) -> list[tuple[int, ...]]:
    """Each full block of a prompt, named by all tokens up to its end."""
    size = trace.trace_block_size
    first, last = trace.hash_offsets[request], trace.hash_offsets[request + 1]
    tokens = [int(h) * size + k for h in trace.hash_ids[first:last] for k in range(size)]
    tokens = tokens[: trace.input_tokens[request]]
    return [tuple(tokens[: end + block_size]) for end in range(0, len(tokens), block_size)][
        : len(tokens) // block_size
    ]


def blocks_by_extent(extents: PrefixExtents, request: int) -> list[tuple[int, int]]:
    """Each full block of a prompt, named by its extent and its place in it."""
    first, last = extents.path_offsets[request], extents.path_offsets[request + 1]
    return [(int(e), k) for e in extents.path[first:last] for k in range(extents.extent_blocks[e])]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 16, 24, 48, 128]), st.booleans())
def test_extents_name_blocks_as_content_does(seed: int, block_size: int, single: bool) -> None:
    trace = random_trace(random.Random(seed))
    extents = prefix_extents(trace, block_size, single_blocks=single)
    names: dict[tuple[int, int], tuple[int, ...]] = {}
    contents: dict[tuple[int, ...], tuple[int, int]] = {}
    for request in range(len(trace)):
        content = block_names(trace, request, block_size)
        named = blocks_by_extent(extents, request)
        assert len(named) == len(content) == extents.path_blocks[request]
        for name, block in zip(named, content, strict=True):
            assert names.setdefault(name, block) == block
            assert contents.setdefault(block, name) == name


def test_ids_when_not_unique_per_prefix_are_told_apart_by_what_precedes_them() -> None:
    trace = Trace(
        arrival_ms=np.zeros(2),
        input_tokens=np.array([64, 64]),
        output_tokens=np.array([1, 1]),
        hash_ids=np.array([1, 3, 2, 3]),
        hash_offsets=np.array([0, 2, 4]),
        trace_block_size=32,
    )
    extents = prefix_extents(trace, 16)
    assert not set(extents.path[: extents.path_offsets[1]]) & set(
        extents.path[extents.path_offsets[1] :]
    )


def test_prompt_when_it_ends_with_a_block_gets_a_cut_before_that_block() -> None:
    trace = Trace(
        arrival_ms=np.zeros(1),
        input_tokens=np.array([160]),
        output_tokens=np.array([1]),
        hash_ids=np.array([7]),
        hash_offsets=np.array([0, 1]),
        trace_block_size=512,
    )
    assert prefix_extents(trace, 16).extent_blocks.tolist() == [9, 1]


def test_extents_are_worked_out_once_for_the_same_prompts_in_blocks_of_one_size() -> None:
    trace = random_trace(random.Random(3))
    found = prefix_extents(trace.at(trace.arrival_ms + 1.0), 16)
    assert prefix_extents(trace, 16) is found
    assert prefix_extents(trace.at(trace.arrival_ms + 2.0), 16) is found
    assert prefix_extents(trace, 24) is not found
    assert prefix_extents(trace, 16, single_blocks=True) is not found
    part = trace.take(np.arange(len(trace) - 1))
    assert len(prefix_extents(part, 16).path_blocks) == len(part)
