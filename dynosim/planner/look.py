"""One look of a controller, as decision logs keep it."""

from dataclasses import dataclass, replace

from dynosim.planner.decision import Decision
from dynosim.planner.observation import Observation


@dataclass(frozen=True, slots=True)
class Look:
    """What a controller saw, and what it made of it; None: nothing was to be decided yet."""

    seen: Observation
    decision: Decision | None

    def without_metrics(self) -> "Look":
        """The same, but only the workers of what was seen: metrics of a long run fill memories."""
        return Look(replace(self.seen, scrapes=(), reports=()), self.decision)
