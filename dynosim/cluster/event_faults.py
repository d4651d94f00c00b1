"""Faults on the way from engines to frontends: for a while KV events are lost or late.

What a worker publishes in a step goes as one message to each frontend, and is lost or not as a
whole. Messages from one worker to one frontend draw in their order. So it does not matter when, or
in which order, the twin collects what workers have published.
"""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class EventFault:
    """Of what these workers publish (None: all workers) a share is lost, and the rest is late."""

    worker_ids: frozenset[int] | None
    lost_share: float = 0.0
    delay_ms: float = 0.0


class EventFaults:
    """The faults that are going on, by number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._num_begun = 0
        self._going_on: dict[int, EventFault] = {}
        self._draws: dict[tuple[int, int, int], Random] = {}

    def begin(self, fault: EventFault) -> int:
        """A fault begins; returns its number."""
        self._num_begun += 1
        self._going_on[self._num_begun] = fault
        return self._num_begun

    def end(self, number: int) -> None:
        """A fault is over."""
        del self._going_on[number]

    def delay_ms(self, worker_id: int, frontend: int) -> float | None:
        """How much later than usual the next message arrives there; None: it is lost."""
        delay_ms = 0.0
        for number, fault in self._going_on.items():
            if fault.worker_ids is not None and worker_id not in fault.worker_ids:
                continue
            if fault.lost_share and self._draw(number, worker_id, frontend) < fault.lost_share:
                return None
            delay_ms += fault.delay_ms
        return delay_ms

    def _draw(self, number: int, worker_id: int, frontend: int) -> float:
        key = number, worker_id, frontend
        draws = self._draws.get(key)
        if draws is None:
            stream = f"{self._seed}/event faults/{number}/{worker_id}/{frontend}"
            draws = self._draws[key] = Random(stream)
        return draws.random()
