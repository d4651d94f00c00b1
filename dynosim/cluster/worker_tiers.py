"""The tiers of workers in the cluster's loop: whoever waits for a copy hears when it has ended."""

from dynosim.cluster.journal import TierColumns
from dynosim.cluster.pool import Worker
from dynosim.engine.instant import instant_end
from dynosim.engine.lanes import CopyLanes
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence

NOBODY: list[Sequence] = []  # never changed


class TierStation:
    """The copies of one worker, as a station.

    Loads end when they end. Stores are reported with the worker's steps, unless somebody waits for
    them: then that is an event, too.
    """

    __slots__ = ("_columns", "_lanes", "next_ms", "station_id", "told_ms", "worker")

    def __init__(self, worker: Worker, lanes: CopyLanes, columns: TierColumns) -> None:
        self.next_ms = NEVER
        self.told_ms = NEVER  # what the cluster's loop knows of it
        self.station_id = -1
        self.worker = worker
        self._lanes = lanes
        self._columns = columns

    def look_ahead(self) -> float:
        """Set and return when to come by next."""
        lanes = self._lanes
        next_ms = lanes.next_load_ms
        if self.worker.engine.core.awaits_copies:
            next_ms = min(next_ms, lanes.next_store_ms)
        self.next_ms = next_ms
        return next_ms

    def report(self, now_ms: float) -> bool:
        """Tell the engine what has ended; returns whether its `next_ms` has moved."""
        engine, columns = self.worker.engine, self._columns
        has_moved = False
        for load in self._lanes.take_loaded(instant_end(now_ms)):
            columns.loaded(load)
            has_moved |= engine.copied(load.job, now_ms)
        if engine.core.awaits_copies:
            engine.hear_stored(now_ms)
        self.told_ms = NEVER
        return has_moved

    # ---- as a station --------------------------------------------------------------------------

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        """Requests do not come here by themselves."""
        raise NotImplementedError

    def start(self, now_ms: float) -> None:
        """Nothing waits here."""

    def complete(self, now_ms: float) -> list[Sequence]:
        """What has ended is reported by `report`; no request is over by that."""
        return NOBODY
