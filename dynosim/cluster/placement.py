"""How the fleet gets its requests placed: by load alone, or by a router that follows the caches."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from dynosim.cluster.worker import Worker
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence
from dynosim.records import KvEventLog, RoutingStats
from dynosim.router.modes import LoadMode
from dynosim.router.refusals import RequestRefusedError

QUEUED = -1


class Released(NamedTuple):
    """A request that waited in the router and now goes to a worker, or is refused after all."""

    request_index: int
    worker_id: int
    error: RequestRefusedError | None = None


class Placer(Protocol):
    """Places requests and hears what becomes of them.

    `num_requests[worker]` counts what was placed there and has not ended. At `next_ms` (infinity:
    never) news arrives that only `releases` takes up.
    """

    num_requests: list[int]
    next_ms: float

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
        """The worker to serve a request, or QUEUED. Raises: RequestRefusedError.

        What is passed is all that a control plane may know of it: not its true output length.
        """
        ...

    def hear(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """Take note of a step or run that has just ended on a worker."""
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
    """Places with a load-only mode; needs to hear of ends only."""

    def __init__(self, mode: LoadMode, num_workers: int) -> None:
        self.num_requests = [0] * num_workers
        self.next_ms = NEVER
        self._all_workers = (1 << num_workers) - 1
        self._choose = mode.choose

    def place(self, index: int, input_tokens: int, priority: int, now_ms: float) -> int:
        """The worker that the mode chooses."""
        worker_id = self._choose(self._all_workers, self.num_requests)
        self.num_requests[worker_id] += 1
        return worker_id

    def hear(self, worker: Worker, finished: list[Sequence], now_ms: float) -> None:
        """Count ends."""
        self.num_requests[worker.worker_id] -= len(finished)

    def releases(self, now_ms: float) -> Iterator[Released]:
        """Nothing ever waits."""
        return iter(())

    def stats(self) -> None:
        """Nothing but load was looked at."""

    def kv_events(self) -> None:
        """Engines tell of no events."""
