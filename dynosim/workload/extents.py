"""Turns the hash ids of a trace into extents: runs of engine blocks that prompts share whole.

A request of a real trace names dozens of trace blocks, hence hundreds of engine blocks, yet prompts
part in few places. Cutting the chains only there leaves about three extents a request, and exact
block accounting (see `dynosim.engine.block_pool`) at a cost that does not depend on prompt length.

A trace block of `trace_block_size` tokens need not be a multiple of the engine's block size: two
prompts share `common tokens // block_size` engine blocks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynosim.blocks.retention import cut_tokens
from dynosim.records import IntArray, Trace, gather_runs

NodeArray = NDArray[np.int32] | IntArray
"""Narrow if possible: there is one per hash id, tens of millions in a trace of a million rows."""


@dataclass(frozen=True, slots=True)
class PrefixExtents:
    """All extents of a trace, and the path of each request through them.

    Request i walks `path[path_offsets[i]:path_offsets[i + 1]]` (extent ids, root first); together
    they hold `path_blocks[i]` blocks, the full blocks of its prompt.
    """

    extent_blocks: IntArray  # (num_extents,) blocks of each extent, >= 1
    path: IntArray  # (sum of path lengths,)
    path_offsets: IntArray  # (n + 1,)
    path_blocks: IntArray  # (n,)

    def shared_extents(self) -> list[bool]:
        """Per extent: whether more than one request walks through it."""
        visits = np.bincount(self.path, minlength=len(self.extent_blocks))
        shared: list[bool] = (visits > 1).tolist()
        return shared

    def shared_path_offsets(self) -> tuple[IntArray, IntArray]:
        """Where the part of each path that others share begins and ends.

        It is a leading part: who shares an extent shares all before it.
        """
        is_shared = np.bincount(self.path, minlength=len(self.extent_blocks)) > 1
        counts = np.concatenate([[0], np.cumsum(is_shared[self.path])])
        begin = self.path_offsets[:-1]
        end = begin + counts[self.path_offsets[1:]] - counts[begin]
        return begin, end


def prefix_extents(
    trace: Trace, block_size: int, *, single_blocks: bool = False, reuse_blocks: int = 1
) -> PrefixExtents:
    """Extents of a trace for engines with blocks of `block_size` tokens.

    A prompt that ends with a block gets a cut before that block, because an engine recomputes it
    when all of the prompt is cached. So do blocks at which ranges of `trace.retention` begin or
    end, and every block whose number is a multiple of `reuse_blocks`, unless that is 1: engines
    reuse prefixes up to there. `single_blocks` makes every block an extent of its own.
    They are worked out once: a trace is replayed many times in sweeps.
    """
    key = (prefix_extents.__name__, block_size, single_blocks, reuse_blocks)
    known = trace.of_prompts.get(key)
    if not isinstance(known, PrefixExtents):
        known = _extents(trace, block_size, single_blocks, reuse_blocks)
        trace.of_prompts[key] = known
    return known


def _extents(
    trace: Trace, block_size: int, single_blocks: bool, reuse_blocks: int
) -> PrefixExtents:
    num_requests = len(trace)
    if len(trace.hash_ids) == 0:
        nothing = np.zeros(0, np.int64)
        zeros = np.zeros(num_requests + 1, np.int64)
        return PrefixExtents(nothing, nothing, zeros, zeros[1:])
    extents = _compress(trace, block_size, reuse_blocks)
    return _split_to_blocks(extents) if single_blocks else extents


def _compress(trace: Trace, block_size: int, reuse_blocks: int) -> PrefixExtents:
    tokens_per_id = trace.trace_block_size
    ids, offsets = _used_ids(trace)
    nodes = _nodes(ids, offsets)
    starts = _edge_starts(nodes, offsets)  # one entry per visit of a request to an edge
    lasts = np.append(starts[1:], len(ids)) - 1

    visitor = np.searchsorted(offsets, starts, side="right") - 1
    input_tokens = trace.input_tokens[visitor]
    first_block = (starts - offsets[visitor]) * tokens_per_id // block_size
    end_tokens = np.minimum((lasts - offsets[visitor] + 1) * tokens_per_id, input_tokens)
    end_block = end_tokens // block_size
    edge = nodes[starts].astype(np.int64)

    stride = int(end_block.max()) + 2
    is_aligned_end = (end_tokens == input_tokens) & (input_tokens % block_size == 0)
    ends = edge * stride + end_block
    recomputed = (edge * stride + end_block - 1)[is_aligned_end & (end_block - 1 > first_block)]
    more = [recomputed]
    if reuse_blocks > 1:
        first = first_block // reuse_blocks + 1
        inside = np.maximum((end_block - 1) // reuse_blocks + 1 - first, 0)
        more.append(np.repeat(edge * stride, inside) + _ranges(first, inside) * reuse_blocks)
    if trace.retention is not None:
        request, block = _retention_cuts(trace, block_size)
        visit = np.searchsorted(visitor * stride + first_block, request * stride + block) - 1
        is_inside = (visitor[visit] == request) & (block < end_block[visit])
        more.append((edge[visit] * stride + block)[is_inside])
    cuts = _distinct(np.concatenate([ends[end_block > first_block], *more]))

    start_of_edge = np.zeros(int(edge.max()) + 1, np.int64)
    start_of_edge[edge] = first_block
    cut_edge, cut_block = cuts // stride, cuts % stride
    previous = start_of_edge[cut_edge]
    same = np.flatnonzero(cut_edge[1:] == cut_edge[:-1]) + 1
    previous[same] = cut_block[same - 1]

    first_extent = np.searchsorted(cuts, edge * stride)
    num_extents = np.where(
        end_block > first_block, np.searchsorted(cuts, ends) + 1 - first_extent, 0
    )
    per_request = np.bincount(visitor, weights=num_extents, minlength=len(trace)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(per_request)])
    path = _ranges(first_extent, num_extents)
    return PrefixExtents(cut_block - previous, path, offsets, trace.input_tokens // block_size)


def _retention_cuts(trace: Trace, block_size: int) -> tuple[IntArray, IntArray]:
    """(request, block) wherever a request's blocks from there on may be worth something else."""
    rows: list[int] = []
    blocks: list[int] = []
    for row, retention in enumerate(trace.retention or ()):
        if retention is not None:
            most = int(trace.input_tokens[row]) // block_size
            cuts = [-(-token // block_size) for token in cut_tokens(retention)]
            inside = [block for block in cuts if 0 < block < most]
            rows += [row] * len(inside)
            blocks += inside
    return np.array(rows, np.int64), np.array(blocks, np.int64)


def _used_ids(trace: Trace) -> tuple[IntArray, IntArray]:
    """The hash ids of all trace blocks that hold prompt tokens, and where each request's begin."""
    used = -(-trace.input_tokens // trace.trace_block_size)
    offsets = trace.hash_offsets
    if np.array_equal(offsets[1:] - offsets[:-1], used):
        return trace.hash_ids, offsets
    ids = gather_runs(trace.hash_ids, offsets[:-1], used)
    return ids, np.concatenate(([0], np.cumsum(used)))


def _nodes(ids: IntArray, offsets: IntArray) -> NodeArray:
    """Numbers that are equal exactly where all ids up to and including this one are equal.

    The published traces name each block after its whole prefix already; then the ids will do.
    """
    is_dense = 0 <= int(ids.min()) and int(ids.max()) < 4 * len(ids) + 1024
    wide = ids if is_dense else _dense(ids)
    num_ids = int(wide.max()) + 1
    dense: NodeArray = wide.astype(np.int32) if num_ids < 1 << 31 else wide
    parents = np.empty_like(dense)
    parents[1:] = dense[:-1]
    parents[offsets[:-1]] = -1
    parent_of = np.full(num_ids, -2, dense.dtype)
    parent_of[dense] = parents
    if bool((parent_of[dense] == parents).all()):
        return dense
    depth = np.arange(len(ids)) - np.repeat(offsets[:-1], offsets[1:] - offsets[:-1])
    nodes = np.empty(len(ids), np.int64)
    num_nodes = 0
    for level in range(int(depth.max()) + 1):
        rows = np.flatnonzero(depth == level)
        above = nodes[rows - 1] if level else np.zeros(len(rows), np.int64)
        key = above * num_ids + dense[rows]
        unique, inverse = np.unique(key, return_inverse=True)
        nodes[rows] = num_nodes + inverse
        num_nodes += len(unique)
    return nodes


def _edge_starts(nodes: NodeArray, offsets: IntArray) -> IntArray:
    """Where a prompt begins, or who walks along with it changes."""
    visits = np.bincount(nodes).astype(np.int32)[nodes]
    is_start = np.empty(len(nodes), np.bool_)
    is_start[1:] = visits[1:] != visits[:-1]
    is_start[offsets[:-1]] = True
    return np.flatnonzero(is_start)


def _dense(ids: IntArray) -> IntArray:
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


def _distinct(values: IntArray) -> IntArray:
    """Sorted and without repetition; `np.unique` would import all of numpy.ma."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def _ranges(first: IntArray, lengths: IntArray) -> IntArray:
    """The numbers first[i], first[i] + 1, ... (lengths[i] of them), one row after the other."""
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    return np.arange(total) + np.repeat(first - ends + lengths, lengths)


def _split_to_blocks(extents: PrefixExtents) -> PrefixExtents:
    """The same paths with every extent split into extents of one block."""
    sizes = extents.extent_blocks
    first_block = np.concatenate([[0], np.cumsum(sizes)])
    path = _ranges(first_block[extents.path], sizes[extents.path])
    offsets = np.concatenate([[0], np.cumsum(extents.path_blocks)])
    return PrefixExtents(np.ones(int(sizes.sum()), np.int64), path, offsets, extents.path_blocks)
