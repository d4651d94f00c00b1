"""Who looks at a deployment now and then and says how many workers it should have."""

from typing import Protocol

from dynosim.planner.decision import ScalingDecision
from dynosim.planner.observation import Observation


class Controller(Protocol):
    """Planner and autoscalers alike. Reads no clock: whoever drives it comes at `next_ms`."""

    @property
    def name(self) -> str:
        """What logs and tables call it."""
        ...

    @property
    def next_ms(self) -> float:
        """When it wants to look next; infinity: never again."""
        ...

    def look(self, seen: Observation) -> ScalingDecision | None:
        """Take in what is seen at `next_ms` (not before); None: nothing was to be decided yet."""
        ...
