"""One look of a controller, as decision logs keep it."""

from math import isfinite
from typing import Any

import msgspec

from dynosim.planner.decision import ScalingDecision
from dynosim.planner.observation import Observation


class Look(msgspec.Struct, frozen=True):
    """What a controller saw, and what it made of it; None: nothing was to be decided yet."""

    seen: Observation
    decision: ScalingDecision | None

    def without_metrics(self) -> "Look":
        """The same, but only the workers of what was seen: metrics of a long run fill memories."""
        return Look(Observation(self.seen.now_ms, self.seen.pools), self.decision)


def decision_row(decision: ScalingDecision) -> dict[str, Any]:
    """A decision as a line of a decision log; figures that do not exist are None."""
    return {
        "at_ms": decision.now_ms,
        "controller": decision.controller,
        "is_advisory": decision.is_advisory,
        "pools": [
            {
                "pool": one.pool,
                "current": one.current,
                "target": one.target,
                "verdict": one.verdict,
                "reasons": list(one.reasons),
                "figures": {
                    name: value if isfinite(value) else None for name, value in one.figures.items()
                },
            }
            for one in decision.pools
        ],
    }
