"""A positional index with jump search: look far ahead, and back only where somebody dropped out.

For each position a table leads from local hash to the sequence hashes of the blocks seen there and
the workers that hold them. Where a worker's holdings have no holes, holding a block means holding
all before it: a query can jump many blocks at once. Evictions from the front or the middle make
holes; workers with holes are known, and checked block by block.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dynosim.blocks.hashing import extend_sequence_hashes
from dynosim.errors import ConfigError
from dynosim.indexer.answers import IndexCounters, Overlaps
from dynosim.indexer.base import BlockEvent, Removed, Stored, is_elsewhere


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

    __slots__ = ("by_hash", "names", "num_children", "num_orphans")

    def __init__(self) -> None:
        self.by_hash: dict[int, Held] = {}  # engine's block hash -> block
        self.names: dict[int, int] = {}  # our sequence hash -> engine's block hash
        self.num_children: dict[int, int] = {}  # sequence hash -> blocks held that follow it
        self.num_orphans = 0  # blocks held whose block before is not


class _Search:
    """One query's walk: where it looks, and whom it has lost on the way."""

    __slots__ = ("_blocks", "_positions", "_sequence", "depths", "num_lookups")

    def __init__(self, positions: list[dict[int, Entry]], blocks: Sequence[int]) -> None:
        self._positions = positions
        self._blocks = blocks
        self._sequence: list[int] = []  # hashed as far as needed
        self.depths: dict[int, int] = {}  # depth -> workers
        self.num_lookups = 0

    def workers_at(self, position: int) -> int:
        """Who holds the query's block at a position, behind the same prefix."""
        self.num_lookups += 1
        if position >= len(self._positions):
            return 0
        entry = self._positions[position].get(self._blocks[position])
        if entry is None:
            return 0
        known = self._sequence
        if len(known) <= position:
            new = self._blocks[len(known) : position + 1]
            known += extend_sequence_hashes(known[-1] if known else None, new)
        if isinstance(entry, Single):
            return entry.workers if entry.sequence == known[position] else 0
        return entry.get(known[position], 0)

    def note(self, workers: int, depth: int) -> None:
        """Workers hold `depth` blocks and no more."""
        if workers:
            self.depths[depth] = self.depths.get(depth, 0) | workers

    def walk(self, first: int, end: int, workers: int) -> None:
        """Find block by block how far workers come that hold `first`, but not beyond `end`."""
        position = first + 1
        while workers and position < end:
            still = workers & self.workers_at(position)
            self.note(workers ^ still, position)
            workers = still
            position += 1
        self.note(workers, end)

    def halve(self, first: int, end: int, workers: int) -> None:
        """The same by halving, for workers without holes."""
        if not workers or end - first == 1:
            self.note(workers, end)
            return
        middle = (first + end) // 2
        still = workers & self.workers_at(middle)
        self.halve(first, middle, workers ^ still)
        self.halve(middle, end, still)


class PositionalIndex:
    """Exact prefix index by position.

    `stride`: blocks to jump, at least 1. `is_binary`: look for drop-outs by halving instead of one
    by one. Raises: ConfigError for a stride below 1.
    """

    def __init__(self, stride: int = 32, *, is_binary: bool = False) -> None:
        if stride < 1:
            raise ConfigError(f"stride: {stride} blocks to jump; use 1 or more")
        self.counters = IndexCounters()
        self._stride = stride
        self._is_binary = is_binary
        self._positions: list[dict[int, Entry]] = []
        self._holdings: dict[int, Holdings] = {}
        self._with_holes = 0  # workers

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account; slower tiers are nothing to it."""
        if is_elsewhere(event):
            return
        if isinstance(event, Stored):
            self._store(worker, event)
        elif isinstance(event, Removed):
            self._remove(worker, event.block_hashes)
        else:
            self.remove_worker(worker)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks; `blocks` are local hashes."""
        self.counters.queries += 1
        self.counters.query_blocks += len(blocks)
        if not blocks:
            return Overlaps([])
        search = _Search(self._positions, blocks)
        everybody = search.workers_at(0)
        search.walk(0, len(blocks), everybody & self._with_holes)
        find_drop_outs = search.halve if self._is_binary else search.walk
        active = everybody & ~self._with_holes
        position, last = 0, len(blocks) - 1
        while active and position < last:
            ahead = min(position + self._stride, last)
            still = active & search.workers_at(ahead)
            find_drop_outs(position, ahead, active ^ still)
            active, position = still, ahead
        search.note(active, len(blocks))
        self.counters.lookups += search.num_lookups
        return Overlaps([(search.depths[depth], depth) for depth in sorted(search.depths)])

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        holdings = self._holdings.pop(worker, None)
        if holdings is not None:
            for block_hash in list(holdings.by_hash):
                self._drop(worker, holdings, block_hash)

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        return sum(len(holdings.names) for holdings in self._holdings.values())

    def names(self, worker: int) -> dict[int, int]:
        """Engine's block hash -> our sequence hash, of all that a worker holds."""
        return {name: held.sequence for name, held in self.dump_held(worker)}

    def dump_held(self, worker: int) -> list[tuple[int, Held]]:
        """What a worker holds, by the engine's block hash."""
        holdings = self._holdings.get(worker)
        return [] if holdings is None else list(holdings.by_hash.items())

    def restore_held(self, worker: int, blocks: Iterable[tuple[int, Held]]) -> None:
        """Let a worker of which nothing is known hold what `dump_held` gave."""
        holdings = self._holdings[worker] = Holdings()
        for name, held in blocks:
            self._enter(worker, holdings, held)
            holdings.names[held.sequence] = name
            holdings.by_hash[name] = held
        self._note_holes(worker, holdings)

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
        num_known = 0
        for name, local, own in zip(event.block_hashes, event.local_hashes, sequence, strict=True):
            held = holdings.by_hash.get(name)
            if held is not None and held.sequence != own:
                self._drop(worker, holdings, name)  # it now means another block
            held = Held(position, local, own, before)
            known_name = holdings.names.get(own)
            if known_name is None:
                self._enter(worker, holdings, held)
            else:
                num_known += 1
                del holdings.by_hash[known_name]
            holdings.names[own] = name
            holdings.by_hash[name] = held
            position, before = position + 1, own
        self.counters.stored_blocks += len(sequence) - num_known
        self.counters.duplicate_blocks += num_known
        self._note_holes(worker, holdings)

    def _enter(self, worker: int, holdings: Holdings, held: Held) -> None:
        position, local, own, parent = held
        if parent is not None:
            holdings.num_children[parent] = holdings.num_children.get(parent, 0) + 1
            holdings.num_orphans += parent not in holdings.names
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

    def _remove(self, worker: int, block_hashes: Sequence[int]) -> None:
        holdings = self._holdings.get(worker)
        for block_hash in block_hashes:
            if holdings is None or block_hash not in holdings.by_hash:
                self.counters.unknown_blocks += 1
            else:
                self.counters.removed_blocks += 1
                self._drop(worker, holdings, block_hash)

    def _drop(self, worker: int, holdings: Holdings, block_hash: int) -> None:
        position, local, own, parent = holdings.by_hash.pop(block_hash)
        del holdings.names[own]
        holdings.num_orphans += holdings.num_children.get(own, 0)
        if parent is not None:
            holdings.num_orphans -= parent not in holdings.names
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
