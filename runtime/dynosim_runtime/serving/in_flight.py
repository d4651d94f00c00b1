"""Which streams are in flight on which worker."""

from typing import Protocol


class MovableStream(Protocol):
    """What a worker serves, and what can go on elsewhere."""

    def worker_lost(self) -> None:
        """The worker that serves it is gone."""
        ...


class InFlight:
    """The streams of each worker, by the request's id."""

    def __init__(self) -> None:
        self._by_worker: dict[int, dict[str, MovableStream]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_worker.values()))

    def num_on(self, worker_id: int) -> int:
        """Streams that a worker serves."""
        return len(self._by_worker.get(worker_id, ()))

    def attach(self, worker_id: int, request_id: str, stream: MovableStream) -> None:
        """A stream is served by this worker now."""
        self._by_worker.setdefault(worker_id, {})[request_id] = stream

    def detach(self, worker_id: int, request_id: str) -> None:
        """A stream is served by this worker no more, if it was."""
        self._by_worker.get(worker_id, {}).pop(request_id, None)

    def lose_worker(self, worker_id: int) -> None:
        """A worker is gone: what it served moves on."""
        for stream in list(self._by_worker.pop(worker_id, {}).values()):
            stream.worker_lost()
