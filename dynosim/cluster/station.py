"""What takes requests, takes time and lets them go: an engine, a link, ranks in lockstep."""

from typing import Final, Protocol

from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence


class Station(Protocol):
    """The cluster's loop calls `complete` at `next_ms`, and `start` where that is infinity.

    It does so after all that happens in an instant has: what arrives at a station's end has part in
    what it starts next.
    """

    next_ms: float  # when what is under way ends; infinity while idle

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        """Take a request; returns whether `next_ms` has moved."""
        ...

    def start(self, now_ms: float) -> None:
        """Begin with what there is to do, if anything."""
        ...

    def complete(self, now_ms: float) -> list[Sequence]:
        """End what is under way; returns the requests that leave."""
        ...


class HungStation:
    """A station that never ends anything again; what was under way is with whoever stopped it."""

    def __init__(self) -> None:
        self.next_ms = NEVER

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        """Requests wait where they were handed to."""
        return False

    def start(self, now_ms: float) -> None:
        """Nothing begins."""

    def complete(self, now_ms: float) -> list[Sequence]:
        """Nothing ends."""
        return []


HUNG: Final = HungStation()
