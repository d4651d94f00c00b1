"""Requests that each belong to one generation of workers, of two that must not mix."""

from collections.abc import Sequence

from dynosim.cluster.pool import Worker
from dynosim.cluster.spec import GENERATION
from dynosim.planner.generations import GenerationChoice
from dynosim.records import RequestStatus
from dynosim.router.eligibility import Constraints
from dynosim.router.workers import topology_taint


class Generations:
    """Chooses a generation for each request, and says so to whoever places it."""

    def __init__(self, pools: Sequence[str]) -> None:
        self.choice = GenerationChoice(pools)
        self._of: dict[int, int] = {}  # by request

    def joined(self, worker: Worker) -> None:
        """A worker takes requests."""
        self.choice.joined(worker.pool.generation, worker.pool.name)

    def left(self, worker: Worker) -> None:
        """A worker takes no more requests."""
        self.choice.left(worker.pool.generation, worker.pool.name)

    def choose(self, index: int) -> Constraints | None:
        """Where a request may go that has come, or begins anew."""
        generation = self.choice.choose()
        if generation is None:
            self._of.pop(index, None)
            return None
        self._of[index] = generation
        return _within(generation)

    def stay(self, index: int, pool: str) -> Constraints | None:
        """Where a request may go that goes on: where it began, if anybody is left there."""
        generation = self._of.get(index)
        if generation is None or not self.choice.has_ready(generation, pool):
            return None
        return _within(generation)

    def has_unfinished(self, generation: int, status: Sequence[int]) -> bool:
        """Whether requests of a generation have not ended; `status` is by request."""
        over = [i for i in self._of if status[i] != RequestStatus.UNFINISHED]
        for index in over:
            del self._of[index]
        return generation in self._of.values()


def _within(generation: int) -> Constraints:
    return Constraints(required_taints=frozenset([topology_taint(GENERATION, str(generation))]))
