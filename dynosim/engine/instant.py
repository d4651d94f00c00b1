"""What counts as one instant of virtual time.

Two times that are equal on paper can be sums of floats in different orders: a run of k decode steps
takes a closed form, k single steps a sum. They then differ in their last bits. Whoever compares
such times takes all that lie within a tolerance as equal, far more than rounding ever adds up to
and far less than any step takes.
"""

from math import inf, nextafter
from typing import Final

TOLERANCE_MS: Final = 1e-9
RELATIVE_TOLERANCE: Final = 1e-12  # thousands of times a float's resolution


def instant_end(time_ms: float) -> float:
    """The last time that still counts as the instant `time_ms`."""
    return time_ms + TOLERANCE_MS + RELATIVE_TOLERANCE * time_ms


def instant_start(time_ms: float) -> float:
    """The first time that counts as the instant `time_ms` already."""
    return time_ms - TOLERANCE_MS - RELATIVE_TOLERANCE * time_ms


class ArrivalTimes:
    """Another time for each request: those of one instant arrive one after another.

    So they do at a frontend. Engines that go by priorities preempt the one that arrived last; of
    several that arrived at one time vLLM takes the first it finds, so that two of them may take
    each other's blocks for ever.
    """

    def __init__(self) -> None:
        self._instant_ms = -inf
        self._last_ms = -inf  # when the last one of that instant has arrived

    def next(self, now_ms: float) -> float:
        """That of a request that comes now: the next one that a float can say."""
        if now_ms == self._instant_ms:
            self._last_ms = nextafter(self._last_ms, inf)
        else:
            self._instant_ms = self._last_ms = now_ms
        return self._last_ms
