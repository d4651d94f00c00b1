"""Who has the workers of a deployment: tells of them, and launches and drains them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from dynosim.planner.observation import PoolState
from dynosim_runtime.card import LiveCard


class Serving(NamedTuple):
    """A worker that serves."""

    worker_id: int
    pool: str
    card: LiveCard


class Workforce(Protocol):
    """The workers of all pools. Times are ms of the running event loop's clock, see `now_ms`."""

    wanted: dict[str, int]  # by pool: how many it was last told to have

    def serving(self) -> Sequence[Serving]:
        """Those that take requests, or finish what they have."""
        ...

    def pool(self, name: str, num_requests: Mapping[int, int]) -> PoolState:
        """A pool as it is now."""
        ...

    async def launch(self, pool: str) -> None:
        """Start one more worker; returns before it serves. Raises: LiveError if none can be."""
        ...

    def drain(self, worker_id: int) -> None:
        """Let a worker finish what it has, and end. Nothing happens if it is not there any more."""
        ...
