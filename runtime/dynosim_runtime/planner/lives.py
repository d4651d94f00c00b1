"""The lives of live workers, by the same table as the twin's (`dynosim.workers.lifecycle`).

A worker is a name whose process may end and be started again; each time is a life of its own, with
a number of its own. Numbers grow, so that the youngest has the largest.
"""

from collections.abc import Mapping

from dynosim.planner.observation import PoolState, WorkerState
from dynosim.workers.lifecycle import Phase, WorkerEvent, next_phase

ALIVE = (Phase.STARTING, Phase.READY, Phase.DRAINING)


class WorkerLife:
    """One life. It holds its GPUs from its beginning until it is gone or has failed."""

    __slots__ = ("name", "phase", "pool", "since_ms", "worker_id")

    def __init__(self, worker_id: int, name: str, pool: str, now_ms: float) -> None:
        self.worker_id = worker_id
        self.name = name
        self.pool = pool
        self.phase = Phase.STARTING
        self.since_ms = now_ms


class LivingWorkers:
    """Everybody who is alive, by name."""

    def __init__(self) -> None:
        self._lives: dict[str, WorkerLife] = {}
        self._num_begun = 0

    def __contains__(self, name: str) -> bool:
        return name in self._lives

    def begin(self, name: str, pool: str, now_ms: float) -> WorkerLife:
        """A life begins; the one before it, of the same name, must be over."""
        assert name not in self._lives, f"{name} begins while it is alive"
        life = self._lives[name] = WorkerLife(self._num_begun, name, pool, now_ms)
        self._num_begun += 1
        return life

    def happens(self, name: str, event: WorkerEvent, now_ms: float) -> bool:
        """Whether `event` can happen to a worker; it is in the next phase if so."""
        life = self._lives.get(name)
        after = None if life is None else next_phase(life.phase, event)
        if life is None or after is None:
            return False
        if after is not life.phase:
            life.phase, life.since_ms = after, now_ms
        if after not in ALIVE:
            del self._lives[name]
        return True

    def lives(self, *phases: Phase) -> list[WorkerLife]:
        """Those in one of the phases, in the order of their beginning."""
        found = (life for life in self._lives.values() if life.phase in phases)
        return sorted(found, key=lambda life: life.worker_id)

    def name_of(self, worker_id: int) -> str | None:
        """The name of who is alive under that number."""
        for life in self._lives.values():
            if life.worker_id == worker_id:
                return life.name
        return None

    def pool(self, name: str, wanted: int, num_requests: Mapping[int, int]) -> PoolState:
        """A pool as controllers see it; `num_requests` by worker, where it is known."""
        workers = tuple(
            WorkerState(
                life.worker_id, life.phase, life.since_ms, num_requests.get(life.worker_id, 0)
            )
            for life in self.lives(*ALIVE)
            if life.pool == name
        )
        return PoolState(name, wanted, workers)
