"""How long workers of a pool take to start, learned from those that were seen to."""

from collections import deque

from dynosim.planner.observation import PoolState
from dynosim.workers.lifecycle import Phase

ASSUMED_START_MS = 60_000.0
"""Until a start was seen."""
_REMEMBERED = 8


class StartTimes:
    """Starts of a pool's workers, as far as they were seen from launch to readiness."""

    def __init__(self) -> None:
        self._launched_ms: dict[int, float] = {}  # by worker that starts
        self._took_ms: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, pool: PoolState) -> None:
        """Take in the pool's workers as they are now."""
        launched: dict[int, float] = {}
        for worker in pool.workers:
            if worker.phase is Phase.STARTING:
                launched[worker.worker_id] = worker.since_ms
            elif worker.phase is Phase.READY and worker.worker_id in self._launched_ms:
                self._took_ms.append(worker.since_ms - self._launched_ms[worker.worker_id])
        self._launched_ms = launched

    def start_ms(self, now_ms: float) -> float:
        """The longest of the last starts, and no less than those under way have taken already."""
        seen_ms = max(self._took_ms, default=ASSUMED_START_MS)
        under_way_ms = max((now_ms - at_ms for at_ms in self._launched_ms.values()), default=0.0)
        return max(seen_ms, under_way_ms)

    def ready_in_ms(self, now_ms: float) -> list[float]:
        """How long each worker that starts has still to go."""
        start_ms = self.start_ms(now_ms)
        return [start_ms - (now_ms - at_ms) for at_ms in self._launched_ms.values()]
