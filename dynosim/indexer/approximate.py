"""Guesses at what workers hold, from the router's own decisions: for engines without KV events.

Where a prompt was sent, its blocks will be. Forgetting is guesswork too: either after a time
(`ttl`), or when a worker's capacity must be exceeded (`lru`), with the blocks of requests in flight
kept and of the others those released first, deepest first, forgotten.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from dynosim.blocks.hashing import sequence_hashes
from dynosim.errors import ConfigError, InvariantError
from dynosim.indexer.answers import IndexCounters, Overlaps
from dynosim.indexer.base import DEFAULT_TTL_MS, BlockEvent, Guess, Index
from dynosim.indexer.tiers import NOTHING, TieredIndex, TierOverlaps
from dynosim.workers.ids import Slot

MAX_BLOCKS = 1 << 20  # of all workers together
KEPT_SHARE = 0.8  # after pruning


class ApproximateIndex:
    """Prefix index fed by placements; implements `RoutingFollower`.

    With `capacity_blocks` (per worker) it forgets by capacity, otherwise after `ttl_ms` without a
    new placement, and then never keeps more than `max_blocks` in all: beyond that those that expire
    first go, down to a share. Time must not run backwards. Raises: ConfigError for a limit that is
    not above 0.
    """

    def __init__(
        self,
        *,
        ttl_ms: float = DEFAULT_TTL_MS,
        max_blocks: int = MAX_BLOCKS,
        capacity_blocks: int | None = None,
    ) -> None:
        for key, limit in (
            ("ttl_ms", ttl_ms),
            ("max_blocks", max_blocks),
            ("capacity_blocks", capacity_blocks),
        ):
            if limit is not None and not limit > 0:
                raise ConfigError(f"{key} of an approximate index: {limit}; use more than 0")
        self.counters = IndexCounters()
        self._memory: _Timed | _Bounded
        self._holders: dict[int, int] = {}  # sequence hash -> workers
        if capacity_blocks is None:
            self._memory = _Timed(self, ttl_ms, max_blocks)
        else:
            self._memory = _Bounded(self, capacity_blocks)
        self.size = 0

    def apply(self, worker: Slot, event: BlockEvent) -> None:
        """It takes no events. Raises: InvariantError."""
        raise InvariantError("an approximate index learns from placements, not from events")

    def expire(self, now_ms: float) -> None:
        """Forget what is too old."""
        self._memory.expire(now_ms)

    def note_routed(
        self, worker: Slot, request_id: Hashable, blocks: Sequence[int], now_ms: float
    ) -> None:
        """A prompt was sent to a worker, which will hold its blocks.

        A request in flight that is sent again leaves where it was.
        """
        self._memory.release(request_id)
        sequence = sequence_hashes(blocks)
        for block in sequence:
            before = self._holders.get(block, 0)
            if before >> worker & 1:
                self.counters.duplicate_blocks += 1
            else:
                self._holders[block] = before | 1 << worker
                self.counters.stored_blocks += 1
                self.size += 1
        self._memory.keep(worker, request_id, sequence, now_ms)

    def note_end(self, request_id: Hashable, now_ms: float) -> None:
        """A request ended: its blocks are in use no longer."""
        self._memory.release(request_id)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who should hold how many leading blocks; `blocks` are local hashes."""
        self.counters.queries += 1
        self.counters.query_blocks += len(blocks)
        if not blocks or blocks[0] not in self._holders:  # a first block's two hashes are equal
            self.counters.lookups += len(blocks[:1])
            return Overlaps([])
        classes: list[tuple[int, int]] = []
        alive = -1
        depth = 0
        for block in sequence_hashes(blocks):
            self.counters.lookups += 1
            still = alive & self._holders.get(block, 0)
            if still != alive and depth:
                classes.append((alive ^ still, depth))
            alive = still
            if not still:
                break
            depth += 1
        if alive and depth:
            classes.append((alive, depth))
        return Overlaps(classes)

    def remove_worker(self, worker: Slot) -> None:
        """Forget everything about a worker."""
        self._memory.remove_worker(worker)

    def snapshot(self) -> list[Guess]:
        """All there is to know, in the order in which it will be forgotten; see `restore`."""
        return self._memory.snapshot()

    def restore(self, snapshot: list[Guess]) -> None:
        """Make an empty index with the same limits what another one was."""
        self._memory.restore(snapshot)

    def enter(self, worker: Slot, blocks: Iterable[int]) -> None:
        """A worker is taken to hold blocks that it was not taken to hold before."""
        holders = self._holders
        bit = 1 << worker
        for block in blocks:
            holders[block] = holders.get(block, 0) | bit
            self.size += 1

    def forget(self, worker: Slot, block: int) -> None:
        """A worker is no longer taken to hold a block."""
        left = self._holders[block] & ~(1 << worker)
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]
        self.counters.removed_blocks += 1
        self.size -= 1


