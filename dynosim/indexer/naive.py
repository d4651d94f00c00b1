"""Two baselines that everybody thinks of first, kept to show what is wrong with them.

Both look blocks up by content alone, so they take a chunk that a worker holds somewhere for the
same chunk at this position: prompts that repeat or reorder text match too much.
"""

from collections.abc import Sequence

from dynosim.indexer.answers import IndexCounters, Overlaps
from dynosim.indexer.base import BlockEvent, Removed, Stored, is_elsewhere


class NaiveIndex:
    """Worker -> local hash -> block hashes. A query costs workers x blocks."""

    def __init__(self) -> None:
        self.counters = IndexCounters()
        self._blocks: dict[int, dict[int, set[int]]] = {}

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account; slower tiers are nothing to it."""
        if is_elsewhere(event):
            return
        if isinstance(event, Stored):
            self._store(worker, event)
        elif isinstance(event, Removed):
            self._remove(worker, set(event.block_hashes))
        else:
            self.remove_worker(worker)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks, if equal content meant an equal block."""
        self.counters.queries += 1
        self.counters.query_blocks += len(blocks)
        depths: dict[int, int] = {}
        for worker, held in self._blocks.items():
            depth = 0
            while depth < len(blocks) and blocks[depth] in held:
                depth += 1
            self.counters.lookups += min(depth + 1, len(blocks))
            if depth:
                depths[depth] = depths.get(depth, 0) | 1 << worker
        return Overlaps([(depths[depth], depth) for depth in sorted(depths)])

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        self._blocks.pop(worker, None)

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        return sum(len(hashes) for held in self._blocks.values() for hashes in held.values())

    def dump(self, worker: int) -> list[BlockEvent]:
        """Events that lead an empty index to what a worker holds."""
        held = self._blocks.get(worker, {})
        pairs = [(name, local) for local, names in held.items() for name in sorted(names)]
        return _stored_once(pairs)

    def _store(self, worker: int, event: Stored) -> None:
        held = self._blocks.setdefault(worker, {})
        for block_hash, local in zip(event.block_hashes, event.local_hashes, strict=True):
            hashes = held.setdefault(local, set())
            self.counters.duplicate_blocks += block_hash in hashes
            self.counters.stored_blocks += block_hash not in hashes
            hashes.add(block_hash)

    def _remove(self, worker: int, gone: set[int]) -> None:
        """No table leads back from a block hash: every content has to be looked at."""
        held = self._blocks.get(worker, {})
        found = 0
        for local in list(held):
            both = held[local] & gone
            if both:
                found += len(both)
                held[local] -= both
                if not held[local]:
                    del held[local]
        self.counters.removed_blocks += found
        self.counters.unknown_blocks += len(gone) - found


class InvertedIndex:
    """Local hash -> block hash -> workers, and a table that leads back. A query costs blocks."""

    def __init__(self) -> None:
        self.counters = IndexCounters()
        self._holders: dict[int, dict[int, int]] = {}
        self._local: dict[int, dict[int, int]] = {}  # worker -> block hash -> local hash

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account; slower tiers are nothing to it."""
        if is_elsewhere(event):
            return
        if isinstance(event, Stored):
            self._store(worker, event)
        elif isinstance(event, Removed):
            for block_hash in event.block_hashes:
                self._remove(worker, block_hash)
        else:
            self.remove_worker(worker)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks, if equal content meant an equal block."""
        self.counters.queries += 1
        self.counters.query_blocks += len(blocks)
        classes: list[tuple[int, int]] = []
        alive = -1
        depth = 0
        for local in blocks:
            self.counters.lookups += 1
            still = 0
            for workers in self._holders.get(local, {}).values():
                still |= alive & workers
            if still != alive and depth:
                classes.append((alive & ~still, depth))
            alive = still
            if not still:
                break
            depth += 1
        if alive and depth:
            classes.append((alive, depth))
        return Overlaps(classes)

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        for block_hash, local in self._local.pop(worker, {}).items():
            self._drop(worker, block_hash, local)

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        return sum(len(local) for local in self._local.values())

    def dump(self, worker: int) -> list[BlockEvent]:
        """Events that lead an empty index to what a worker holds."""
        return _stored_once(list(self._local.get(worker, {}).items()))

    def _store(self, worker: int, event: Stored) -> None:
        known = self._local.setdefault(worker, {})
        for block_hash, local in zip(event.block_hashes, event.local_hashes, strict=True):
            before = known.get(block_hash)
            self.counters.duplicate_blocks += before is not None
            self.counters.stored_blocks += before is None
            if before is not None:
                self._drop(worker, block_hash, before)  # it may now mean another block
            known[block_hash] = local
            holders = self._holders.setdefault(local, {})
            holders[block_hash] = holders.get(block_hash, 0) | 1 << worker

    def _remove(self, worker: int, block_hash: int) -> None:
        local = self._local.get(worker, {}).pop(block_hash, None)
        if local is None:
            self.counters.unknown_blocks += 1
            return
        self.counters.removed_blocks += 1
        self._drop(worker, block_hash, local)

    def _drop(self, worker: int, block_hash: int, local: int) -> None:
        holders = self._holders[local]
        holders[block_hash] &= ~(1 << worker)
        if not holders[block_hash]:
            del holders[block_hash]
            if not holders:
                del self._holders[local]


def _stored_once(pairs: list[tuple[int, int]]) -> list[BlockEvent]:
    """All (block hash, local hash) pairs in one event: what comes before what does not matter."""
    return [Stored(None, [pair[0] for pair in pairs], [pair[1] for pair in pairs])] if pairs else []
