"""Where a request goes when it leaves a station."""

from typing import Protocol

from dynosim.engine.sequence import Sequence


class Flow(Protocol):
    """The way of requests through the stations of a cluster, after the first one.

    An aggregated cluster has none: what leaves a worker is over.
    """

    def next(self, sequence: Sequence, left: int, now_ms: float) -> int | None:
        """The number of the station that takes a request which has left another; None: it is over.

        Asked once per request and station, in the order in which they leave.
        """
        ...
