"""Faults on the way from engines to frontends: for a while KV events are lost or late.

What a worker publishes at one time goes as one message to each frontend, and is lost or not as a
whole. So it does not matter in how many pieces, or in which order, the twin collects it.
"""

from dataclasses import dataclass
from random import Random

from dynosim.engine.instant import instant_end


@dataclass(frozen=True, slots=True)
class EventFault:
    """Of what these workers publish (None: all workers) a share is lost, and the rest is late."""

    worker_ids: frozenset[int] | None
    lost_share: float = 0.0
    delay_ms: float = 0.0


class _Draws:
    """Whether the messages from one worker to one frontend are lost."""

    __slots__ = ("_generator", "_is_lost", "_same_until_ms", "_share")

    def __init__(self, share: float, stream: str) -> None:
        self._generator = Random(stream)
        self._share = share
        self._same_until_ms = float("-inf")
        self._is_lost = False

    def is_lost(self, time_ms: float) -> bool:
        """Whether what is published then is lost; times do not decrease."""
        if time_ms > self._same_until_ms:
            self._same_until_ms = instant_end(time_ms)
            self._is_lost = self._generator.random() < self._share
        return self._is_lost


class EventFaults:
    """The faults that are going on, by number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._num_begun = 0
        self._going_on: dict[int, EventFault] = {}
        self._draws: dict[tuple[int, int, int], _Draws] = {}

    def begin(self, fault: EventFault) -> int:
        """A fault begins; returns its number."""
        self._num_begun += 1
        self._going_on[self._num_begun] = fault
        return self._num_begun

    def end(self, number: int) -> None:
        """A fault is over."""
        del self._going_on[number]

    def delay_ms(self, worker_id: int, time_ms: float, frontend: int) -> float | None:
        """How much later than usual something published then arrives; None: it is lost."""
        delay_ms = 0.0
        for number, fault in self._going_on.items():
            if fault.worker_ids is not None and worker_id not in fault.worker_ids:
                continue
            if fault.lost_share and self._drawn(number, fault, worker_id, frontend, time_ms):
                return None
            delay_ms += fault.delay_ms
        return delay_ms

    def _drawn(
        self, number: int, fault: EventFault, worker_id: int, frontend: int, time_ms: float
    ) -> bool:
        key = number, worker_id, frontend
        draws = self._draws.get(key)
        if draws is None:
            stream = f"{self._seed}/event faults/{number}/{worker_id}/{frontend}"
            draws = self._draws[key] = _Draws(fault.lost_share, stream)
        return draws.is_lost(time_ms)
