"""Overlap by tier: what a worker holds on its device, and behind that in slower memory.

The slower tiers continue the chain where the faster one ends: a block counts as a host hit only if
all blocks before it are on the device or on the host. Blocks there are found by our own sequence
hashes, since a tier need not hold the beginning of a prompt to be asked about its end.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dynosim.blocks.hashing import extend_sequence_hashes, sequence_hashes
from dynosim.blocks.tier import SLOWER, Tier
from dynosim.indexer.answers import Overlaps, members
from dynosim.indexer.base import (
    BlockEvent,
    Cleared,
    DeviceIndex,
    Removed,
    Stored,
    is_elsewhere,
)
from dynosim.workers.ids import Slot


class TierOverlaps(NamedTuple):
    """Leading blocks by tier: on the device, then further ones in each slower tier."""

    device: Overlaps
    host: Overlaps
    disk: Overlaps
    remote: Overlaps


NOTHING = Overlaps([])


class TieredIndex:
    """A device index, and who holds which blocks in slower tiers.

    It costs next to nothing as long as no event is about a slower tier: names of a worker's blocks
    are kept from the first such event on.
    """

    def __init__(self, device: DeviceIndex) -> None:
        self.device = device
        self.counters = device.counters
        self._holders: dict[Tier, dict[int, int]] = {tier: {} for tier in SLOWER}
        # By worker: engine's block hash -> (our sequence hash, set of tiers that hold the block)
        self._known: dict[Slot, dict[int, tuple[int, int]]] = {}

    @property
    def has_slower(self) -> bool:
        """Whether anybody holds anything but on its device."""
        return any(self._holders.values())

    def apply(self, worker: Slot, event: BlockEvent) -> None:
        """Take one event of a worker into account, whatever its tier."""
        is_slower = is_elsewhere(event)
        if worker not in self._known and is_slower and isinstance(event, Stored):
            names = self.device.names(worker).items()
            self._known[worker] = {name: (own, 1 << Tier.DEVICE) for name, own in names}
        if not is_slower:
            self.device.apply(worker, event)
        if worker in self._known:
            self._apply_known(worker, event)
        elif is_slower and isinstance(event, Removed):
            self.counters.unknown_blocks += len(event.block_hashes)

    def _apply_known(self, worker: Slot, event: BlockEvent) -> None:
        if isinstance(event, Stored):
            self._store(worker, event)
        elif isinstance(event, Removed):
            for block_hash in event.block_hashes:
                self._drop(worker, block_hash, event.tier)
        else:
            self._clear(worker, event)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks on its device."""
        return self.device.find_matches(blocks)

    def find_tier_matches(self, blocks: Sequence[int]) -> TierOverlaps:
        """Who holds how many leading blocks, and in which tiers."""
        device = self.device.find_matches(blocks)
        if not self.has_slower:
            return TierOverlaps(device, NOTHING, NOTHING, NOTHING)
        sequence = sequence_hashes(blocks)
        reached = device.by_worker()
        slower = [self._extend(tier, sequence, reached) for tier in SLOWER]
        return TierOverlaps(device, *slower)

    def remove_worker(self, worker: Slot) -> None:
        """Forget everything about a worker."""
        self.device.remove_worker(worker)
        if worker in self._known:
            self._clear(worker, Cleared())
            del self._known[worker]

    @property
    def size(self) -> int:
        """(worker, block) pairs held, each tier counted."""
        slower = (mask for holders in self._holders.values() for mask in holders.values())
        return self.device.size + sum(mask.bit_count() for mask in slower)

    def dump_tiers(self, worker: Slot) -> list[tuple[int, int, int]]:
        """(engine's block hash, our sequence hash, set of tiers) of all that a worker holds."""
        return [(name, *place) for name, place in self._known.get(worker, {}).items()]

    def restore_tiers(self, worker: Slot, blocks: Iterable[tuple[int, int, int]]) -> None:
        """Let a worker of which nothing is known hold what `dump_tiers` gave.

        The device index is restored by its own means.
        """
        for name, own, tiers in blocks:
            self._known.setdefault(worker, {})[name] = (own, tiers)
            for tier in SLOWER:
                if tiers >> tier & 1:
                    holders = self._holders[tier]
                    holders[own] = holders.get(own, 0) | 1 << worker

    def _extend(self, tier: Tier, sequence: list[int], reached: dict[Slot, int]) -> Overlaps:
        """Blocks of a tier that follow what workers have in faster ones; updates `reached`."""
        holders = self._holders[tier]
        beyond: dict[int, int] = {}
        candidates = 0
        for mask in (holders.get(block, 0) for block in sequence):
            candidates |= mask
        for worker in members(candidates):
            start = depth = reached.get(worker, 0)
            while depth < len(sequence) and holders.get(sequence[depth], 0) >> worker & 1:
                depth += 1
            if depth > start:
                beyond[depth - start] = beyond.get(depth - start, 0) | 1 << worker
                reached[worker] = depth
        return Overlaps([(mask, depth) for depth, mask in sorted(beyond.items())])

    def _store(self, worker: Slot, event: Stored) -> None:
        known = self._known[worker]
        parent = None
        if event.parent is not None:
            if event.parent not in known:
                if event.tier is not Tier.DEVICE:
                    self.counters.unknown_parents += 1
                return
            parent = known[event.parent][0]
        ours = extend_sequence_hashes(parent, event.local_hashes)
        tier_bit = 1 << event.tier
        for block_hash, own in zip(event.block_hashes, ours, strict=True):
            tiers = known[block_hash][1] if block_hash in known else 0
            known[block_hash] = (own, tiers | tier_bit)
            if event.tier is not Tier.DEVICE:
                holders = self._holders[event.tier]
                holders[own] = holders.get(own, 0) | 1 << worker

    def _drop(self, worker: Slot, block_hash: int, tier: Tier) -> None:
        known = self._known[worker]
        own, tiers = known.get(block_hash, (0, 0))
        if not tiers >> tier & 1:
            if tier is not Tier.DEVICE:
                self.counters.unknown_blocks += 1
            return
        left = tiers & ~(1 << tier)
        if left:
            known[block_hash] = (own, left)
        else:
            del known[block_hash]
        if tier is not Tier.DEVICE:
            holders = self._holders[tier]
            mask = holders.get(own, 0) & ~(1 << worker)  # 0: it went by another name already
            if mask:
                holders[own] = mask
            else:
                holders.pop(own, None)

    def _clear(self, worker: Slot, event: Cleared) -> None:
        for tier in Tier if event.tier is None else (event.tier,):
            for block_hash in list(self._known[worker]):
                if self._known[worker][block_hash][1] >> tier & 1:
                    self._drop(worker, block_hash, tier)
