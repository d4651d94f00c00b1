"""Clients that wait so long and no longer: whose time is up, and what they are waiting for."""

from collections import deque

from dynosim.cluster.journal import Journal
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence
from dynosim.records import RequestStatus


class Patience:
    """Requests in the order in which their clients will give them up.

    That is the order of arrival, as all clients wait equally long: `timeout_ms` from a request's
    arrival at the cluster.
    """

    def __init__(self, timeout_ms: float, journal: Journal) -> None:
        self._timeout_ms = timeout_ms
        self._arrival_ms = journal.arrival_ms
        self._status = journal.status
        self._waited_for: deque[int] = deque()  # also those that have ended since
        self._sequences: dict[int, Sequence] = {}  # those that have been placed

    def arrived(self, index: int) -> None:
        """A client has begun to wait."""
        self._waited_for.append(index)

    def placed(self, sequence: Sequence) -> None:
        """A request has gone to a worker."""
        self._sequences[sequence.index] = sequence

    def next_ms(self) -> float:
        """When the next client gives up, if its request does not end before; infinity: none."""
        waited_for, status = self._waited_for, self._status
        while waited_for:
            index = waited_for[0]
            if status[index] == RequestStatus.UNFINISHED:
                return self._arrival_ms[index] + self._timeout_ms
            waited_for.popleft()
            self._sequences.pop(index, None)
        return NEVER

    def pop(self) -> tuple[int, Sequence | None]:
        """The request that `next_ms` is about, with its sequence if it has been placed."""
        index = self._waited_for.popleft()
        return index, self._sequences.pop(index, None)
