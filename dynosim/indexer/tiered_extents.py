"""The twin's index where engines have slower tiers: extents in each of them.

The device's part is an `ExtentIndex`. A slower tier may hold any blocks of an extent, whether or
not it holds those before: what it has counts where the faster tiers end.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import SLOWER, Tier
from dynosim.indexer.answers import IndexCounters, Overlaps
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.tiers import NOTHING, TierOverlaps

DEVICE: Final = Tier.DEVICE  # compiled code looks it up once


class ExtentTier:
    """Who holds which blocks of which extents in one slower tier."""

    __slots__ = ("_extent_blocks", "_full", "_partly", "_private_blocks", "num_shared")

    def __init__(self, extent_blocks: list[int]) -> None:
        self._extent_blocks = extent_blocks
        self._full: dict[int, int] = {}  # extent -> workers that hold the whole of it
        # extent -> worker -> set of the blocks it holds, as bits: neither none nor all of them
        self._partly: dict[int, dict[int, int]] = {}
        self._private_blocks: dict[int, int] = {}  # by worker
        self.num_shared = 0  # (worker, block) pairs, private ones left out

    def store(self, worker: int, content: int, first_block: int, num_blocks: int) -> None:
        """A worker has taken blocks in."""
        if content < 0:
            self._count_private(worker, num_blocks)
            return
        if num_blocks == self._extent_blocks[content] and content not in self._partly:
            holders, bit = self._full.get(content, 0), 1 << worker
            if not holders & bit:  # the usual case: all of an extent, and new
                self._full[content] = holders | bit
                self.num_shared += num_blocks
            return
        before = self._held(worker, content)
        held = before | ((1 << num_blocks) - 1) << first_block
        num_new = num_blocks if before >> first_block == 0 else (held ^ before).bit_count()
        self._set_held(worker, content, before, held)
        self.num_shared += num_new

    def remove(self, worker: int, content: int, first_block: int, num_blocks: int) -> int:
        """A worker has let blocks go; returns how many it did not have."""
        if content < 0:
            self._count_private(worker, -num_blocks)
            return 0
        holders, bit = self._full.get(content, 0), 1 << worker
        if holders & bit and first_block + num_blocks == self._extent_blocks[content]:
            self._drop_full(content, holders ^ bit)  # the usual case: the last ones of all
            if first_block:
                self._set_part(worker, content, (1 << first_block) - 1)
            self.num_shared -= num_blocks
            return 0
        before = self._held(worker, content)
        gone = ((1 << num_blocks) - 1) << first_block & before
        num_gone = gone.bit_count()
        self._set_held(worker, content, before, before ^ gone)
        self.num_shared -= num_gone
        return num_blocks - num_gone

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        bit = 1 << worker
        whole = [content for content, workers in self._full.items() if workers & bit]
        partly = [content for content, parts in self._partly.items() if worker in parts]
        for content in whole + partly:
            held = self._held(worker, content)
            self._set_held(worker, content, held, 0)
            self.num_shared -= held.bit_count()
        self._private_blocks.pop(worker, None)

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        return self.num_shared + sum(self._private_blocks.values())

    def follow(self, path: Sequence[int], workers: int, depth: int) -> list[tuple[int, int]]:
        """How far workers get that stand `depth` blocks deep in a path: (workers, depth)."""
        sizes, full, partly = self._extent_blocks, self._full, self._partly
        ends: list[tuple[int, int]] = []
        start = 0
        for content in path:
            end = start + sizes[content]
            if end > depth:  # else they are behind it
                reached = max(start, depth)
                still = workers & full.get(content, 0)
                lost = workers ^ still
                if lost and content in partly:
                    for worker, held in partly[content].items():
                        if lost >> worker & 1:
                            rest = held >> (reached - start)
                            leading = (~rest & (rest + 1)).bit_length() - 1
                            lost ^= 1 << worker
                            if reached + leading == end:  # what it lacks was elsewhere
                                still |= 1 << worker
                            else:
                                ends.append((1 << worker, reached + leading))
                if lost:
                    ends.append((lost, reached))
                workers = still
                if not workers:
                    return ends
            start = end
        ends.append((workers, max(start, depth)))
        return ends

    def _held(self, worker: int, content: int) -> int:
        """The blocks of an extent that a worker holds, as bits."""
        if self._full.get(content, 0) >> worker & 1:
            return (1 << self._extent_blocks[content]) - 1
        parts = self._partly.get(content)
        return 0 if parts is None else parts.get(worker, 0)

    def _set_held(self, worker: int, content: int, before: int, held: int) -> None:
        if held == before:
            return
        everything = (1 << self._extent_blocks[content]) - 1
        if before == everything:
            self._drop_full(content, self._full[content] ^ 1 << worker)
        elif before and (not held or held == everything):
            parts = self._partly[content]
            del parts[worker]
            if not parts:
                del self._partly[content]
        if held == everything:
            self._full[content] = self._full.get(content, 0) | 1 << worker
        elif held:
            self._set_part(worker, content, held)

    def _drop_full(self, content: int, left: int) -> None:
        """Only these hold the whole of an extent from now on."""
        if left:
            self._full[content] = left
        else:
            del self._full[content]

    def _set_part(self, worker: int, content: int, held: int) -> None:
        parts = self._partly.get(content)
        if parts is None:
            self._partly[content] = {worker: held}
        else:
            parts[worker] = held

    def _count_private(self, worker: int, num_blocks: int) -> None:
        self._private_blocks[worker] = self._private_blocks.get(worker, 0) + num_blocks


class TieredExtents:
    """An `ExtentIndex` of devices, and who holds which extents in slower tiers."""

    def __init__(self, extent_blocks: list[int]) -> None:
        self.device = ExtentIndex(extent_blocks)
        self.counters: IndexCounters = self.device.counters
        self._slower = [ExtentTier(extent_blocks) for _ in SLOWER]
        self._workers = 0  # that have told of anything

    @property
    def has_slower(self) -> bool:
        """Whether anybody may hold anything but on its device: that is what this index is for."""
        return True

    def apply(self, worker: int, event: KvEvent) -> None:
        """Take one event of a worker into account, whatever its tier."""
        self.apply_all(worker, (event,))

    def apply_all(self, worker: int, events: Iterable[KvEvent]) -> None:
        """Take events of one worker into account, in order."""
        on_device: list[KvEvent] = []
        for event in events:
            if event.tier is DEVICE:
                on_device.append(event)
            else:
                self._apply_slower(worker, event)
        if on_device:  # nothing there depends on other tiers
            self.device.apply_all(worker, on_device)
        self._workers |= 1 << worker

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks on its device; `blocks` is a path of extents."""
        return self.device.find_matches(blocks)

    def find_tier_matches(self, blocks: Sequence[int]) -> TierOverlaps:
        """Who holds how many leading blocks, and in which tiers."""
        return TierOverlaps(*self.overlaps_by_tier(blocks))

    def overlaps_by_tier(self, blocks: Sequence[int]) -> list[Overlaps]:
        """The same as a list: of the device, then of each slower tier."""
        device = self.device.find_matches(blocks)
        rest = self._workers
        for workers, _ in device.classes:
            rest ^= workers
        reached = device.classes
        if rest:
            reached = [*reached, (rest, 0)]
        overlaps = [device]
        for tier in self._slower:
            beyond: dict[int, int] = {}  # blocks -> workers
            if tier.num_shared:
                further: list[tuple[int, int]] = []
                for workers, depth in reached:
                    for part, end in tier.follow(blocks, workers, depth):
                        further.append((part, end))
                        if end > depth:
                            beyond[end - depth] = beyond.get(end - depth, 0) | part
                reached = further
            if beyond:
                overlaps.append(Overlaps([(beyond[more], more) for more in sorted(beyond)]))
            else:
                overlaps.append(NOTHING)
        return overlaps

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        self.device.remove_worker(worker)
        for tier in self._slower:
            tier.remove_worker(worker)
        self._workers &= ~(1 << worker)

    @property
    def size(self) -> int:
        """(worker, block) pairs held, each tier counted."""
        return self.device.size + sum([tier.size for tier in self._slower])

    def _apply_slower(self, worker: int, event: KvEvent) -> None:
        tier = self._slower[event.tier - 1]
        content, first, num_blocks = event.content, event.first_block, event.num_blocks
        if event.is_stored:
            tier.store(worker, content, first, num_blocks)
        else:
            num_unknown = tier.remove(worker, content, first, num_blocks)
            if num_unknown:
                self.counters.unknown_blocks += num_unknown
