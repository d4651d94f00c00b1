"""Overlap by tier: what a worker holds on its device, and behind that in slower memory.

The slower tiers continue the chain where the faster one ends: a block counts as a host hit only if
all blocks before it are on the device or on the host. Blocks there are found by our own sequence
hashes, since a tier need not hold the beginning of a prompt to be asked about its end.

A slower tier may take in a block whose predecessor is nowhere any more: a chain that was evicted
from both and computed again from its middle on. So names of blocks outlive their last copy, as long
as there are not more of them than of blocks held.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from dynosim.blocks.hashing import extend_sequence_hashes, sequence_hashes
from dynosim.blocks.tier import SLOWER, Tier
from dynosim.indexer.answers import Overlaps, members
from dynosim.indexer.base import (
    BlockEvent,
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
FORGOTTEN_MIN = 1024  # so many names of blocks without a copy are kept anyway


@runtime_checkable
class KnowsTiers(Protocol):
    """An index that can be asked about slower tiers."""

    @property
    def has_slower(self) -> bool:
        """Whether anybody holds anything but on its device, or may at any moment."""
        ...

    def find_tier_matches(self, blocks: Sequence[int]) -> TierOverlaps:
        """Who holds how many leading blocks, and in which tiers."""
        ...


class Names:
    """What one worker's blocks are called, and which tiers hold them."""

    __slots__ = ("held", "past")

    def __init__(self, on_device: dict[int, int]) -> None:
        """The names known from the device alone: engine's block hash -> our sequence hash."""
        # Engine's block hash -> (our sequence hash, set of tiers that hold the block)
        self.held = {name: (own, 1 << Tier.DEVICE) for name, own in on_device.items()}
        self.past: dict[int, int] = {}  # -> our sequence hash; the oldest first

    def own(self, name: int) -> int | None:
        """Our sequence hash of a block; None: never heard of, or too long ago."""
        known = self.held.get(name)
        return self.past.get(name) if known is None else known[0]

    def add(self, name: int, own: int, tier: Tier) -> None:
        """A tier has taken the block in."""
        known = self.held.get(name)
        if known is None:
            self.past.pop(name, None)
        self.held[name] = own, (0 if known is None else known[1]) | 1 << tier

    def drop(self, name: int, tier: Tier) -> int | None:
        """A tier has let the block go; returns our sequence hash, None if it was not there."""
        own, tiers = self.held.get(name, (0, 0))
        if not tiers >> tier & 1:
            return None
        left = tiers & ~(1 << tier)
        if left:
            self.held[name] = own, left
        else:
            del self.held[name]
            self.past[name] = own
            if len(self.past) > max(FORGOTTEN_MIN, len(self.held)):
                del self.past[next(iter(self.past))]
        return own


