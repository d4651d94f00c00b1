"""KEDA: between none and one worker by itself, from one to many through an HPA of its own.

Cooling down concerns the way to zero alone; how fast more than one worker shrinks is the HPA's.
"""

from dataclasses import dataclass

from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.hpa import HpaRule, HpaSpec
from dynosim.planner.observation import Observation, PoolState
from dynosim.planner.pool_scaler import decided, next_tick
from dynosim.planner.queries import ServiceMetric, store_for
from dynosim.planner.scaling_rules import DOWN_BY_DEFAULT, UP_BY_DEFAULT, ScalingRules


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaTrigger:
    """A metric, and from what on it wakes a pool: when it is above `activation`.

    KEDA's triggers aim at a share of each worker unless told otherwise, so their metrics are to be
    made with `is_average=True`. What nobody answers, such as TTFT, wakes no pool that is at zero.
    """

    metric: ServiceMetric
    activation: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaSpec:
    """One ScaledObject of one pool; all but the triggers as KEDA has it by default."""

    pool: str
    triggers: tuple[KedaTrigger, ...]
    min_replicas: int = 0
    max_replicas: int = 100
    poll_ms: float = 30_000.0
    cooldown_ms: float = 300_000.0
    initial_cooldown_ms: float = 0.0
    up: ScalingRules = UP_BY_DEFAULT
    down: ScalingRules = DOWN_BY_DEFAULT
    tolerance: float = 0.1
    sync_ms: float = 15_000.0
    name: str = "keda"

    def hpa(self) -> HpaSpec:
        """The HPA it makes: of at least one worker. Raises: ValueError as `HpaSpec` does."""
        return HpaSpec(
            pool=self.pool,
            metrics=tuple(trigger.metric for trigger in self.triggers),
            min_replicas=max(self.min_replicas, 1),
            max_replicas=self.max_replicas,
            up=self.up,
            down=self.down,
            tolerance=self.tolerance,
            sync_ms=self.sync_ms,
            name=self.name,
        )


class Keda:
    """Polls every `poll_ms`, and lets its HPA look every `sync_ms`; both first at `start_ms`."""

    def __init__(self, spec: KedaSpec, start_ms: float = 0.0) -> None:
        self.spec = spec
        self._hpa = HpaRule(spec.hpa())
        self._seen = store_for(self._hpa.spec.metrics)
        self._poll_ms = self._sync_ms = start_ms
        self._created_ms = start_ms
        self._active_ms: float | None = None

    @property
    def name(self) -> str:
        """See `Controller`."""
        return self.spec.name

    @property
    def next_ms(self) -> float:
        """See `Controller`."""
        return min(self._poll_ms, self._sync_ms)

    def look(self, seen: Observation) -> ScalingDecision | None:
        """See `Controller`. None also when a poll finds nothing that it is to change."""
        now_ms = seen.now_ms
        self._seen.add_all(seen.scrapes)
        is_poll, is_sync = now_ms >= self._poll_ms, now_ms >= self._sync_ms
        if not (is_poll or is_sync):
            return None
        pool = seen.pool(self.spec.pool)
        polled: PoolDecision | None = None
        if is_poll:
            self._poll_ms = next_tick(self._poll_ms, self.spec.poll_ms, now_ms)
            polled = self._polled(pool, now_ms)
        if is_sync:
            self._sync_ms = next_tick(self._sync_ms, self.spec.sync_ms, now_ms)
        if polled is None:
            if not is_sync:
                return None
            polled = self._hpa.decide(pool, seen.reports, self._seen, now_ms)
        return ScalingDecision(now_ms, self.name, (polled,))

    def _polled(self, pool: PoolState, now_ms: float) -> PoolDecision | None:
        """What KEDA itself does to the pool; None: it leaves it to the HPA."""
        values = {
            one.metric.name: one.metric.read(self._seen, now_ms) for one in self.spec.triggers
        }
        figures = {name: value for name, value in values.items() if value is not None}
        active = [
            f"{name} {value:g} is above {trigger.activation:g}"
            for trigger, (name, value) in zip(self.spec.triggers, values.items(), strict=True)
            if value is not None and value > trigger.activation
        ]
        if active:
            self._active_ms = now_ms
            if pool.wanted > 0:
                return None
            target = max(self.spec.min_replicas, 1)
            return decided(pool, target, "wake_up", tuple(active), figures)
        if pool.wanted < self.spec.min_replicas:
            reason = f"{pool.wanted} is below the minimum of {self.spec.min_replicas}"
            return decided(pool, self.spec.min_replicas, "scale_up", (reason,), figures)
        if self.spec.min_replicas > 0:
            return None
        if len(figures) < len(values):
            reasons = tuple(f"{name} is not known" for name in values if name not in figures)
            return decided(pool, pool.wanted, "metrics_missing", reasons, figures)
        return self._idle(pool, now_ms, figures)

    def _idle(
        self, pool: PoolState, now_ms: float, figures: dict[str, float]
    ) -> PoolDecision | None:
        """No trigger is active: to zero after a while; None: not yet."""
        if pool.wanted == 0:
            return decided(pool, 0, "no_change", ("no trigger is active",), figures)
        if now_ms - self._created_ms < self.spec.initial_cooldown_ms:
            return None
        if self._active_ms is not None and now_ms - self._active_ms <= self.spec.cooldown_ms:
            return None
        since = "ever" if self._active_ms is None else f"for {(now_ms - self._active_ms) / 1e3:g} s"
        return decided(pool, 0, "scale_to_zero", (f"no trigger was active {since}",), figures)
