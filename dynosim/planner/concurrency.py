"""An autoscaler that aims at requests in flight per worker, with a panic window, as Knative's.

Its activator, which buffers requests and spreads a burst, is not here: who waits, waits in the
frontend, and counts as in flight there.

Source: Knative Serving, `pkg/autoscaler/scaling/autoscaler.go`, defaults of its ConfigMap.
"""

from dataclasses import dataclass
from math import ceil, floor

from dynosim.planner.decision import PoolDecision
from dynosim.planner.observation import Observation, PoolState
from dynosim.planner.pool_scaler import PoolScaler, check_bounds, decided, direction
from dynosim.planner.series import LOOKBACK_MS, ScrapeStore
from dynosim.workers.lifecycle import Phase

IN_FLIGHT = "dynamo_frontend_active_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencySpec:
    """A pool's target of requests in flight; all but the maximum as Knative has it by default.

    A worker is to have `target` x `utilization` of what `selector` counts. `panic_share` of the
    stable window is the panic window; panic begins when that asks for `panic_threshold` times the
    ready workers. Where no scrape is that recent, the latest one counts for it.
    """

    pool: str
    max_replicas: int
    min_replicas: int = 0
    selector: str = IN_FLIGHT
    target: float = 100.0
    utilization: float = 0.7
    tick_ms: float = 2_000.0
    stable_ms: float = 60_000.0
    panic_share: float = 0.1
    panic_threshold: float = 2.0
    max_growth: float = 1000.0
    max_shrinkage: float = 2.0
    grace_ms: float = 30_000.0
    name: str = "concurrency"

    def __post_init__(self) -> None:
        """Raises: ValueError if it could never decide."""
        check_bounds(self.name, self.min_replicas, self.max_replicas)
        if self.target * self.utilization <= 0:
            raise ValueError(f"{self.name}: target x utilization: expected more than 0")


class ConcurrencyScaler(PoolScaler):
    """Looks every `tick_ms`, first at `start_ms`. It starts in panic if more than one is ready."""

    def __init__(self, spec: ConcurrencySpec, start_ms: float = 0.0) -> None:
        super().__init__(spec.name, spec.pool, spec.tick_ms, start_ms)
        self.spec = spec
        self._seen = ScrapeStore(keep_ms=max(LOOKBACK_MS, spec.stable_ms))
        self._has_looked = False
        self._panic_ms: float | None = None
        self._panic_replicas = 0
        self._zero_ms: float | None = None

    def _take_in(self, seen: Observation) -> None:
        self._seen.add_all(seen.scrapes)

    def _decide(self, pool: PoolState, seen: Observation) -> PoolDecision:
        if not self._has_looked:
            self._has_looked = True
            self._panic_replicas = pool.count(Phase.READY)
            self._panic_ms = seen.now_ms if self._panic_replicas > 1 else None
        return self._by_windows(pool, seen.now_ms)

    def _by_windows(self, pool: PoolState, now_ms: float) -> PoolDecision:
        spec = self.spec
        stable = self._seen.average(spec.selector, spec.stable_ms, now_ms)
        recent = self._seen.average(spec.selector, spec.stable_ms * spec.panic_share, now_ms)
        if recent is None:  # scraped less often than that
            recent = self._seen.sum(spec.selector, now_ms)
        if stable is None or recent is None:
            reason = f"{spec.selector} was not scraped for {spec.stable_ms / 1e3:g} s"
            return decided(pool, pool.wanted, "metrics_missing", (reason,), {})
        ready = max(pool.count(Phase.READY), 1)
        goal = spec.target * spec.utilization
        by_stable, by_panic = (ceil(value / goal) for value in (stable, recent))
        low, high = floor(ready / spec.max_shrinkage), ceil(ready * spec.max_growth)
        wanted, in_panic = (min(max(one, low), high) for one in (by_stable, by_panic))
        reasons = [
            f"{stable:g} in flight over {spec.stable_ms / 1e3:g} s, {goal:g} a worker, asks for"
            f" {by_stable}; {recent:g} of late for {by_panic}; {ready} ready allow {low} to {high}"
        ]
        self._panic(by_panic / ready >= spec.panic_threshold, now_ms)
        if self._panic_ms is not None:
            self._panic_replicas = max(self._panic_replicas, wanted, in_panic)
            wanted = self._panic_replicas
            reasons.append(f"in panic since {self._panic_ms / 1e3:g} s: no fewer than {wanted}")
        if wanted == 0 and pool.wanted > 0 and not self._is_over(now_ms):
            wanted = 1
            reasons.append(f"the last worker stays for {spec.grace_ms / 1e3:g} s")
        elif wanted > 0:
            self._zero_ms = None
        target = min(max(wanted, spec.min_replicas), spec.max_replicas)
        figures = {"stable_in_flight": stable, "panic_in_flight": recent, "proposed": float(wanted)}
        figures["is_panic"] = float(self._panic_ms is not None)
        return decided(pool, target, direction(pool.wanted, target), tuple(reasons), figures)

    def _panic(self, is_over_threshold: bool, now_ms: float) -> None:
        """Begin, go on, or end a stable window after the last time the threshold was passed."""
        if is_over_threshold:
            self._panic_ms = now_ms
        elif self._panic_ms is not None and self._panic_ms + self.spec.stable_ms < now_ms:
            self._panic_ms = None
            self._panic_replicas = 0

    def _is_over(self, now_ms: float) -> bool:
        """Whether nothing was wanted for the whole grace period."""
        if self._zero_ms is None:
            self._zero_ms = now_ms
        return now_ms - self._zero_ms >= self.spec.grace_ms
