"""Kubernetes' Horizontal Pod Autoscaler: the ceil rule, held back by windows and rate policies.

What concerns CPU alone (its initialisation period, the delay of initial readiness) is not here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dynosim.planner.decision import PoolDecision
from dynosim.planner.observation import EngineReport, Observation, PoolState
from dynosim.planner.pool_scaler import PoolScaler, check_bounds, decided, direction
from dynosim.planner.queries import Metric, ServiceMetric, store_for
from dynosim.planner.replica_count import Proposal, Tolerance, by_service, by_workers
from dynosim.planner.scaling_rules import DOWN_BY_DEFAULT, UP_BY_DEFAULT, Restraint, ScalingRules
from dynosim.planner.series import ScrapeStore


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaSpec:
    """One HPA of one pool; all but the metrics and the maximum as Kubernetes has it by default."""

    pool: str
    metrics: tuple[Metric, ...]
    max_replicas: int
    min_replicas: int = 1
    up: ScalingRules = UP_BY_DEFAULT
    down: ScalingRules = DOWN_BY_DEFAULT
    tolerance: float = 0.1
    sync_ms: float = 15_000.0
    name: str = "hpa"

    def __post_init__(self) -> None:
        """Raises: ValueError if it could never decide."""
        if not self.metrics:
            raise ValueError(f"{self.name}: metrics: expected at least one")
        check_bounds(self.name, self.min_replicas, self.max_replicas)


class HpaRule:
    """What an HPA decides, whenever it is asked, and what it remembers between."""

    def __init__(self, spec: HpaSpec) -> None:
        self.spec = spec
        self._restraint = Restraint(spec.up, spec.down)
        self._near = Tolerance(
            *(
                spec.tolerance if rules.tolerance is None else rules.tolerance
                for rules in (spec.down, spec.up)
            )
        )

    def decide(
        self, pool: PoolState, reports: Sequence[EngineReport], seen: ScrapeStore, now_ms: float
    ) -> PoolDecision:
        """How many workers `pool` is to have. `seen` holds the service's metrics."""
        self._restraint.begin(pool.wanted, now_ms)
        found = self._decided(pool, reports, seen, now_ms)
        self._restraint.note(pool.wanted, found.target, now_ms)
        return found

    def _decided(
        self, pool: PoolState, reports: Sequence[EngineReport], seen: ScrapeStore, now_ms: float
    ) -> PoolDecision:
        low, high = self.spec.min_replicas, self.spec.max_replicas
        if pool.wanted == 0 and low > 0:
            return decided(pool, 0, "scaling_disabled", ("at 0 an HPA does nothing",), {})
        if not low <= pool.wanted <= high:
            bound = min(max(pool.wanted, low), high)
            reason = f"{pool.wanted} is outside {low} to {high}"
            return decided(pool, bound, direction(pool.wanted, bound), (reason,), {})
        proposals = self._proposals(pool, reports, seen, now_ms)
        reasons = tuple(proposal.reason for proposal in proposals)
        figures = {one.metric: one.value for one in proposals if one.value is not None}
        asked = [one.replicas for one in proposals if one.replicas is not None]
        if not asked or (len(asked) < len(proposals) and max(asked) < pool.wanted):
            reasons += ("a metric is missing: no fewer workers",) if asked else ()
            return decided(pool, pool.wanted, "metrics_missing", reasons, figures)
        proposed = max(asked)
        settled = self._restraint.settle(pool.wanted, proposed, low, high, now_ms)
        figures |= {"proposed": float(proposed)}
        verdict = direction(pool.wanted, settled.replicas)
        if verdict == "no_change" and settled.held_by is not None:
            verdict = f"held_by_{settled.held_by}"
        return decided(pool, settled.replicas, verdict, reasons + settled.reasons, figures)

    def _proposals(
        self, pool: PoolState, reports: Sequence[EngineReport], seen: ScrapeStore, now_ms: float
    ) -> list[Proposal]:
        return [
            by_service(metric, pool, seen, now_ms, self._near)
            if isinstance(metric, ServiceMetric)
            else by_workers(metric, pool, reports, now_ms, self._near)
            for metric in self.spec.metrics
        ]


class Hpa(PoolScaler):
    """An HPA that looks every `sync_ms`, first at `start_ms`."""

    def __init__(self, spec: HpaSpec, start_ms: float = 0.0) -> None:
        super().__init__(spec.name, spec.pool, spec.sync_ms, start_ms)
        self.spec = spec
        self._rule = HpaRule(spec)
        self._seen = store_for(spec.metrics)

    def _take_in(self, seen: Observation) -> None:
        self._seen.add_all(seen.scrapes)

    def _decide(self, pool: PoolState, seen: Observation) -> PoolDecision:
        return self._rule.decide(pool, seen.reports, self._seen, seen.now_ms)
