"""The twin's control plane: SimPy processes around a data plane that advances in bulk.

A process is a SimPy generator that looks at the cluster now and then and acts on it: a reporter, a
scenario, later planners and updates. Between two process events the cluster runs to the earlier of
the next event and the end; at equal times the data plane goes first.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import simpy

from dynosim.cluster.books import Books
from dynosim.cluster.cluster import Cluster
from dynosim.cluster.event_faults import EventFault
from dynosim.cluster.pool import Worker, still_alive
from dynosim.cluster.router_faults import RouterFault, end_event_fault
from dynosim.cluster.spec import PoolSpec, of_generation
from dynosim.cluster.starting import StartUps
from dynosim.records import StartupLog
from dynosim.timing.scaled import ScaledModel
from dynosim.workers.lifecycle import Phase
from dynosim.workers.startup import StartupSpec, constant
from dynosim.workload.load import NEVER

ProcessGenerator = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What a process can see of a worker."""

    worker_id: int
    pool: str
    rank: int  # of a worker with several each is one; the first speaks for all
    place: int  # among all that its pool has had, from 0
    topology: Mapping[str, str]  # where it is: domain to value
    generation: int
    phase: Phase
    num_requests: int  # placed on it and not ended


class ControlPlane:
    """What a process sees and does: the clock (`env`, in ms), workers, the load.

    The run ends with the last data-plane event: a process that wakes up for ever does not prolong
    it, unless requests wait for what only a process can bring: for the load that it holds, or for
    workers to come.

    A run whose workers start cold begins with its load held, until each role has a worker that
    serves, or none that may come to. `seed` is that of what is drawn of their starts.
    """

    def __init__(
        self,
        cluster: Cluster,
        pools: Sequence[PoolSpec],
        processes: "Sequence[Process]",
        books: Books,
        seed: int = 0,
    ) -> None:
        self.books = books
        self.wanted = {pool.name: pool.workers for pool in pools}  # as was last asked for
        self.env = simpy.Environment()
        self.is_stopped = False
        self._cluster = cluster
        self._alive: list[Worker] = []
        self._num_known = 0  # workers that have been among them
        self._pools = {pool.name: pool for pool in pools}
        self._is_held = False
        self._num_expected = 0
        self._start_ups = StartUps(seed)
        self._wakes_ms = NEVER  # when start-ups go on
        self._has_launched = False
        self._is_shut = False  # until each role has a worker that serves
        self._take_over()
        self._processes = [self.env.process(process(self)) for process in processes]

    # ---- looking -------------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        """Virtual time."""
        return float(self.env.now)

    @property
    def workers(self) -> tuple[WorkerView, ...]:
        """All workers there have been, by id."""
        return tuple(
            WorkerView(
                worker.worker_id,
                worker.pool.name,
                worker.rank,
                worker.place,
                worker.pool.place_of(worker.place),
                worker.pool.generation,
                worker.phase,
                worker.num_requests,
            )
            for worker in self._cluster.workers
        )

    @property
    def inside(self) -> Sequence[Worker]:
        """All workers there have been, by id, with all that is inside: to look at only."""
        return self._cluster.workers

    @property
    def alive(self) -> Sequence[Worker]:
        """Those of them that hold GPUs now; who has gone is never looked at again."""
        everybody = self._cluster.workers
        self._alive += everybody[self._num_known :]
        self._num_known = len(everybody)
        self._alive = still_alive(self._alive)
        return self._alive

    @property
    def num_queued(self) -> int:
        """Requests that wait in a router, or for a worker to come."""
        return self._cluster.num_queued

    @property
    def num_in_lobby(self) -> int:
        """Of them, those that wait for a worker to come."""
        return self._cluster.num_in_lobby

    @property
    def is_waiting_only(self) -> bool:
        """Whether requests wait for a worker to come, and nothing else goes on."""
        return self._cluster.num_in_lobby > 0 and self._cluster.next_ms() == NEVER

    @property
    def num_requests(self) -> tuple[int, ...]:
        """Requests placed and not ended, by worker."""
        return tuple(worker.num_requests for worker in self._cluster.workers)

    @property
    def num_ended(self) -> int:
        """Requests that have finished, failed or were rejected so far."""
        return self._cluster.num_ended

    # ---- acting --------------------------------------------------------------------------------

    def launch(self, pool: str = "workers", *, startup_ms: float | None = None) -> int:
        """Start a worker; it is ready after `startup_ms`, or after what the pool says of starts.

        Returns its id. Raises: ValueError if there is no such pool.
        """
        worker = self._cluster.launch(self._pool(pool), self.now_ms)
        self._begin_start(worker, None if startup_ms is None else constant(startup_ms))
        return worker.worker_id

    def drain(self, worker_id: int) -> None:
        """Place nothing more on a worker; it is gone once what it has is done.

        Raises: ValueError if there is no such worker, or it has gone or failed.
        """
        self._cluster.drain(self._worker(worker_id), self.now_ms)
        self._leave(worker_id)

    def fail(self, worker_id: int) -> None:
        """Kill a worker; its requests are placed anew, with the tokens they have got.

        Raises: ValueError if there is no such worker, or it has gone or failed.
        """
        self._cluster.fail(self._worker(worker_id), self.now_ms)
        self._leave(worker_id)

    def hang(self, worker_id: int) -> None:
        """Let a worker do nothing any more; nobody notices, until it is told to `fail`.

        Raises: ValueError if there is no such worker, or it takes no requests.
        """
        self._cluster.hang(self._worker(worker_id), self.now_ms)

    def slow(self, worker_id: int, factor: float) -> None:
        """Let a worker's steps take `factor` times as long from its next one on; 1: as ever.

        Raises: ValueError if there is no such worker, or it has gone, hung or failed.
        """
        worker = self._worker(worker_id)
        times = None if factor == 1 else ScaledModel(worker.pool.times, factor)
        self._cluster.repace(worker, times, self.now_ms)

    def cut_links(self) -> None:
        """Let nothing get from prefill to decode workers until `mend_links`.

        Raises: ValueError if there are no such pools.
        """
        self._cluster.cut_links(self.now_ms)

    def mend_links(self) -> None:
        """Let KV get from prefill to decode workers again."""
        self._cluster.mend_links()

    def lose_frontend(self, number: int) -> None:
        """Let a frontend die, and its requests with it.

        Raises: ValueError if there is no such frontend, or no other to serve what comes.
        """
        self._cluster.lose_frontend(number, self.now_ms)

    def restore_frontend(self, number: int) -> None:
        """Let a frontend take requests again. Raises: ValueError if it was not lost."""
        self._cluster.restore_frontend(number)

    def begin_event_fault(self, fault: EventFault) -> list[RouterFault]:
        """Let KV events that workers publish be lost or late; returns what `end_event_fault` needs.

        Raises: ValueError if no router gets KV events with numbers, by which it notices.
        """
        return self._cluster.begin_event_fault(fault, self.now_ms)

    def end_event_fault(self, begun: list[RouterFault]) -> None:
        """Let events arrive as usual that are published from now on."""
        end_event_fault(begun, self.now_ms)

    @property
    def mixes_no_generations(self) -> bool:
        """Whether a request is served by one generation of workers only."""
        return self._cluster.generations is not None

    def update_pool(self, pool: str, generation: int, spec: PoolSpec | None = None) -> PoolSpec:
        """Let workers launched from now on be of a generation, and as `spec` says if it is given.

        Returns what they were to be before. Raises: ValueError if there is no such pool.
        """
        before = self._pool(pool)
        is_told = self.mixes_no_generations
        self._pools[pool] = of_generation(spec or before, generation, is_told=is_told)
        return before

    def close_generation(self, generation: int) -> None:
        """Let a generation get no new requests as long as another can, where they do not mix."""
        if self._cluster.generations is not None:
            self._cluster.generations.choice.close(generation)

    def set_generation_shares(self, shares: Mapping[int, float]) -> None:
        """Let generations get these shares of the requests; empty: by their ready workers.

        Raises: ValueError where generations mix.
        """
        if self._cluster.generations is None:
            raise ValueError("generations of workers mix here: none gets a share of its own")
        self._cluster.generations.choice.set_shares(shares)

    def has_unfinished(self, generation: int) -> bool:
        """Whether requests of a generation have not ended, where generations do not mix."""
        return self._cluster.has_unfinished(generation)

    def hold_load(self) -> None:
        """Let no request arrive until `release_load`; what is due meanwhile waits outside."""
        self._is_held = True
        self._cluster.hold_load()

    def release_load(self) -> None:
        """Let arrive what was held. A request has arrived when it was due, so its wait counts."""
        self._is_held = False
        if not self._is_shut:
            self._cluster.release_load(self.now_ms)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """What is done inside may let requests go on: the run does not end before, while any wait.

        with control.expected():
            yield control.env.timeout(60_000)
            control.fail(0)
        """
        self._num_expected += 1
        try:
            yield
        finally:
            self._num_expected -= 1

    def stop(self) -> None:
        """End the run now; what is under way stays unfinished."""
        self.is_stopped = True

    # ---- the driver's side ---------------------------------------------------------------------

    def startup_log(self) -> StartupLog | None:
        """What workers did before they served; None if none was launched."""
        return self._start_ups.log() if self._has_launched else None

    def run_until(self, until_ms: float) -> None:
        """Run data plane and processes together up to and including `until_ms`."""
        while not self.is_stopped:
            control_ms = self.env.peek()
            self._cluster.run_until(min(control_ms, until_ms))
            if control_ms > until_ms or control_ms == NEVER:
                return
            if self._cluster.next_ms() == NEVER and not self._is_awaited:
                return
            self.env.step()
            self._raise_what_failed()

    def _raise_what_failed(self) -> None:
        """An error of a process comes out at once: the run may end before SimPy looks at it."""
        for process in self._processes:
            if process.triggered and not process.ok:
                error = process.value
                assert isinstance(error, BaseException)
                raise error

    @property
    def _is_awaited(self) -> bool:
        """Whether requests wait for something that only a process or a worker to come brings."""
        if self._cluster.num_in_lobby:
            return True
        is_awaited = self._is_held or self._is_shut or self._num_expected > 0
        return is_awaited and self._cluster.has_unended

    # ---- workers that start --------------------------------------------------------------------

    def _take_over(self) -> None:
        """Know the workers that are there; those that have to start do so now."""
        for worker in self._cluster.workers:
            if worker.rank:
                continue
            pool = worker.pool
            if worker.phase is Phase.STARTING:
                self._begin_start(worker)
                if not self._is_shut:
                    self._is_shut = True
                    self._cluster.hold_load()
            else:
                self._start_ups.add_running(worker.worker_id, pool.name, pool.start, self.now_ms)

    def _begin_start(self, worker: Worker, start: StartupSpec | None = None) -> None:
        pool = worker.pool
        self._has_launched = True
        self._start_ups.launch(worker.worker_id, pool.name, start or pool.start, self.now_ms)
        self._plan_wake_up()

    def _leave(self, worker_id: int) -> None:
        """A worker drains or has failed, perhaps while it started."""
        self._start_ups.leave(self._worker(worker_id).first_id, self.now_ms)
        self._plan_wake_up()
        self._open()

    def _plan_wake_up(self) -> None:
        next_ms = self._start_ups.next_ms
        if next_ms < self._wakes_ms:
            self._wakes_ms = next_ms
            timeout = self.env.timeout(max(0.0, next_ms - self.now_ms))
            timeout.callbacks.append(self._wake_up)

    def _wake_up(self, event: simpy.Event) -> None:
        """Go on with what starts; an event that came too early changes nothing."""
        self._wakes_ms = NEVER
        for worker_id in self._start_ups.advance(self.now_ms):
            self._cluster.make_ready(self._worker(worker_id), self.now_ms)
        self._plan_wake_up()
        self._open()

    def _open(self) -> None:
        """Let the load in once each role has a worker that serves, or none to come."""
        if not self._is_shut:
            return
        phases: dict[str, set[Phase]] = {}
        for worker in self._cluster.workers:
            phases.setdefault(worker.pool.role, set()).add(worker.phase)
        if all(Phase.READY in of or Phase.STARTING not in of for of in phases.values()):
            self._is_shut = False
            if not self._is_held:
                self._cluster.release_load(self.now_ms)

    def _pool(self, name: str) -> PoolSpec:
        spec = self._pools.get(name)
        if spec is None:
            raise ValueError(f"no pool {name!r}; there are {', '.join(map(repr, self._pools))}")
        return spec

    def _worker(self, worker_id: int) -> Worker:
        workers = self._cluster.workers
        if not 0 <= worker_id < len(workers):
            raise ValueError(f"no worker {worker_id}; there are {len(workers)}")
        return workers[worker_id]


Process = Callable[[ControlPlane], ProcessGenerator]
