"""What workers hold, kept the plain way: every block with all that is before it."""

from collections.abc import Sequence

from dynosim.blocks.tier import SLOWER, Tier
from dynosim.indexer.answers import IndexCounters
from dynosim.indexer.base import BlockEvent, Removed, Stored

Chain = tuple[int, ...]
"""A block: the prompt up to and including it."""


def leading(prompt: Chain, held: set[Chain], start: int = 0) -> int:
    """How many blocks of a prompt, from `start` on, are held without a hole."""
    depth = start
    while depth < len(prompt) and prompt[: depth + 1] in held:
        depth += 1
    return depth - start


class PlainIndex:
    """What workers' events say that they hold, by tier.

    A block on the device needs the block before it there too; one in a slower tier needs one that
    has been in any tier, and names of its own for equal blocks. What was on the device before
    anything was slower, and is gone, does not count. On the device the newest of clashing names
    counts. `counters` are those of the device alone.
    """

    def __init__(self) -> None:
        self.counters = IndexCounters()
        self.device: dict[int, dict[int, Chain]] = {}  # worker -> name -> block
        self.anywhere: dict[int, dict[int, tuple[Chain, frozenset[Tier]]]] = {}
        self.has_memory: set[int] = set()  # workers that have been told of anything slower

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account."""
        anywhere = self.anywhere.setdefault(worker, {})
        device = self.device.setdefault(worker, {})
        if isinstance(event, Stored):
            if event.tier is not Tier.DEVICE:
                self.has_memory.add(worker)
            _store_anywhere(anywhere, event)
            if event.tier is Tier.DEVICE:
                self._store(device, event)
        elif isinstance(event, Removed):
            for name in event.block_hashes:
                self._drop(worker, name, event.tier)
                if event.tier is Tier.DEVICE:
                    is_known = device.pop(name, None) is not None
                    self.counters.removed_blocks += is_known
                    self.counters.unknown_blocks += not is_known
        elif event.tier is None:
            self.remove_worker(worker)
        else:
            for name in list(anywhere):
                self._drop(worker, name, event.tier)
            if event.tier is Tier.DEVICE:
                device.clear()

    def find_matches(self, prompt: Sequence[int]) -> dict[int, int]:
        """Leading blocks on the device, of each worker that has any there."""
        depths = {worker: self.depths(worker, tuple(prompt))[0] for worker in self.device}
        return {worker: depth for worker, depth in depths.items() if depth}

    def depths(self, worker: int, prompt: Chain, guessed: int = 0) -> tuple[int, ...]:
        """Leading blocks on the device (or guessed there), then further ones by tier."""
        anywhere = self.anywhere.get(worker, {}).values()
        depths = [max(guessed, leading(prompt, set(self.device.get(worker, {}).values())))]
        for tier in SLOWER:
            held = {chain for chain, tiers in anywhere if tier in tiers}
            depths.append(leading(prompt, held, sum(depths)))
        return tuple(depths)

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        self.device.pop(worker, None)
        self.anywhere.pop(worker, None)
        self.has_memory.discard(worker)

    @property
    def size(self) -> int:
        """(worker, block) pairs held on devices."""
        return sum(map(len, self.device.values()))

    @property
    def slower_size(self) -> int:
        """(worker, block) pairs held in slower tiers, each tier counted."""
        places = [tiers for held in self.anywhere.values() for _, tiers in held.values()]
        return sum(len(tiers - {Tier.DEVICE}) for tiers in places)

    def _drop(self, worker: int, name: int, tier: Tier) -> None:
        held = self.anywhere[worker]
        if name not in held:
            return
        chain, tiers = held[name]
        held[name] = chain, tiers - {tier}
        if not held[name][1] and worker not in self.has_memory:
            del held[name]

    def _store(self, device: dict[int, Chain], event: Stored) -> None:
        if event.parent is not None and event.parent not in device:
            self.counters.unknown_parents += 1
            return
        chain = () if event.parent is None else device[event.parent]
        for name, local in zip(event.block_hashes, event.local_hashes, strict=True):
            self.counters.duplicate_blocks += name in device
            self.counters.stored_blocks += name not in device
            chain = (*chain, local)
            for older in [other for other, held in device.items() if held == chain]:
                del device[older]
            device[name] = chain


def _store_anywhere(held: dict[int, tuple[Chain, frozenset[Tier]]], event: Stored) -> None:
    if event.parent is not None and event.parent not in held:
        return
    chain = () if event.parent is None else held[event.parent][0]
    for name, local in zip(event.block_hashes, event.local_hashes, strict=True):
        chain = (*chain, local)
        tiers = held[name][1] if name in held else frozenset()
        held[name] = chain, tiers | {event.tier}
