"""What autoscalers of one pool have in common: ticks on which they look, and how they answer."""

from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.observation import Observation, PoolState
from dynosim.workers.lifecycle import Phase


class PoolScaler:
    """Looks at one pool every `period_ms`, first at `start_ms`; a subclass decides.

    Ticks that nobody came for are left out.
    """

    def __init__(self, name: str, pool: str, period_ms: float, start_ms: float) -> None:
        self._name = name
        self._pool = pool
        self._period_ms = period_ms
        self._next_ms = start_ms

    @property
    def name(self) -> str:
        """See `Controller`."""
        return self._name

    @property
    def next_ms(self) -> float:
        """See `Controller`."""
        return self._next_ms

    def look(self, seen: Observation) -> ScalingDecision | None:
        """See `Controller`."""
        self._take_in(seen)
        if seen.now_ms < self._next_ms:
            return None
        self._next_ms = next_tick(self._next_ms, self._period_ms, seen.now_ms)
        found = self._decide(seen.pool(self._pool), seen)
        return ScalingDecision(seen.now_ms, self._name, (found,))

    def _take_in(self, seen: Observation) -> None:
        """Keep what later decisions need, also of what is seen between two ticks."""

    def _decide(self, pool: PoolState, seen: Observation) -> PoolDecision:
        """How many workers the pool is to have."""
        raise NotImplementedError


def check_bounds(name: str, low: int, high: int) -> None:
    """Raises: ValueError if no number of workers lies between, or only none."""
    if not 0 <= low <= high or high < 1:
        raise ValueError(
            f"{name}: min_replicas {low}, max_replicas {high}:"
            " expected 0 <= min_replicas <= max_replicas and at least 1 at most"
        )


def next_tick(last_ms: float, period_ms: float, now_ms: float) -> float:
    """The first of the moments `period_ms` apart that is after `now_ms`; those missed are gone."""
    tick_ms = last_ms
    while tick_ms <= now_ms:
        tick_ms += period_ms
    return tick_ms


def decided(
    pool: PoolState,
    target: int,
    verdict: str,
    reasons: tuple[str, ...],
    figures: dict[str, float],
) -> PoolDecision:
    """A decision on `pool` whose figures tell its workers, too."""
    ready, starting = pool.count(Phase.READY), pool.count(Phase.STARTING)
    known = {"wanted": float(pool.wanted), "ready": float(ready), "starting": float(starting)}
    return PoolDecision(
        pool.name, ready + starting, target, verdict, reasons, figures=figures | known
    )


def direction(before: int, after: int) -> str:
    """The verdict on a change."""
    if after == before:
        return "no_change"
    return "scale_up" if after > before else "scale_down"
