"""How a cluster gets its requests placed: by load alone, or by a router that follows the caches."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from dynosim.cluster.pool import Worker
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence
from dynosim.records import KvEventLog, RoutingStats
from dynosim.router.modes import AnyLoadMode
from dynosim.router.refusals import NoEligibleWorkerError, RequestRefusedError
from dynosim.router.workers import WorkerTable

if TYPE_CHECKING:
    from dynosim.cluster.lone_placer import LonePlacer
    from dynosim.cluster.pool_placers import PoolPlacers
    from dynosim.cluster.rank_placer import RankPlacer
    from dynosim.cluster.router_placer import RouterPlacer

# Ours are named beside the protocol, so that a compiler calls them directly.
AnyPlacer: TypeAlias = "LoadPlacer | LonePlacer | PoolPlacers | RankPlacer | RouterPlacer | Placer"

QUEUED: Final = -1


class Released(NamedTuple):
    """A request that waited in the router and now goes to a worker, or is refused after all."""

    request_index: int
    worker_id: int
    error: RequestRefusedError | None = None


class Placer(Protocol):
    """Places requests on the workers that have joined, and receives what becomes of them.

    At `next_ms` (infinity: never) news arrives that only `releases` takes up; unless `hears_late`
    that is never.
    """

    next_ms: float
    hears_late: bool

    def join(self, worker: Worker, now_ms: float) -> None:
        """A worker may get requests from now on."""
        ...

    def leave(self, worker: Worker, now_ms: float) -> None:
        """A worker that has joined gets no more; it may still have some in flight."""
        ...

    def forget(self, indexes: Collection[int]) -> None:
        """Requests are on no worker any more, and may be placed anew."""
        ...

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
        """The worker to serve a request, or QUEUED. Raises: RequestRefusedError.

        What is passed is all that a control plane may know of it: not its true output length.
        """
        ...

    def receive(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """Take note of a step or run that has just ended on a worker."""
        ...

    def give_up(self, index: int, worker: Worker | None, now_ms: float) -> None:
        """A client waits no more for a request, on a worker or (None) in the router."""
        ...

    def discount(self, index: int, worker: Worker, now_ms: float) -> None:
        """What has just been placed on a worker is no load there."""
        ...

    def releases(self, now_ms: float) -> Iterator[Released]:
        """What stops waiting in the router now."""
        ...

    def stats(self) -> RoutingStats | None:
        """What was decided, for reports; None if load alone decided."""
        ...

    def kv_events(self) -> KvEventLog | None:
        """The KV events of the run, if they were recorded."""
        ...


class LoadPlacer:
    """Places with a load-only mode; needs to receive ends only."""

    def __init__(self, mode: AnyLoadMode, table: WorkerTable) -> None:
        self.next_ms = NEVER
        self.hears_late = False
        self._table = table
        self._mode = mode
        self._all_slots = 0
        self._num_requests: list[int] = []  # by slot
        self._worker_at: list[int] = []  # by slot
        self._slots: dict[int, int] = {}  # of workers that have joined

    def join(self, worker: Worker, now_ms: float) -> None:
        """Give a worker a slot, perhaps one that another had."""
        (slot,) = self._table.add(worker.card)
        if slot == len(self._worker_at):
            self._worker_at.append(worker.worker_id)
            self._num_requests.append(0)
        self._worker_at[slot] = worker.worker_id
        self._slots[worker.worker_id] = slot
        self._num_requests[slot] = 0
        self._all_slots |= 1 << slot

    def leave(self, worker: Worker, now_ms: float) -> None:
        """Free a worker's slot; what it has in flight counts no more."""
        self._table.remove(worker.worker_id)
        self._all_slots &= ~(1 << self._slots.pop(worker.worker_id))

    def forget(self, indexes: Collection[int]) -> None:
        """Requests are known by their number only."""

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
        """The worker that the mode chooses."""
        if not self._all_slots:
            raise NoEligibleWorkerError("no worker is there")
        slot = self._mode.choose(self._all_slots, self._num_requests)
        self._num_requests[slot] += 1
        return self._worker_at[slot]

    def receive(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """Count ends."""
        if finished:
            slot = self._slots.get(worker.worker_id)
            if slot is not None:
                self._num_requests[slot] -= len(finished)

    def give_up(self, index: int, worker: Worker | None, now_ms: float) -> None:
        """Count it as an end."""
        slot = None if worker is None else self._slots.get(worker.worker_id)
        if slot is not None:
            self._num_requests[slot] -= 1

    def discount(self, index: int, worker: Worker, now_ms: float) -> None:
        """Count it as an end."""
        self.give_up(index, worker, now_ms)

    def releases(self, now_ms: float) -> Iterator[Released]:
        """Nothing ever waits."""
        return iter(())

    def stats(self) -> None:
        """Nothing but load was looked at."""

    def kv_events(self) -> None:
        """Engines publish no events."""
