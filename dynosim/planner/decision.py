"""What a controller wants, and why; and whom that concerns."""

from dataclasses import dataclass, field
from typing import Final

from dynosim.planner.observation import PoolState
from dynosim.workers.lifecycle import Phase

WARNING: Final = "warning: "
"""What a reason begins with that says what cannot be had."""


@dataclass(frozen=True, slots=True)
class PoolDecision:
    """How many workers a pool is to have: `target`, where it had `current` (starting and ready).

    `verdict` is one word for tables, such as `scale_up`, `no_change` or `metrics_stale`; `reasons`
    are sentences that name the figures; `figures` those figures by name, units included.
    """

    pool: str
    current: int
    target: int
    verdict: str
    reasons: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What cannot be had, such as targets that no engine meets."""
        told = [reason for reason in self.reasons if reason.startswith(WARNING)]
        return tuple(reason.removeprefix(WARNING) for reason in told)


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """What a controller wants at `now_ms`, for every pool it controls.

    `is_advisory`: it is to be noted, not carried out.
    """

    now_ms: float
    controller: str
    pools: tuple[PoolDecision, ...]
    is_advisory: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """What makes a pool have as many workers as wanted."""

    num_launched: int
    drained: tuple[int, ...]  # worker ids, in this order


def changes(pool: PoolState, target: int) -> Changes:
    """Whom to launch or drain. Who is draining already counts no more.

    Those still starting go first, the last launched before others: they serve nobody. Then those
    with the fewest requests, of equals the youngest.
    """
    alive = [worker for worker in pool.workers if worker.phase is not Phase.DRAINING]
    surplus = len(alive) - target
    if surplus <= 0:
        return Changes(-surplus, ())
    alive.sort(key=lambda one: (one.phase is not Phase.STARTING, one.num_requests, -one.worker_id))
    return Changes(0, tuple(worker.worker_id for worker in alive[:surplus]))
