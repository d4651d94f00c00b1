"""The links to tiers that workers share or that lie beyond the nearest: loads and writes on them.

Every worker reads and writes each such tier over a link of its own; all who share a tier may have a
rate in common, too (`dynosim.memory.network`). What a worker is to write to a tier goes in batches:
while one is on its way, the next one gathers.
"""

from dynosim.cluster.pool import Worker
from dynosim.engine.plan import CopyJob, Write
from dynosim.engine.sequence import Sequence
from dynosim.memory.network import FairNetwork, Transfer
from dynosim.memory.tiers import TiersSpec

NOBODY: list[Sequence] = []  # never changed


class _Batch:
    """What a worker writes to one tier at once."""

    __slots__ = ("tier", "worker", "writes")

    def __init__(self, worker: Worker, tier: int, writes: list[Write]) -> None:
        self.worker = worker
        self.tier = tier
        self.writes = writes


class TierLinks:
    """All of a cluster, as a station. `arrived` are the loads to take, each with its worker."""

    def __init__(self) -> None:
        self.next_ms = float("inf")
        self.arrived: list[tuple[Worker, CopyJob]] = []
        self._network = FairNetwork()
        self._resources: dict[tuple[str, int, str, str], int] = {}
        self._loads: dict[int, tuple[Worker, CopyJob]] = {}  # by number of the transfer
        self._batches: dict[int, _Batch] = {}  # by number of the transfer
        self._transfers: dict[int, Transfer] = {}  # under way, by number
        self._gathering: dict[tuple[int, int], list[Write]] = {}  # by worker and tier

    def begin_load(self, worker: Worker, job: CopyJob, now_ms: float) -> None:
        """A worker loads; what comes from its own nearest tier may have been begun elsewhere."""
        spec = worker.pool.tiers
        assert spec is not None
        counts: dict[int, int] = {}  # -> blocks
        if job.spans and spec.tiers[0].is_shared:
            counts[0] = job.num_blocks
        for part in job.beyond:
            counts[part.tier] = counts.get(part.tier, 0) + part.span.end - part.span.first
        for tier, num_blocks in counts.items():
            starts_ms = max(job.starts_ms, now_ms) + spec.tiers[tier].latency_ms
            path = self._path(worker, spec, tier, "read")
            transfer = self._network.begin(path, num_blocks * spec.block_bytes, starts_ms, now_ms)
            self._loads[transfer.number] = worker, job
            self._transfers[transfer.number] = transfer
            job.num_left += 1
        self.next_ms = self._network.next_ms

    def write(self, worker: Worker, writes: list[Write], now_ms: float) -> None:
        """A worker is to write to tiers beyond its nearest."""
        for write in writes:
            key = worker.worker_id, write.tier
            gathering = self._gathering.get(key)
            if gathering is None:
                self._gathering[key] = []
                self._send(_Batch(worker, write.tier, [write]), now_ms)
            else:
                gathering.append(write)
        self.next_ms = self._network.next_ms

    def drop(self, worker: Worker, now_ms: float) -> None:
        """A worker is gone: its loads are over, and what it wrote will not arrive."""
        for number, (loader, _) in list(self._loads.items()):
            if loader is worker:
                self._network.cancel(self._transfers.pop(number), now_ms)
                del self._loads[number]
        for number, batch in list(self._batches.items()):
            if batch.worker is worker:
                self._network.cancel(self._transfers.pop(number), now_ms)
                del self._batches[number]
                for write in batch.writes:
                    worker.engine.core.lost(write)
        for key in [key for key in self._gathering if key[0] == worker.worker_id]:
            for write in self._gathering.pop(key):
                worker.engine.core.lost(write)
        self.next_ms = self._network.next_ms

    # ---- as a station --------------------------------------------------------------------------

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        """Requests do not come here by themselves."""
        raise NotImplementedError

    def start(self, now_ms: float) -> None:
        """Nothing waits here."""

    def complete(self, now_ms: float) -> list[Sequence]:
        """Take the loads that have ended into `arrived`; no request is over by that."""
        for transfer in self._network.complete(now_ms):
            del self._transfers[transfer.number]
            batch = self._batches.pop(transfer.number, None)
            if batch is not None:
                self._end_batch(batch, now_ms)
                continue
            worker, job = self._loads.pop(transfer.number)
            job.num_left -= 1
            if job.num_left == 0:
                self.arrived.append((worker, job))
        self.next_ms = self._network.next_ms
        return NOBODY

    # ---- inside --------------------------------------------------------------------------------

    def _end_batch(self, batch: _Batch, now_ms: float) -> None:
        """Chunks have arrived; those gathered meanwhile go next, and what follows from them."""
        worker = batch.worker
        worker.engine.written(batch.writes, now_ms)
        key = worker.worker_id, batch.tier
        gathered = self._gathering.pop(key)
        if gathered:
            self._gathering[key] = []
            self._send(_Batch(worker, batch.tier, gathered), now_ms)

    def _send(self, batch: _Batch, now_ms: float) -> None:
        spec = batch.worker.pool.tiers
        assert spec is not None
        num_blocks = sum([write.num_blocks for write in batch.writes])
        path = self._path(batch.worker, spec, batch.tier, "write")
        starts_ms = now_ms + spec.tiers[batch.tier].latency_ms
        transfer = self._network.begin(path, num_blocks * spec.block_bytes, starts_ms, now_ms)
        self._batches[transfer.number] = batch
        self._transfers[transfer.number] = transfer

    def _path(self, worker: Worker, spec: TiersSpec, tier: int, way: str) -> tuple[int, ...]:
        """The capacities that a copy takes part of."""
        one = spec.tiers[tier]
        own_gb_s, total_gb_s = one.write_gb_s, one.total_write_gb_s
        if way == "read":
            own_gb_s, total_gb_s = one.read_gb_s, one.total_read_gb_s
        path = [self._resource(one.name, worker.worker_id, "", way, own_gb_s)]
        if total_gb_s is not None:
            place = worker.card.topology[spec.domain] if one.scope == "node" else ""
            path.append(self._resource(one.name, -1, place, way, total_gb_s))
        return tuple(path)

    def _resource(self, name: str, worker_id: int, place: str, way: str, gb_s: float) -> int:
        key = name, worker_id, place, way
        found = self._resources.get(key)
        if found is None:
            found = self._resources[key] = self._network.add_resource(gb_s)
        return found
