"""Places requests where there is nothing to choose: one worker, and nothing that could refuse them.

A router would send everything there; what is left of it is what it would have believed, for the
report: the index, asked and brought up to date as `KvChoice` does.
"""

from array import array
from collections.abc import Collection, Iterator

import numpy as np

from dynosim.cluster.block_names import ExtentNames
from dynosim.cluster.placement import Released
from dynosim.cluster.pool import Worker
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence
from dynosim.errors import InvariantError
from dynosim.indexer.extents import ExtentIndex
from dynosim.records import RoutingStats
from dynosim.workers.ids import Slot

ONLY_SLOT = Slot(0)


class LonePlacer:
    """Places everything on the first worker that joins; no other ever does."""

    def __init__(self, num_requests: int, names: ExtentNames, index: ExtentIndex) -> None:
        self.next_ms = NEVER
        self.hears_late = False
        self._names = names
        self._index = index
        self._worker: Worker | None = None
        self._overlap_blocks = array("d", [0.0]) * num_requests

    def join(self, worker: Worker, now_ms: float) -> None:
        """The worker has come; nobody asks for its first tokens."""
        if self._worker is not None:
            raise InvariantError(f"worker {worker.worker_id} joins one that was to be alone")
        self._worker = worker
        worker.token_log.first_tokens = None

    def leave(self, worker: Worker, now_ms: float) -> None:
        """Only processes make workers leave, and there are none."""
        raise InvariantError("the only worker leaves")

    def forget(self, indexes: Collection[int]) -> None:
        """Nothing is kept of requests in flight."""

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
        """The worker, once it is noted what it holds of the prompt."""
        worker = self._worker
        assert worker is not None
        engine = worker.engine
        path, _ = self._names.of(index)
        while True:
            overlaps = self._index.find_matches(path)
            if engine.run_steps <= 1 or not engine.settle(now_ms) or not self._collect(worker):
                break
        self._overlap_blocks[index] = overlaps.best_depth
        return worker.worker_id

    def receive(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """Pass on what was cached or evicted."""
        if worker.engine.unpublished:
            self._collect(worker)

    def give_up(self, index: int, worker: Worker | None, now_ms: float) -> None:
        """Nothing is kept of requests in flight."""

    def discount(self, index: int, worker: Worker, now_ms: float) -> None:
        """Nothing is kept of requests in flight."""

    def releases(self, now_ms: float) -> Iterator[Released]:
        """Nothing ever waits."""
        return iter(())

    def stats(self) -> RoutingStats:
        """What a router would have known."""
        if self._worker is not None:
            self._collect(self._worker)
        return RoutingStats(
            overlap_blocks=np.array(self._overlap_blocks),
            queued_ms=np.zeros(len(self._overlap_blocks)),
            num_queued=0,
            refused={},
            index_blocks=self._index.size,
            counters=self._index.counters.by_name(),
        )

    def kv_events(self) -> None:
        """Events have no times here."""

    def _collect(self, worker: Worker) -> bool:
        """Let the index know of new events; returns whether there were any."""
        events = worker.engine.core.take_events()
        if events:
            self._index.apply_all(ONLY_SLOT, events)
        return bool(events)
