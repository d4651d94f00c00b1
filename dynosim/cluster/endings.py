"""How requests end, whatever ended them: what the journal says of it, and what the load does."""

from collections.abc import Sequence as List

from dynosim.cluster.journal import Journal
from dynosim.engine.sequence import Sequence
from dynosim.records import RequestStatus
from dynosim.workload.load import Arrivals


class Endings:
    """Counts the requests that are over, and tells the load, which may send others for it.

    `turnaround_ms` is from a request's end until a request it causes can be placed.
    """

    def __init__(self, journal: Journal, load: Arrivals, turnaround_ms: float) -> None:
        self.number = 0  # finished, failed, rejected or given up, or never sent
        self._journal = journal
        self._load = load
        self._turnaround_ms = turnaround_ms

    def is_open(self, index: int) -> bool:
        """Whether a request that an engine still has is not over: given up, refused or complete."""
        return self._journal.status[index] == int(RequestStatus.UNFINISHED)

    def finished(self, sequences: List[Sequence], now_ms: float) -> None:
        """Requests have left the workers that had them, who have written down how."""
        self.number += len(sequences)
        if self._load.reacts:
            for sequence in sequences:
                self._load.on_end(sequence.index, now_ms + self._turnaround_ms)

    def refused(self, index: int, status: RequestStatus, reason: str, now_ms: float) -> None:
        """A request is rejected or has failed."""
        self.number += 1
        journal = self._journal
        journal.status[index] = int(status)
        journal.errors[index] = reason
        journal.refused_ms[index] = now_ms
        if self._load.reacts:
            self._load.on_end(index, now_ms + self._turnaround_ms)

    def given_up(self, index: int, now_ms: float) -> None:
        """A client waits no more, and will not send what it would have sent after that."""
        self.number += 1
        journal = self._journal
        journal.gave_up_ms[index] = now_ms
        journal.status[index] = int(RequestStatus.TIMED_OUT)
        if self._load.reacts:
            for later in self._load.on_give_up(index, now_ms + self._turnaround_ms):
                journal.status[later] = int(RequestStatus.NOT_SENT)
                self.number += 1
