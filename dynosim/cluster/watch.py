"""Looks at a run now and then, and may end it before its time.

It looks at times of the run, never of the real clock, so a run that is watched ends at the same
event wherever it runs.
"""

from abc import ABC, abstractmethod

from dynosim.cluster.journal import Journal


class Watch(ABC):
    """Looks every `period_ms` of virtual time. `stopped_ms` is when it ended the run, if it did."""

    def __init__(self, period_ms: float) -> None:
        self.period_ms = period_ms
        self.next_ms = period_ms
        self.stopped_ms: float | None = None

    @abstractmethod
    def is_over(self, journal: Journal, now_ms: float) -> bool:
        """Whether the run need not go on. All that happened by `now_ms` is in the journal."""

    def look(self, journal: Journal, now_ms: float) -> bool:
        """Look if it is time to; whether the run ends now."""
        if now_ms < self.next_ms:
            return False
        self.next_ms += self.period_ms
        if self.is_over(journal, now_ms):
            self.stopped_ms = now_ms
            return True
        return False