class _Timed:
    """Forgets after a time: blocks in the order in which they expire, deepest first."""

    def __init__(self, index: ApproximateIndex, ttl_ms: float, max_blocks: int) -> None:
        self._index = index
        self._ttl_ms = ttl_ms
        self._max_blocks = max_blocks
        self._expiry_ms: OrderedDict[tuple[Slot, int], float] = OrderedDict()  # (worker, block)

    def keep(self, worker: Slot, request_id: Hashable, sequence: list[int], now_ms: float) -> None:
        queue = self._expiry_ms
        expiry_ms = now_ms + self._ttl_ms
        for block in reversed(sequence):
            key = (worker, block)
            queue[key] = expiry_ms
            queue.move_to_end(key)
        if len(queue) > self._max_blocks:
            while len(queue) > KEPT_SHARE * self._max_blocks:
                self._index.forget(*queue.popitem(last=False)[0])

    def release(self, request_id: Hashable) -> None:
        """Time alone counts."""

    def expire(self, now_ms: float) -> None:
        queue = self._expiry_ms
        while queue:
            key = next(iter(queue))
            if queue[key] > now_ms:
                break
            del queue[key]
            self._index.forget(*key)

    def remove_worker(self, worker: Slot) -> None:
        for key in [key for key in self._expiry_ms if key[0] == worker]:
            del self._expiry_ms[key]
            self._index.forget(*key)

    def snapshot(self) -> list[Guess]:
        """What expires together."""
        groups: list[Guess] = []
        last_worker, last_ms = Slot(-1), 0.0
        blocks: list[int] = []
        for (worker, block), expiry_ms in self._expiry_ms.items():
            if worker != last_worker or expiry_ms != last_ms:
                last_worker, last_ms = worker, expiry_ms
                blocks = []
                groups.append(Guess(worker, expiry_ms, [], blocks))
            blocks.append(block)
        return groups

    def restore(self, snapshot: list[Guess]) -> None:
        for guess in snapshot:
            self._index.enter(guess.worker, guess.blocks)
            assert guess.expiry_ms is not None
            for block in guess.blocks:
                self._expiry_ms[guess.worker, block] = guess.expiry_ms


class _Share:
    """What one worker is taken to hold: blocks of requests in flight, and idle ones."""

    __slots__ = ("idle", "leases", "refs")

    def __init__(self) -> None:
        self.leases: dict[Hashable, list[int]] = {}  # request -> its blocks
        self.refs: dict[int, int] = {}  # block -> requests in flight that use it
        self.idle: OrderedDict[int, None] = OrderedDict()  # the next to be forgotten first


