"""An autoscaler that keeps spare KV cache and queue on every worker, as llm-d's WVA does.

It moves by one worker at a time; an HPA carries out what it asks for, with its own windows. WVA's
model-based optimiser, and its later analyser of token capacities, are not here.

Source: llm-d workload-variant-autoscaler, `docs/saturation-analyzer.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dynosim.planner.decision import PoolDecision
from dynosim.planner.observation import EngineReport, Observation, PoolState
from dynosim.planner.pool_scaler import PoolScaler, decided, direction, next_tick
from dynosim.planner.replica_count import Tolerance
from dynosim.planner.scaling_rules import DOWN_BY_DEFAULT, UP_BY_DEFAULT, Restraint, ScalingRules
from dynosim.workers.lifecycle import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturationSpec:
    """One pool's thresholds, by default WVA's.

    A worker is saturated at `kv_threshold` of its blocks used or `queue_threshold` requests
    waiting, at their highest over `peak_ms`. The others' mean distance to that is to be at least
    `spare_kv` and `spare_queue`, also after a worker would have gone.
    """

    pool: str
    min_replicas: int = 1
    max_replicas: int = 10
    kv_threshold: float = 0.8
    queue_threshold: float = 5.0
    spare_kv: float = 0.1
    spare_queue: float = 3.0
    peak_ms: float = 60_000.0
    reconcile_ms: float = 60_000.0
    sync_ms: float = 15_000.0
    tolerance: float = 0.1
    up: ScalingRules = UP_BY_DEFAULT
    down: ScalingRules = DOWN_BY_DEFAULT
    name: str = "saturation"

    def __post_init__(self) -> None:
        """Raises: ValueError if it could never decide."""
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError(
                f"{self.name}: min_replicas {self.min_replicas}, max_replicas {self.max_replicas}:"
                " expected 1 <= min_replicas <= max_replicas"
            )


@dataclass(frozen=True, slots=True)
class Peak:
    """The most of its KV blocks (0 to 1) and its queue that a worker had of late."""

    kv_share: float
    num_waiting: int


class SaturationScaler(PoolScaler):
    """Reconciles every `reconcile_ms`, and its HPA follows every `sync_ms`; first at `start_ms`."""

    def __init__(self, spec: SaturationSpec, start_ms: float = 0.0) -> None:
        super().__init__(spec.name, spec.pool, spec.sync_ms, start_ms)
        self.spec = spec
        self._restraint = Restraint(spec.up, spec.down)
        self._reports: list[EngineReport] = []
        self._reconcile_ms = start_ms
        self._desired: int | None = None
        self._why = "nothing was reconciled yet"
        self._figures: dict[str, float] = {}

    def _decide(self, pool: PoolState, seen: Observation) -> PoolDecision:
        now_ms = seen.now_ms
        since_ms = now_ms - self.spec.peak_ms
        self._reports = [one for one in (*self._reports, *seen.reports) if one.at_ms > since_ms]
        if now_ms >= self._reconcile_ms:
            self._reconcile_ms = next_tick(self._reconcile_ms, self.spec.reconcile_ms, now_ms)
            self._reconcile(pool)
        self._restraint.begin(pool.wanted, now_ms)
        found = self._followed(pool, now_ms)
        self._restraint.note(pool.wanted, found.target, now_ms)
        return found

    def _followed(self, pool: PoolState, now_ms: float) -> PoolDecision:
        """What the HPA makes of what is desired."""
        spec, reasons = self.spec, (self._why,)
        if not spec.min_replicas <= pool.wanted <= spec.max_replicas:
            bound = min(max(pool.wanted, spec.min_replicas), spec.max_replicas)
            return decided(pool, bound, direction(pool.wanted, bound), reasons, self._figures)
        if self._desired is None:
            return decided(pool, pool.wanted, "metrics_missing", reasons, self._figures)
        alive = pool.count(Phase.STARTING) + pool.count(Phase.READY)
        near = Tolerance(spec.tolerance, spec.tolerance)
        is_near = alive > 0 and near.covers(self._desired / alive)
        proposed = alive if is_near else self._desired
        settled = self._restraint.settle(
            pool.wanted, proposed, spec.min_replicas, spec.max_replicas, now_ms
        )
        verdict = direction(pool.wanted, settled.replicas)
        if verdict == "no_change" and settled.held_by is not None:
            verdict = f"held_by_{settled.held_by}"
        return decided(pool, settled.replicas, verdict, reasons + settled.reasons, self._figures)

    def _reconcile(self, pool: PoolState) -> None:
        """Say how many are desired, and why; None: no worker reported."""
        ready = [one.worker_id for one in pool.workers if one.phase is Phase.READY]
        peaks = [peak for worker in ready if (peak := self._peak(pool.name, worker)) is not None]
        spec, number = self.spec, pool.count(Phase.STARTING) + len(ready)
        if not peaks:
            self._desired, self._why, self._figures = None, "no ready worker reports", {}
            return
        fit = [
            one
            for one in peaks
            if one.kv_share < spec.kv_threshold and one.num_waiting < spec.queue_threshold
        ]
        kv, queue = self._spare(fit, len(fit))
        self._figures = {"spare_kv": kv, "spare_queue": queue, "saturated": len(peaks) - len(fit)}
        said = (
            f"{len(peaks) - len(fit)} of {len(peaks)} saturated; the others have {kv:.3g} of their"
            f" KV and {queue:.3g} of their queue to spare"
        )
        step = 0
        if kv < spec.spare_kv or queue < spec.spare_queue:
            step = 0 if pool.count(Phase.STARTING) else 1
            said += "; who starts already is awaited" if step == 0 else ""
        elif len(fit) > 1:
            kv, queue = self._spare(fit, len(fit) - 1)
            step = -1 if kv >= spec.spare_kv and queue >= spec.spare_queue else 0
            said += f"; with one fewer {kv:.3g} and {queue:.3g}"
        self._desired = min(max(number + step, spec.min_replicas), spec.max_replicas)
        self._why = f"{said}: {self._desired} desired"

    def _spare(self, fit: Sequence[Peak], number: int) -> tuple[float, float]:
        """KV and queue that each of `number` workers could still take, with the load of `fit`."""
        if number == 0:
            return 0.0, 0.0
        kv = self.spec.kv_threshold - sum(one.kv_share for one in fit) / number
        queue = self.spec.queue_threshold - sum(one.num_waiting for one in fit) / number
        return kv, queue

    def _peak(self, pool: str, worker_id: int) -> Peak | None:
        mine = [one for one in self._reports if (one.pool, one.worker_id) == (pool, worker_id)]
        if not mine:
            return None
        return Peak(max(one.used_kv_share for one in mine), max(one.num_waiting for one in mine))
