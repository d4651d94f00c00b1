"""An index that lags behind engines in the middle of a run of steps, and catches up when asked."""

from dataclasses import dataclass
from typing import Generic, Protocol

from dynosim.indexer.base import Index
from dynosim.router.inputs import E


class Settles(Protocol):
    """What can bring engines up to a time."""

    def settle(self, slots: int, now_ms: float) -> bool:
        """Let the engines of a set of slots publish what they have done; False: there was any."""
        ...


@dataclass(frozen=True, slots=True)
class SettlingIndex(Generic[E]):
    """What `index` says of a worker is up to date once `engines` have settled.

    Until then it errs on the side of too much overlap: in the middle of a run there can be
    evictions, but nothing is stored; what goes to a slower tier is on the device as well, and
    counts as that.
    """

    index: Index[E]
    engines: Settles

    def confirm(self, slots: int, now_ms: float) -> bool:
        """Settle the engines of a set of slots; returns whether that changed nothing."""
        return self.engines.settle(slots, now_ms)
