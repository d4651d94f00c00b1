"""Guesses at what workers hold, from the router's own decisions: for engines without KV events.

Where a prompt was sent, its blocks will be. Forgetting is guesswork too: either after a time
(`ttl`), or when a worker's capacity must be exceeded (`lru`), with the blocks of requests in hand
kept and of the others those released first, deepest first, forgotten.
"""

from collections.abc import Hashable, Sequence
from heapq import heappop, heappush

from dynosim.hashing import sequence_hashes
from dynosim.indexer.base import BlockEvent, IndexCounters, Indexer, Overlaps, members

DEFAULT_TTL_MS = 120_000.0
MAX_BLOCKS = 1 << 20  # of all workers together
KEPT_SHARE = 0.8  # after pruning


class ApproximateIndex:
    """Prefix index fed by placements; implements `RoutingFollower`.

    With `capacity_blocks` (per worker) it forgets by capacity, otherwise after `ttl_ms` without a
    new placement, and then never keeps more than `max_blocks` in all.
    """

    def __init__(
        self,
        *,
        ttl_ms: float = DEFAULT_TTL_MS,
        max_blocks: int = MAX_BLOCKS,
        capacity_blocks: int | None = None,
    ) -> None:
        self.counters = IndexCounters()
        self._memory: _Timed | _Bounded
        self._holders: dict[int, int] = {}  # sequence hash -> workers
        if capacity_blocks is None:
            self._memory = _Timed(self, ttl_ms, max_blocks)
        else:
            self._memory = _Bounded(self, capacity_blocks)
        self.size = 0

    def expire(self, now_ms: float) -> None:
        """Forget what is too old."""
        self._memory.expire(now_ms)

    def note_routed(
        self, worker: int, request_id: Hashable, blocks: Sequence[int], now_ms: float
    ) -> None:
        """A prompt was sent to a worker, which will hold its blocks."""
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

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        self._memory.remove_worker(worker)
        for block, workers in list(self._holders.items()):
            if workers >> worker & 1:
                self.forget(worker, block)

    def forget(self, worker: int, block: int) -> None:
        """A worker is no longer taken to hold a block."""
        left = self._holders[block] & ~(1 << worker)
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]
        self.counters.removed_blocks += 1
        self.size -= 1


class _Timed:
    """Forgets after a time."""

    def __init__(self, index: ApproximateIndex, ttl_ms: float, max_blocks: int) -> None:
        self._index = index
        self._ttl_ms = ttl_ms
        self._max_blocks = max_blocks
        self._expiry_ms: dict[tuple[int, int], float] = {}  # (worker, block)
        self._queue: list[tuple[float, int, int, int]] = []  # expiry, -position, worker, block

    def keep(self, worker: int, request_id: Hashable, sequence: list[int], now_ms: float) -> None:
        expiry_ms = now_ms + self._ttl_ms
        for position, block in enumerate(sequence):
            self._expiry_ms[worker, block] = expiry_ms
            heappush(self._queue, (expiry_ms, -position, worker, block))
        if len(self._expiry_ms) > self._max_blocks:
            self._forget_until(int(KEPT_SHARE * self._max_blocks))

    def release(self, request_id: Hashable) -> None:
        """Time alone counts."""

    def expire(self, now_ms: float) -> None:
        while self._queue and self._queue[0][0] <= now_ms:
            self._pop()

    def remove_worker(self, worker: int) -> None:
        for key in [key for key in self._expiry_ms if key[0] == worker]:
            del self._expiry_ms[key]

    def _forget_until(self, max_blocks: int) -> None:
        while self._queue and len(self._expiry_ms) > max_blocks:
            self._pop()

    def _pop(self) -> None:
        expiry_ms, _, worker, block = heappop(self._queue)
        if self._expiry_ms.get((worker, block)) == expiry_ms:  # not refreshed since
            del self._expiry_ms[worker, block]
            self._index.forget(worker, block)


class _Bounded:
    """Forgets what was released first, when a worker's capacity is exceeded."""

    def __init__(self, index: ApproximateIndex, capacity_blocks: int) -> None:
        self._index = index
        self._capacity_blocks = capacity_blocks
        self._leases: dict[Hashable, tuple[int, list[int]]] = {}
        self._refs: dict[int, dict[int, int]] = {}  # worker -> block -> requests in hand
        self._released: dict[int, dict[int, int]] = {}  # worker -> block -> when, as a number
        self._queues: dict[int, list[tuple[int, int, int]]] = {}  # when, -position, block
        self._epoch = 0

    def keep(self, worker: int, request_id: Hashable, sequence: list[int], now_ms: float) -> None:
        refs = self._refs.setdefault(worker, {})
        released = self._released.setdefault(worker, {})
        for block in sequence:
            refs[block] = refs.get(block, 0) + 1
            released.pop(block, None)
        self._leases[request_id] = (worker, sequence)
        self._trim(worker)

    def release(self, request_id: Hashable) -> None:
        worker, sequence = self._leases.pop(request_id, (-1, []))
        if worker not in self._refs:
            return
        refs, released = self._refs[worker], self._released[worker]
        queue = self._queues.setdefault(worker, [])
        self._epoch += 1
        for position, block in enumerate(sequence):
            refs[block] -= 1
            if not refs[block]:
                del refs[block]
                released[block] = self._epoch
                heappush(queue, (self._epoch, -position, block))
        self._trim(worker)

    def expire(self, now_ms: float) -> None:
        """Capacity alone counts."""

    def remove_worker(self, worker: int) -> None:
        for table in (self._refs, self._released, self._queues):
            table.pop(worker, None)

    def _trim(self, worker: int) -> None:
        refs, released = self._refs[worker], self._released[worker]
        queue = self._queues.setdefault(worker, [])
        while queue and len(refs) + len(released) > self._capacity_blocks:
            epoch, _, block = heappop(queue)
            if released.get(block) == epoch:
                del released[block]
                self._index.forget(worker, block)


class PredictedIndex:
    """Events, and beside them a guess for the moments until they come; the larger match counts.

    It keeps the siblings of a burst together, which otherwise spread before the first of them has
    been computed.
    """

    def __init__(self, primary: Indexer, side: ApproximateIndex) -> None:
        self.primary = primary
        self.side = side
        self.counters = primary.counters
        self.expire = side.expire
        self.note_routed = side.note_routed
        self.note_end = side.note_end

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account."""
        self.primary.apply(worker, event)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds, or soon will hold, how many leading blocks."""
        return merge_overlaps(self.primary.find_matches(blocks), self.side.find_matches(blocks))

    def remove_worker(self, worker: int) -> None:
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
    depths = one.by_worker()
    for mask, depth in other.classes:
        for worker in members(mask):
            depths[worker] = max(depth, depths.get(worker, 0))
    classes: dict[int, int] = {}
    for worker, depth in depths.items():
        classes[depth] = classes.get(depth, 0) | 1 << worker
    return Overlaps([(classes[depth], depth) for depth in sorted(classes)])
