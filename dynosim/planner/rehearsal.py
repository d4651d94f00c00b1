"""A controller driven over made-up metrics: what it would ask for, with no service behind it."""

from collections.abc import Callable
from dataclasses import dataclass

from dynosim.planner.controller import Controller
from dynosim.planner.decision import ScalingDecision, changes
from dynosim.planner.observation import Observation, PoolState, Scrape, WorkerState
from dynosim.workers.lifecycle import Phase

Metrics = Callable[[float, int], dict[str, float] | None]
"""What a scrape at a moment, with so many workers ready, finds; None: it fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A pool of made-up workers, ready `start_ms` after launch and gone as soon as drained."""

    metrics: Metrics
    until_ms: float
    pool: str = "pool"
    num_workers: int = 1
    scrape_ms: float = 5_000.0
    start_ms: float = 0.0

    def decisions(self, controller: Controller) -> list[ScalingDecision]:
        """All that a controller decides until the end; each is carried out at once.

        At one moment workers become ready first, then metrics are scraped, then it looks.
        """
        workers = [WorkerState(i, Phase.READY, 0.0) for i in range(self.num_workers)]
        num_launched, wanted, scrape_at_ms = self.num_workers, self.num_workers, 0.0
        scrapes: list[Scrape] = []
        decided: list[ScalingDecision] = []
        while min(scrape_at_ms, controller.next_ms) <= self.until_ms:
            now_ms = min(scrape_at_ms, controller.next_ms)
            workers = [self._grown(worker, now_ms) for worker in workers]
            pool = PoolState(self.pool, wanted, tuple(workers))
            if scrape_at_ms == now_ms:
                values = self.metrics(now_ms, pool.count(Phase.READY))
                scrapes += [] if values is None else [Scrape(now_ms, values)]
                scrape_at_ms += self.scrape_ms
            if controller.next_ms > now_ms:
                continue
            decision = controller.look(Observation(now_ms, (pool,), tuple(scrapes)))
            scrapes = []
            if decision is None:
                continue
            decided.append(decision)
            wanted = decision.pools[0].target
            todo = changes(pool, wanted)
            workers = [worker for worker in workers if worker.worker_id not in todo.drained]
            workers += [
                WorkerState(num_launched + i, Phase.STARTING, now_ms)
                for i in range(todo.num_launched)
            ]
            num_launched += todo.num_launched
        return decided

    def _grown(self, worker: WorkerState, now_ms: float) -> WorkerState:
        if worker.phase is Phase.READY or now_ms - worker.since_ms < self.start_ms:
            return worker
        return WorkerState(worker.worker_id, Phase.READY, worker.since_ms + self.start_ms)


def targets(decisions: list[ScalingDecision]) -> list[tuple[float, int]]:
    """When a first target was given and each other one, and what it was."""
    found: list[tuple[float, int]] = []
    for decision in decisions:
        target = decision.pools[0].target
        if not found or found[-1][1] != target:
            found.append((decision.now_ms, target))
    return found
