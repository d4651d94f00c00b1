"""What the router calls the blocks of simulated requests.

Engines of the twin count blocks by extents. An index that works on extents takes these names as
they are; one that works on hashes, as in a live deployment, gets every block by its hash.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dynosim.blocks.hashing import trace_local_hashes, trace_sequence_hashes
from dynosim.blocks.kv_event import KvEvent
from dynosim.indexer.base import BlockEvent, Removed, Stored
from dynosim.records import Trace, packed
from dynosim.workload.extents import PrefixExtents

PRIVATE = 1 << 63  # marks made-up hashes of blocks that only one request can produce
MAX_BLOCKS = 1 << 24  # of one request


class PromptNames(Protocol):
    """Names of prompts' blocks for index and load tracker."""

    key_blocks: list[int] | None

    def of(self, request_index: int) -> tuple[Sequence[int], Sequence[int]]:
        """(names for the index, names for the load tracker) of a prompt's complete blocks."""
        ...


class ExtentNames:
    """Extents as they are, as far as other requests share them."""

    def __init__(self, extents: PrefixExtents) -> None:
        self.key_blocks: list[int] | None = extents.extent_blocks.tolist()
        self._path = packed(extents.path)
        first, end = extents.shared_path_offsets()
        self._first, self._end = packed(first), packed(end)

    def of(self, request_index: int) -> tuple[Sequence[int], Sequence[int]]:
        """The shared part of a prompt's path, twice."""
        path = self._path[self._first[request_index] : self._end[request_index]].tolist()
        return path, path


class HashNames:
    """Local hashes for the index, sequence hashes for the load tracker, and events with both."""

    def __init__(self, trace: Trace, extents: PrefixExtents, block_size: int) -> None:
        self.key_blocks: list[int] | None = None
        local, offsets = trace_local_hashes(trace, block_size)
        sequence = trace_sequence_hashes(local, offsets)
        self._local: list[int] = local.tolist()
        self._sequence: list[int] = sequence.tolist()
        self._offsets: list[int] = offsets.tolist()
        self._extent_blocks: list[int] = extents.extent_blocks.tolist()
        self._extent_start = _first_blocks(extents, self._offsets)

    def of(self, request_index: int) -> tuple[Sequence[int], Sequence[int]]:
        """Hashes of a prompt's blocks."""
        part = slice(self._offsets[request_index], self._offsets[request_index + 1])
        return self._local[part], self._sequence[part]

    def event(self, event: KvEvent) -> BlockEvent:
        """An engine's event block by block."""
        blocks = range(event.first_block, event.first_block + event.num_blocks)
        if event.content < 0:
            hashes = [self._private(event.content, block) for block in blocks]
            local = hashes
        else:
            start = self._extent_start[event.content] + event.first_block
            hashes = self._sequence[start : start + event.num_blocks]
            local = self._local[start : start + event.num_blocks]
        if not event.is_stored:
            return Removed(hashes[::-1], event.tier)
        return Stored(self._block_before(event), hashes, local, event.tier)

    def _block_before(self, event: KvEvent) -> int | None:
        if event.first_block > 0:
            if event.content < 0:
                return self._private(event.content, event.first_block - 1)
            return self._sequence[self._extent_start[event.content] + event.first_block - 1]
        if event.parent is None:
            return None
        last = self._extent_start[event.parent] + self._extent_blocks[event.parent] - 1
        return self._sequence[last]

    def _private(self, content: int, block: int) -> int:
        return PRIVATE | (-1 - content) * MAX_BLOCKS + block


def _first_blocks(extents: PrefixExtents, block_offsets: list[int]) -> list[int]:
    """Where each extent's hashes begin: in any request that walks through it."""
    sizes = extents.extent_blocks[extents.path]
    before = np.cumsum(sizes) - sizes
    path_start = extents.path_offsets[:-1]
    num_extents = extents.path_offsets[1:] - path_start
    skipped = np.repeat(np.append(before, 0)[path_start], num_extents)
    first = np.repeat(np.array(block_offsets[:-1]), num_extents) + before - skipped
    starts = np.zeros(len(extents.extent_blocks), np.int64)
    starts[extents.path] = first
    found: list[int] = starts.tolist()
    return found
