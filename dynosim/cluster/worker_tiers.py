"""The tiers of workers in the cluster's loop: whoever waits for a copy hears when it has ended."""

from dynosim.cluster.journal import TierColumns
from dynosim.cluster.pool import Worker
from dynosim.cluster.tier_links import TierLinks
from dynosim.engine.instant import instant_end
from dynosim.engine.lanes import CopyLanes
from dynosim.engine.pace import NEVER
from dynosim.engine.plan import CopyJob
from dynosim.engine.sequence import Sequence
from dynosim.engine.tiers import Beyond

NOBODY: list[Sequence] = []  # never changed


class TierStation:
    """The copies of one worker, as a station.

    Loads end when they end. Stores are reported with the worker's steps, unless somebody waits for
    them or something follows from them elsewhere: then that is an event, too.
    """

    __slots__ = (
        "_columns",
        "_hears_stores",
        "_lanes",
        "beyond",
        "is_shared",
        "next_ms",
        "station_id",
        "worker",
    )

    def __init__(
        self, worker: Worker, lanes: CopyLanes, beyond: Beyond, columns: TierColumns
    ) -> None:
        self.next_ms = NEVER
        self.station_id = -1
        self.worker = worker
        self.beyond = beyond
        spec = worker.pool.tiers
        assert spec is not None
        self.is_shared = spec.tiers[0].is_shared
        self._hears_stores = spec.goes_elsewhere
        self._lanes = lanes
        self._columns = columns

    def look_ahead(self) -> float:
        """Set and return when to come by next."""
        lanes = self._lanes
        next_ms = lanes.next_load_ms
        if self._hears_stores or self.worker.engine.core.awaits_copies:
            next_ms = min(next_ms, lanes.next_store_ms)
        self.next_ms = next_ms
        return next_ms

    def report(self, now_ms: float) -> bool:
        """Tell the engine what has ended; returns whether its `next_ms` has moved."""
        engine = self.worker.engine
        has_moved = False
        for job in self._lanes.take_loaded(instant_end(now_ms)):
            job.num_left -= 1
            if job.num_left == 0:
                has_moved |= self.loaded(job, now_ms)
        if self._hears_stores or engine.core.awaits_copies:
            engine.hear_stored(now_ms)
        return has_moved

    def loaded(self, job: CopyJob, now_ms: float) -> bool:
        """All of a load has come; returns whether the engine's `next_ms` has moved."""
        self._columns.loaded(job, now_ms)
        return self.worker.engine.copied(job, now_ms)

    def give_on(self, links: TierLinks, now_ms: float) -> None:
        """Hand over what goes over links that others use, too."""
        lanes, beyond = self._lanes, self.beyond
        if lanes.elsewhere:
            for job in lanes.elsewhere:
                links.begin_load(self.worker, job, now_ms)
            lanes.elsewhere.clear()
        if beyond.writes:
            links.write(self.worker, beyond.writes, now_ms)
            beyond.writes.clear()

    # ---- as a station --------------------------------------------------------------------------

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        """Requests do not come here by themselves."""
        raise NotImplementedError

    def start(self, now_ms: float) -> None:
        """Nothing waits here."""

    def complete(self, now_ms: float) -> list[Sequence]:
        """What has ended is reported by `report`; no request is over by that."""
        return NOBODY
