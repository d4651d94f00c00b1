"""Where requests wait while there is no worker at all that could take them.

A deployment that scales to zero has somebody in front that holds what comes and wakes it up.
"""

from collections.abc import Sequence

from dynosim.cluster.handoffs import PLACE_PREFILL, Handoffs
from dynosim.cluster.pool import Worker
from dynosim.workers.lifecycle import Phase


class Lobby:
    """The requests that wait so, in the order in which they came in."""

    def __init__(self) -> None:
        self._waiting: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def takes(self, index: int, workers: Sequence[Worker], handoffs: Handoffs | None) -> bool:
        """Let a request wait that was refused, if no worker of its kind takes requests."""
        is_prefill = handoffs is not None and handoffs.placing(index) is PLACE_PREFILL
        for worker in workers:
            if worker.phase is Phase.READY and worker.is_prefill is is_prefill:
                return False
        self._waiting[index] = None
        return True

    def leave(self, index: int) -> bool:
        """Nobody waits any more for a request; returns whether it was here."""
        if index not in self._waiting:
            return False
        del self._waiting[index]
        return True

    def empty(self) -> list[int]:
        """All of them, who try again."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting
