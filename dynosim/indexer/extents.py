"""The twin's index: runs of blocks that prompts share whole, instead of single blocks.

All requests of a replay are known in advance as paths of extents (see `dynosim.engine.block_pool`),
so an extent can be what a block is to the other indexers: one set of workers says who holds all of
it. It sees the same events and gives the same answers, only for whole paths: a property test feeds
both an extent index and a radix tree.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter

from dynosim.blocks.kv_event import KvEvent
from dynosim.indexer.answers import IndexCounters, Overlaps

by_depth = itemgetter(1)


class ExtentIndex:
    """Who holds which extents; `extent_blocks[content]` is the size of an extent in blocks.

    Events about private blocks (content below zero) are counted and otherwise ignored: no query
    can name them.
    """

    __slots__ = ("_extent_blocks", "_full", "_partly", "_private_blocks", "_workers", "counters")

    def __init__(self, extent_blocks: list[int]) -> None:
        self.counters = IndexCounters()
        self._extent_blocks = extent_blocks
        self._full = [0] * len(extent_blocks)  # workers that hold the whole extent
        # extent -> worker -> set of the blocks it holds, as bits: neither none nor all of them
        self._partly: dict[int, dict[int, int]] = {}
        self._private_blocks: dict[int, int] = {}  # by worker
        self._workers = 0

    def apply(self, worker: int, event: KvEvent) -> None:
        """Take one event of a worker into account."""
        self.apply_all(worker, (event,))

    def apply_all(self, worker: int, events: Iterable[KvEvent]) -> None:
        """Take events of one worker into account, in order."""
        bit = 1 << worker
        self._workers |= bit
        full, partly, sizes = self._full, self._partly, self._extent_blocks
        for event in events:
            content, num_blocks = event.content, event.num_blocks
            if content < 0:
                self._count_private(worker, event)
            elif not event.is_stored:
                self._remove(worker, content, event.first_block, num_blocks)
            elif (
                num_blocks == sizes[content]
                and (event.parent is None or full[event.parent] & bit)
                and content not in partly
                and not full[content] & bit
            ):
                full[content] |= bit  # the usual case: all of an extent, and new
                self.counters.stored_blocks += num_blocks
            else:
                self._store(worker, event)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks; `blocks` is a path of extents, root first."""
        counters = self.counters
        counters.queries += 1
        alive = self._workers
        full = self._full
        sizes = self._extent_blocks
        classes: list[tuple[int, int]] = []
        depth = lookups = 0
        for lookups, content in enumerate(blocks, 1):  # noqa: B007 (counts)
            still = alive & full[content]
            if still != alive:
                lost = alive ^ still
                if content in self._partly:
                    lost = self._split_by_part(content, lost, depth, classes)
                if depth and lost:
                    classes.append((lost, depth))
                alive = still
                if not alive:
                    break
            depth += sizes[content]
        counters.lookups += lookups
        if alive and depth:
            classes.append((alive, depth))
        if len(classes) > 1:
            classes.sort(key=by_depth)
        return Overlaps(classes)

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        others = ~(1 << worker)
        self._full = [mask & others for mask in self._full]
        for content in list(self._partly):
            self._set_part(content, worker, 0)
        self._private_blocks.pop(worker, None)
        self._workers &= others

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        pairs = zip(self._full, self._extent_blocks, strict=True)
        whole = sum(mask.bit_count() * size for mask, size in pairs)
        parts = sum(held.bit_count() for part in self._partly.values() for held in part.values())
        return whole + parts + sum(self._private_blocks.values())

    def _store(self, worker: int, event: KvEvent) -> None:
        if not self._knows_block_before(worker, event):
            self.counters.unknown_parents += 1
            return
        content, first, num_blocks = event.content, event.first_block, event.num_blocks
        before = self._held(worker, content)
        held = before | ((1 << num_blocks) - 1) << first
        num_new = held.bit_count() - before.bit_count()
        self.counters.stored_blocks += num_new
        self.counters.duplicate_blocks += num_blocks - num_new
        if held.bit_count() == self._extent_blocks[content]:
            self._full[content] |= 1 << worker
            held = 0
        self._set_part(content, worker, held)

    def _remove(self, worker: int, content: int, first: int, num_blocks: int) -> None:
        bit = 1 << worker
        full = self._full
        part = self._partly.get(content)
        if full[content] & bit:
            full[content] ^= bit
            before = (1 << self._extent_blocks[content]) - 1
        else:
            before = 0 if part is None else part.get(worker, 0)
        counters = self.counters
        if before >> first + num_blocks == 0 and before >> first == (1 << num_blocks) - 1:
            held = before & ((1 << first) - 1)  # the usual case: the last blocks, all there
            counters.removed_blocks += num_blocks
        else:
            held = before & ~(((1 << num_blocks) - 1) << first)
            num_gone = before.bit_count() - held.bit_count()
            counters.removed_blocks += num_gone
            counters.unknown_blocks += num_blocks - num_gone
        if held and part is not None:
            part[worker] = held
        elif held or part is not None:
            self._set_part(content, worker, held)

    def _count_private(self, worker: int, event: KvEvent) -> None:
        num_blocks = event.num_blocks
        if event.is_stored:
            self.counters.stored_blocks += num_blocks
        else:
            self.counters.removed_blocks += num_blocks
            num_blocks = -num_blocks
        self._private_blocks[worker] = self._private_blocks.get(worker, 0) + num_blocks

    def _held(self, worker: int, content: int) -> int:
        """The blocks of an extent that a worker holds, as bits."""
        if self._full[content] >> worker & 1:
            return (1 << self._extent_blocks[content]) - 1
        part = self._partly.get(content)
        return 0 if part is None else part.get(worker, 0)

    def _set_part(self, content: int, worker: int, held: int) -> None:
        part = self._partly.get(content)
        if held:
            if part is None:
                self._partly[content] = {worker: held}
            else:
                part[worker] = held
        elif part is not None and part.pop(worker, 0) and not part:
            del self._partly[content]

    def _knows_block_before(self, worker: int, event: KvEvent) -> bool:
        """Whether the worker holds the block that comes before the first stored one."""
        first = event.first_block
        if first > 0:
            return bool(self._held(worker, event.content) >> (first - 1) & 1)
        parent = event.parent
        if parent is None:
            return True
        if self._full[parent] >> worker & 1:
            return True
        return bool(self._held(worker, parent) >> (self._extent_blocks[parent] - 1) & 1)

    def _split_by_part(
        self, content: int, lost: int, depth: int, classes: list[tuple[int, int]]
    ) -> int:
        """Give partial holders among `lost` their own depth; returns the others."""
        for worker, held in self._partly[content].items():
            if lost >> worker & 1:
                leading = (~held & (held + 1)).bit_length() - 1
                if leading:
                    lost ^= 1 << worker
                    classes.append((1 << worker, depth + leading))
        return lost