class _Bounded:
    """Forgets what was released first, when a worker's capacity is exceeded."""

    def __init__(self, index: ApproximateIndex, capacity_blocks: int) -> None:
        self._index = index
        self._capacity_blocks = capacity_blocks
        self._shares: dict[Slot, _Share] = {}  # by worker
        self._worker_of: dict[Hashable, Slot] = {}  # request -> worker

    def keep(self, worker: Slot, request_id: Hashable, sequence: list[int], now_ms: float) -> None:
        share = self._shares.setdefault(worker, _Share())
        refs, idle = share.refs, share.idle
        for block in sequence:
            refs[block] = refs.get(block, 0) + 1
            idle.pop(block, None)
        share.leases[request_id] = sequence
        self._worker_of[request_id] = worker
        self._trim(worker, share)

    def release(self, request_id: Hashable) -> None:
        worker = self._worker_of.pop(request_id, None)
        if worker is None:
            return
        share = self._shares[worker]
        refs = share.refs
        for block in reversed(share.leases.pop(request_id)):
            refs[block] -= 1
            if not refs[block]:
                del refs[block]
                share.idle[block] = None
        self._trim(worker, share)

    def expire(self, now_ms: float) -> None:
        """Capacity alone counts."""

    def remove_worker(self, worker: Slot) -> None:
        share = self._shares.pop(worker, None)
        if share is None:
            return
        for request_id in share.leases:
            del self._worker_of[request_id]
        for block in (*share.refs, *share.idle):
            self._index.forget(worker, block)

    def snapshot(self) -> list[Guess]:
        """What each worker is taken to hold."""
        return [
            Guess(worker, None, list(share.leases.items()), list(share.idle))
            for worker, share in self._shares.items()
        ]

    def restore(self, snapshot: list[Guess]) -> None:
        for guess in snapshot:
            worker = guess.worker
            share = self._shares[worker] = _Share()
            for request_id, sequence in guess.leases:
                share.leases[request_id] = sequence
                self._worker_of[request_id] = worker
                for block in sequence:
                    share.refs[block] = share.refs.get(block, 0) + 1
            share.idle.update(dict.fromkeys(guess.blocks))
            self._index.enter(worker, (*share.refs, *share.idle))

    def _trim(self, worker: Slot, share: _Share) -> None:
        idle = share.idle
        while idle and len(share.refs) + len(idle) > self._capacity_blocks:
            self._index.forget(worker, idle.popitem(last=False)[0])


class PredictedIndex:
    """Events, and beside them a guess for the moments until they come; the larger match counts.

    It keeps the siblings of a burst together, which otherwise spread before the first of them has
    been computed. Slower tiers continue the larger match.
    """

    def __init__(self, primary: Index[BlockEvent], side: ApproximateIndex) -> None:
        self.primary = primary
        given: object = primary  # or a type checker takes it for impossible that it has tiers
        self._tiers = given if isinstance(given, TieredIndex) else None
        self.side = side
        self.counters = primary.counters

    def expire(self, now_ms: float) -> None:
        """Forget guesses that are too old."""
        self.side.expire(now_ms)

    def note_routed(
        self, worker: Slot, request_id: Hashable, blocks: Sequence[int], now_ms: float
    ) -> None:
        """A prompt was sent to a worker, which will hold its blocks."""
        self.side.note_routed(worker, request_id, blocks, now_ms)

    def note_end(self, request_id: Hashable, now_ms: float) -> None:
        """A request ended: its blocks are in use no longer."""
        self.side.note_end(request_id, now_ms)

    def snapshot(self) -> list[Guess]:
        """The guesses, in the order in which they will be forgotten; see `restore`."""
        return self.side.snapshot()

    def restore(self, snapshot: list[Guess]) -> None:
        """Let an index without guesses have those of another one."""
        self.side.restore(snapshot)

    def apply(self, worker: Slot, event: BlockEvent) -> None:
        """Take one event of a worker into account."""
        self.primary.apply(worker, event)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds, or soon will hold, how many leading blocks."""
        return merge_overlaps(self.primary.find_matches(blocks), self.side.find_matches(blocks))

    @property
    def has_slower(self) -> bool:
        """Whether anybody holds anything but on its device."""
        return self._tiers is not None and self._tiers.has_slower

    def find_tier_matches(self, blocks: Sequence[int]) -> TierOverlaps:
        """Who holds, or soon will hold, how many leading blocks, and in which tiers."""
        device = self.find_matches(blocks)
        if self._tiers is None:
            return TierOverlaps(device, NOTHING, NOTHING, NOTHING)
        return self._tiers.continued(device, blocks)

    def remove_worker(self, worker: Slot) -> None:
        """Forget everything about a worker."""
        self.primary.remove_worker(worker)
        self.side.remove_worker(worker)

    @property
    def size(self) -> int:
        """(worker, block) pairs known from events."""
        return self.primary.size


def merge_overlaps(one: Overlaps, other: Overlaps) -> Overlaps:
    """Per worker the larger depth."""
    if not one.classes or not other.classes:
        return one if one.classes else other
    classes: list[tuple[int, int]] = []
    taken = 0
    for mask, depth in sorted(one.classes + other.classes, key=_depth, reverse=True):
        new = mask & ~taken
        taken |= mask
        if new and classes and classes[-1][1] == depth:
            classes[-1] = (classes[-1][0] | new, depth)
        elif new:
            classes.append((new, depth))
    return Overlaps(classes[::-1])


def _depth(entry: tuple[int, int]) -> int:
    return entry[1]
