"""Copies between workers and their tiers: who waits for one hears of it when it has ended."""

from dynosim.cluster.agenda import NO_STATION, Agenda
from dynosim.cluster.journal import Journal
from dynosim.cluster.pool import Worker
from dynosim.cluster.tier_links import TierLinks
from dynosim.cluster.tier_stores import TierStores
from dynosim.cluster.worker_tiers import TierStation
from dynosim.engine.pace import NEVER


class TierTraffic:
    """The copies of all workers, and the links on which some of them go."""

    def __init__(self, agenda: Agenda, stores: TierStores, journal: Journal) -> None:
        self.is_used = False  # some worker has had tiers
        self._agenda = agenda
        self._stores = stores
        self._journal = journal
        self._at: dict[int, TierStation] = {}  # by station
        self._of: dict[int, TierStation] = {}  # by the station of the worker's engine
        self._links = TierLinks()
        self._links_id = NO_STATION  # until somebody needs them

    def equip(self, worker: Worker) -> None:
        """Run a new worker's copies to and from its tiers, if it has any."""
        lanes, columns, spec = worker.engine.lanes, self._journal.tiers, worker.pool.tiers
        if lanes is None:
            return
        assert columns is not None and spec is not None
        tiers = TierStation(worker, lanes, self._stores.equip(worker, spec), columns)
        if spec.goes_elsewhere and self._links_id == NO_STATION:
            self._links_id = self._agenda.add(self._links)
        tiers.station_id = self._agenda.add(tiers)
        self._at[tiers.station_id] = self._of[worker.station_id] = tiers
        self.is_used = True

    def has(self, station_id: int) -> bool:
        """Whether a station is one of these."""
        return station_id in self._at or station_id == self._links_id

    def ended(self, station_id: int, now_ms: float) -> None:
        """Copies have ended at a station: whoever waits for them hears of it."""
        self._agenda.came(station_id)
        if station_id == self._links_id:
            self._take_onboarded(now_ms)
        else:
            self._report(self._at[station_id], now_ms)

    def look_ahead(self, engine_station_id: int, now_ms: float) -> None:
        """A worker may have begun copies: come back when the next one ends that matters."""
        tiers = self._of.get(engine_station_id)
        if tiers is not None:
            self._expect(tiers, now_ms)

    def lose(self, worker: Worker, now_ms: float) -> None:
        """A worker is lost, and so are its copies and what it alone held, if it has tiers."""
        tiers = self._of.pop(worker.station_id, None)
        if tiers is None:
            return
        del self._at[tiers.station_id]
        tiers.next_ms = NEVER
        self._links.drop(worker, now_ms)
        self._expect_links()
        self._stores.leave(worker)
        if tiers.is_shared:
            self._wake_sharers(worker)

    def leave(self, worker: Worker) -> None:
        """A worker is gone, and the memory of its host with it."""
        self._stores.leave(worker)

    # ---- inside --------------------------------------------------------------------------------

    def _report(self, tiers: TierStation, now_ms: float) -> None:
        """A worker hears of copies that have ended; so does who waits for what others store."""
        self._agenda.has_news(tiers.worker, tiers.report(now_ms))
        self._expect(tiers, now_ms)
        if tiers.is_shared:
            self._wake_sharers(tiers.worker)

    def _take_onboarded(self, now_ms: float) -> None:
        """Workers hear of loads that have come over links."""
        links = self._links
        for worker, job in links.arrived:
            has_moved = self._of[worker.station_id].loaded(job, now_ms)
            self._agenda.has_news(worker, has_moved)
        links.arrived.clear()
        for tiers in self._at.values():  # what has arrived may go on to a tier further on
            if tiers.beyond.writes:
                tiers.give_on(links, now_ms)
        self._expect_links()

    def _wake_sharers(self, worker: Worker) -> None:
        """Who waits for what comes to the tier that a worker shares asks for it again."""
        for other in self._at.values():
            sharer = other.worker
            if sharer.nearest_tier is worker.nearest_tier and sharer.engine.core.awaits_copies:
                self._agenda.has_news(sharer, has_moved=False)

    def _expect(self, tiers: TierStation, now_ms: float) -> None:
        if self._links_id != NO_STATION:
            tiers.give_on(self._links, now_ms)
            self._expect_links()
        self._agenda.expect(tiers.station_id, tiers.look_ahead())

    def _expect_links(self) -> None:
        if self._links_id != NO_STATION:
            self._agenda.expect(self._links_id, self._links.next_ms)
