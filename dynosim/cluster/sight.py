"""What can be seen of a run from outside: the frontend's metrics, workers, their reports."""

from collections.abc import Sequence

from dynosim.cluster.books import Books
from dynosim.cluster.control import ControlPlane
from dynosim.cluster.engine_reports import EngineReporter
from dynosim.cluster.exposition import Exposition, FrontendLabels, FrontendPath
from dynosim.cluster.pool import Worker
from dynosim.cluster.run_steps import Runs, StepFeed, StepReader, runs_under_way
from dynosim.planner.observation import EngineReport, PoolState, Scrape, WorkerState
from dynosim.workload.load import NEVER


class Sight:
    """A run as it can be seen from now on. An engine tells of at most `max_passes` steps at a time;
    0 where nobody wants to know of them."""

    def __init__(self, control: ControlPlane, labels: FrontendLabels, max_passes: int = 0) -> None:
        books = control.books
        self._control = control
        self._exposition = exposition_of(books, labels, control.inside)
        self._runs: Runs = {}
        self._runs_at_ms = -NEVER
        self._reporter = EngineReporter(max_passes)
        self._steps: StepReader | None = None
        if max_passes:
            self._steps = StepReader(StepFeed(books.journal))

    def scrape(self, now_ms: float) -> Scrape:
        """The frontend's metrics."""
        control = self._control
        alive = control.alive
        return self._exposition.scrape(
            alive, control.num_queued, self._runs_of(alive, now_ms), now_ms
        )

    def pools(self) -> tuple[PoolState, ...]:
        """The workers of each pool."""
        alive = self._control.alive
        return tuple(
            [pool_state(name, wanted, alive) for name, wanted in self._control.wanted.items()]
        )

    def reports(self, now_ms: float) -> tuple[EngineReport, ...]:
        """What the workers say of themselves."""
        alive = self._control.alive
        runs = self._runs_of(alive, now_ms)
        steps = None if self._steps is None else self._steps.read(runs, self._control.inside)
        return self._reporter.reports(steps, runs, alive, now_ms)

    def _runs_of(self, alive: Sequence[Worker], now_ms: float) -> Runs:
        """Runs under way, asked for once in a moment: nothing ends in it any more."""
        if self._runs_at_ms != now_ms:
            self._runs, self._runs_at_ms = runs_under_way(alive, now_ms), now_ms
        return self._runs


def pool_state(name: str, wanted: int, workers: Sequence[Worker]) -> PoolState:
    """The workers of a pool, among some; ranks of one are one."""
    states = []
    for worker in workers:
        if worker.rank or worker.pool_name != name or not worker.is_alive:
            continue
        number = worker.num_requests
        if worker.num_ranks > 1:
            ranks = [one for one in workers if one.first_id == worker.worker_id]
            number = sum([one.num_requests for one in ranks])
        states.append(WorkerState(worker.worker_id, worker.phase, worker.since_ms, number))
    return PoolState(name, wanted, tuple(states))


def exposition_of(books: Books, labels: FrontendLabels, workers: Sequence[Worker]) -> Exposition:
    """The metrics of a run's frontend; to be made before anything arrives."""
    cluster = books.cluster
    path = FrontendPath(
        books.ingress_ms,
        books.egress_ms,
        cluster.max_model_len,
        cluster.disagg is not None,
    )
    return Exposition(
        books.journal,
        path,
        labels,
        block_size=cluster.block_size,
        overlap_blocks=books.overlap_blocks,
        workers=workers,
        frontend=books.frontend,
    )
