"""The stations of a cluster, when each of them is due, and who has news at an instant's end."""

from heapq import heappush
from typing import Final

from dynosim.cluster.pool import Worker
from dynosim.cluster.station import Station
from dynosim.cluster.tier_links import TierLinks
from dynosim.cluster.transfers import Transfers
from dynosim.cluster.worker_tiers import TierStation
from dynosim.engine.engine import Engine
from dynosim.engine.lock_step import LockStep
from dynosim.engine.pace import NEVER

# Ours are named beside the protocol, so that a compiler calls them directly.
AnyStation = Engine | LockStep | Transfers | TierStation | TierLinks | Station

NO_STATION: Final = -1


class Agenda:
    """What is due next, and who may start something once an instant is over.

    A station goes by its number: the lower goes first in an instant. The cluster's loop takes what
    is due from `ends`, and reads `touched` and `passed_to`; all others only add.
    """

    def __init__(self) -> None:
        self.stations: list[AnyStation] = []
        self.worker_at: list[Worker | None] = []  # by station; None: not of one worker alone
        # Heap of (time, station); an entry is void if the station's `next_ms` is another by now.
        # The last one, of no station, spares the loop to ask whether there is one: it lies behind
        # all that can happen.
        self.ends: list[tuple[float, int]] = [(NEVER, NO_STATION)]
        self.touched: list[int] = []  # stations with news in the current instant
        self.passed_to: list[int] = []  # of those the ones that got what left others
        self._expected_ms: list[float] = []  # by station, see `expect`

    def add(self, station: AnyStation, worker: Worker | None = None) -> int:
        """Run a station from now on; returns its number."""
        self.stations.append(station)
        self.worker_at.append(worker)
        self._expected_ms.append(NEVER)
        return len(self.stations) - 1

    def next_ms(self) -> float:
        """When the next station is due; infinity: none."""
        return min([station.next_ms for station in self.stations], default=NEVER)

    # ---- stations whose time moves with what others do -----------------------------------------

    def expect(self, station_id: int, next_ms: float) -> None:
        """Come back to a station at its `next_ms`, if it is not expected then already."""
        if next_ms != self._expected_ms[station_id]:
            self._expected_ms[station_id] = next_ms
            if next_ms != NEVER:
                heappush(self.ends, (next_ms, station_id))

    def came(self, station_id: int) -> None:
        """What a station was expected for has happened."""
        self._expected_ms[station_id] = NEVER

    # ---- workers whose engines were told something ---------------------------------------------

    def moved(self, worker: Worker) -> None:
        """What a worker's engine is doing ends at another time."""
        heappush(self.ends, (worker.engine.next_ms, worker.station_id))

    def has_news(self, worker: Worker, has_moved: bool) -> None:
        """A worker's engine was told something: its end has moved, or it may start now."""
        if has_moved:
            self.moved(worker)
        elif worker.engine.next_ms == NEVER:
            self.passed_to.append(worker.station_id)

    def touch_passed_to(self) -> None:
        """Who got what others left has news now."""
        self.touched += self.passed_to
        self.passed_to.clear()
