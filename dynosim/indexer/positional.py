"""A positional index with jump search: look far ahead, and back only where somebody dropped out.

For each position a table leads from local hash to the sequence hashes of the blocks seen there and
the workers that hold them. Where a worker's holdings have no holes, holding a block means holding
all before it: a query can jump many blocks at once. Evictions from the front or the middle make
holes; workers with holes are known, and checked block by block.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dynosim.hashing import extend_sequence_hashes, sequence_hashes
from dynosim.indexer.base import (
    BlockEvent,
    IndexCounters,
    Overlaps,
    Removed,
    Stored,
    Tier,
    members,
)


class Single(NamedTuple):
    """The usual entry: only one prefix leads to this block at this position."""

    sequence: int
    workers: int


Entry = Single | dict[int, int]  # or several: sequence hash -> workers


class Held(NamedTuple):
    """A block that a worker holds."""

    position: int
    local: int
    sequence: int
    parent: int | None  # sequence hash of the block before


class Holdings:
    """What one worker holds, and whether it has holes."""

    __slots__ = ("by_hash", "num_children", "num_orphans", "sequences")

    def __init__(self) -> None:
        self.by_hash: dict[int, Held] = {}  # engine's block hash -> block
        self.sequences: dict[int, int] = {}  # our sequence hash -> engine's block hash
        self.num_children: dict[int, int] = {}  # sequence hash -> blocks held that follow it
        self.num_orphans = 0  # blocks held whose block before is not


class PositionalIndex:
    """Exact prefix index by position.

    `stride`: blocks to jump. `is_binary`: look for drop-outs by halving instead of one by one.
    """

    def __init__(self, stride: int = 32, *, is_binary: bool = False) -> None:
        self.counters = IndexCounters()
        self._stride = stride
        self._is_binary = is_binary
        self._positions: list[dict[int, Entry]] = []
        self._holdings: dict[int, Holdings] = {}
        self._with_holes = 0  # workers

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account."""
        if isinstance(event, Stored):
            self._store(worker, event)
        elif isinstance(event, Removed):
            for block_hash in event.block_hashes:
                self._remove(worker, block_hash)
        elif event.tier is None or event.tier is Tier.DEVICE:
            self.remove_worker(worker)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks; `blocks` are local hashes."""
        self.counters.queries += 1
        self.counters.query_blocks += len(blocks)
        if not blocks:
            return Overlaps([])
        sequence = sequence_hashes(blocks)
        everybody = self._workers_at(0, blocks, sequence)
        depths: dict[int, int] = {}
        for worker in members(everybody & self._with_holes):
            depth = 1
            while depth < len(blocks) and self._workers_at(depth, blocks, sequence) >> worker & 1:
                depth += 1
            depths[depth] = depths.get(depth, 0) | 1 << worker
        active = everybody & ~self._with_holes
        position, last = 0, len(blocks) - 1
        while active and position < last:
            ahead = min(position + self._stride, last)
            still = active & self._workers_at(ahead, blocks, sequence)
            if still != active:
                self._drop_outs(position, ahead, active ^ still, blocks, sequence, depths)
            active, position = still, ahead
        if active:
            depths[len(blocks)] = depths.get(len(blocks), 0) | active
        return Overlaps([(depths[depth], depth) for depth in sorted(depths)])

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        holdings = self._holdings.get(worker)
        for block_hash in list(holdings.by_hash) if holdings is not None else ():
            self._remove(worker, block_hash)
        self._holdings.pop(worker, None)

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        return sum(len(holdings.sequences) for holdings in self._holdings.values())

    # ---- queries -------------------------------------------------------------------------------

    def _workers_at(self, position: int, blocks: Sequence[int], sequence: list[int]) -> int:
        """Who holds the query's block at a position, behind the same prefix."""
        self.counters.lookups += 1
        if position >= len(self._positions):
            return 0
        entry = self._positions[position].get(blocks[position])
        if entry is None:
            return 0
        if isinstance(entry, Single):
            return entry.workers if entry.sequence == sequence[position] else 0
        return entry.get(sequence[position], 0)

    def _drop_outs(
        self,
        first: int,
        last: int,
        leaving: int,
        blocks: Sequence[int],
        sequence: list[int],
        depths: dict[int, int],
    ) -> None:
        """Find how far workers come that hold position `first` but not `last`."""
        if last - first == 1:
            depths[last] = depths.get(last, 0) | leaving
            return
        middle = (first + last) // 2 if self._is_binary else first + 1
        still = leaving & self._workers_at(middle, blocks, sequence)
        if still != leaving:
            self._drop_outs(first, middle, leaving ^ still, blocks, sequence, depths)
        if still:
            self._drop_outs(middle, last, still, blocks, sequence, depths)

    # ---- events --------------------------------------------------------------------------------

    def _store(self, worker: int, event: Stored) -> None:
        holdings = self._holdings.setdefault(worker, Holdings())
        position, before = 0, None
        if event.parent is not None:
            parent = holdings.by_hash.get(event.parent)
            if parent is None:
                self.counters.unknown_parents += 1
                return
            position, before = parent.position + 1, parent.sequence
        sequence = extend_sequence_hashes(before, event.local_hashes)
        for block_hash, local, own in zip(
            event.block_hashes, event.local_hashes, sequence, strict=True
        ):
            held = Held(position, local, own, before)
            known = holdings.by_hash.get(block_hash)
            if known is not None and known.sequence != own:
                self._remove(worker, block_hash)  # the name now means another block
            name = holdings.sequences.get(own)
            if name is None:
                self.counters.stored_blocks += 1
                self._enter(worker, holdings, held)
            else:
                self.counters.duplicate_blocks += 1
                if name != block_hash:
                    del holdings.by_hash[name]  # of two names for one block the newer counts
            holdings.sequences[own] = block_hash
            holdings.by_hash[block_hash] = held
            position, before = position + 1, own
        self._note_holes(worker, holdings)

    def _enter(self, worker: int, holdings: Holdings, held: Held) -> None:
        position, local, own, parent = held
        if parent is not None:
            holdings.num_children[parent] = holdings.num_children.get(parent, 0) + 1
            holdings.num_orphans += parent not in holdings.sequences
        holdings.num_orphans -= holdings.num_children.get(own, 0)
        while len(self._positions) <= position:
            self._positions.append({})
        table = self._positions[position]
        entry = table.get(local)
        bit = 1 << worker
        if entry is None:
            table[local] = Single(own, bit)
        elif isinstance(entry, dict):
            entry[own] = entry.get(own, 0) | bit
        elif entry.sequence == own:
            table[local] = Single(own, entry.workers | bit)
        else:
            table[local] = {entry.sequence: entry.workers, own: bit}

    def _remove(self, worker: int, block_hash: int) -> None:
        holdings = self._holdings.get(worker)
        held = None if holdings is None else holdings.by_hash.pop(block_hash, None)
        if holdings is None or held is None:
            self.counters.unknown_blocks += 1
            return
        self.counters.removed_blocks += 1
        position, local, own, parent = held
        del holdings.sequences[own]
        holdings.num_orphans += holdings.num_children.get(own, 0)
        if parent is not None:
            holdings.num_orphans -= parent not in holdings.sequences
            holdings.num_children[parent] -= 1
            if not holdings.num_children[parent]:
                del holdings.num_children[parent]
        self._note_holes(worker, holdings)
        table = self._positions[position]
        entry = table[local]
        if isinstance(entry, Single):
            left = entry.workers & ~(1 << worker)
            if left:
                table[local] = Single(own, left)
            else:
                del table[local]
            return
        entry[own] &= ~(1 << worker)
        if not entry[own]:
            del entry[own]
            if len(entry) == 1:
                table[local] = Single(*entry.popitem())

    def _note_holes(self, worker: int, holdings: Holdings) -> None:
        if holdings.num_orphans:
            self._with_holes |= 1 << worker
        else:
            self._with_holes &= ~(1 << worker)