class TieredIndex:
    """A device index, and who holds which blocks in slower tiers.

    It costs next to nothing as long as no event is about a slower tier: names of a worker's blocks
    are kept from the first such event on. `expects_slower`: from the beginning, since what a device
    has evicted may be stored elsewhere afterwards.
    """

    def __init__(self, device: DeviceIndex, *, expects_slower: bool = False) -> None:
        self.device = device
        self._expects_slower = expects_slower
        self.counters = device.counters
        self._holders: dict[Tier, dict[int, int]] = {tier: {} for tier in SLOWER}
        self._names: dict[Slot, Names] = {}

    @property
    def has_slower(self) -> bool:
        """Whether anybody holds anything but on its device, or is expected to."""
        return self._expects_slower or any(self._holders.values())

    def apply(self, worker: Slot, event: BlockEvent) -> None:
        """Take one event of a worker into account, whatever its tier."""
        is_slower = is_elsewhere(event)
        if worker not in self._names and isinstance(event, Stored):
            if is_slower or self._expects_slower:
                self._names[worker] = Names(self.device.names(worker))
        if not is_slower:
            self.device.apply(worker, event)
        names = self._names.get(worker)
        if names is not None:
            self._apply_named(worker, names, event)
        elif is_slower and isinstance(event, Removed):
            self.counters.unknown_blocks += len(event.block_hashes)

    def _apply_named(self, worker: Slot, names: Names, event: BlockEvent) -> None:
        if isinstance(event, Stored):
            self._store(worker, names, event)
        elif isinstance(event, Removed):
            for block_hash in event.block_hashes:
                self._drop(worker, names, block_hash, event.tier)
        elif event.tier is None:
            self._forget(worker)
        else:
            self._clear(worker, names, event.tier)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks on its device."""
        return self.device.find_matches(blocks)

    def find_tier_matches(self, blocks: Sequence[int]) -> TierOverlaps:
        """Who holds how many leading blocks, and in which tiers."""
        return self.continued(self.device.find_matches(blocks), blocks)

    def continued(self, device: Overlaps, blocks: Sequence[int]) -> TierOverlaps:
        """What slower tiers hold behind what devices do."""
        if not self.has_slower:
            return TierOverlaps(device, NOTHING, NOTHING, NOTHING)
        sequence = sequence_hashes(blocks)
        reached = device.by_worker()
        slower = [self._extend(tier, sequence, reached) for tier in SLOWER]
        return TierOverlaps(device, *slower)

    def remove_worker(self, worker: Slot) -> None:
        """Forget everything about a worker."""
        self.device.remove_worker(worker)
        self._forget(worker)

    @property
    def size(self) -> int:
        """(worker, block) pairs held, each tier counted."""
        slower = (mask for holders in self._holders.values() for mask in holders.values())
        return self.device.size + sum(mask.bit_count() for mask in slower)

    def dump_tiers(self, worker: Slot) -> list[tuple[int, int, int]]:
        """(engine's block hash, our sequence hash, set of tiers) of all that is known of a worker.

        In an order that matters; without a tier: blocks of which only the name is known.
        """
        names = self._names.get(worker)
        if names is None:
            return []
        past = [(name, own, 0) for name, own in names.past.items()]
        return [(name, *place) for name, place in names.held.items()] + past

    def restore_tiers(self, worker: Slot, blocks: Iterable[tuple[int, int, int]]) -> None:
        """Let a worker hold what `dump_tiers` gave, of which nothing is known but by its device.

        The device index is restored by its own means, before.
        """
        names = Names({})
        for name, own, tiers in blocks:
            if not tiers:
                names.past[name] = own
                continue
            names.held[name] = own, tiers
            for tier in SLOWER:
                if tiers >> tier & 1:
                    holders = self._holders[tier]
                    holders[own] = holders.get(own, 0) | 1 << worker
        if names.held or names.past:
            self._names[worker] = names

    def _extend(self, tier: Tier, sequence: list[int], reached: dict[Slot, int]) -> Overlaps:
        """Blocks of a tier that follow what workers have in faster ones; updates `reached`."""
        holders = self._holders[tier]
        if not holders:
            return NOTHING
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

    def _store(self, worker: Slot, names: Names, event: Stored) -> None:
        before = None if event.parent is None else names.own(event.parent)
        if event.parent is not None and before is None:
            if event.tier is not Tier.DEVICE:
                self.counters.unknown_parents += 1
            return
        ours = extend_sequence_hashes(before, event.local_hashes)
        for block_hash, own in zip(event.block_hashes, ours, strict=True):
            names.add(block_hash, own, event.tier)
            if event.tier is not Tier.DEVICE:
                holders = self._holders[event.tier]
                holders[own] = holders.get(own, 0) | 1 << worker

    def _drop(self, worker: Slot, names: Names, block_hash: int, tier: Tier) -> None:
        own = names.drop(block_hash, tier)
        if tier is Tier.DEVICE:
            return
        if own is None:
            self.counters.unknown_blocks += 1
            return
        holders = self._holders[tier]
        mask = holders.get(own, 0) & ~(1 << worker)  # 0: it went by another name already
        if mask:
            holders[own] = mask
        else:
            holders.pop(own, None)

    def _clear(self, worker: Slot, names: Names, tier: Tier) -> None:
        for block_hash, (_, tiers) in list(names.held.items()):
            if tiers >> tier & 1:
                self._drop(worker, names, block_hash, tier)

    def _forget(self, worker: Slot) -> None:
        """Nothing is known of a worker any more, not even names."""
        names = self._names.get(worker)
        if names is not None:
            for tier in SLOWER:
                self._clear(worker, names, tier)
            del self._names[worker]
