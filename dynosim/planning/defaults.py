"""Sections of controllers that a file does not state, made of its SLA and its planner's limits."""

from dataclasses import dataclass
from typing import Any

from dynosim.config.controllers import PlannerConfig
from dynosim.config.schema import RunConfig
from dynosim.planner.operating_point import OperatingPoint
from dynosim.planner.planner_spec import PlannerSpec

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What derived sections are made of: latencies, the fewest and most workers of a pool, and
    what one of them can do."""

    ttft_ms: float | None
    itl_ms: float | None
    least: int
    most: int
    in_flight: int = 1  # requests that a worker takes at a time
    rps: float = 1.0  # and serves a second, both within the SLA by its step times

    @property
    def ttft_s(self) -> float:
        """The bound on TTFT; where there is none, what a planner aims at by default."""
        ttft_ms = PlannerSpec().ttft_ms if self.ttft_ms is None else self.ttft_ms
        return max(0.001, ttft_ms / 1e3)


def limits_of(
    config: RunConfig, planner: PlannerConfig | None, peak: int, point: OperatingPoint
) -> Limits:
    """The limits of a stated planner; without any, from one worker to twice the fixed peak.

    `point` is a worker at its best within the SLA.
    """
    assert config.sla is not None, "a comparison has one"
    ttft_ms, itl_ms = config.sla.ttft_ms, config.sla.itl_ms
    if planner is None:
        return Limits(ttft_ms, itl_ms, 1, 2 * peak, point.num_seqs, point.rps)
    most = [2 * peak] if planner.max_endpoint is None else [planner.max_endpoint]
    if planner.max_gpu_budget is not None and not config.cluster.is_disagg:
        most.append(planner.max_gpu_budget // config.engine.gpus_per_worker)
    least, most_workers = planner.min_endpoint, max(1, min(most))
    return Limits(ttft_ms, itl_ms, least, most_workers, point.num_seqs, point.rps)


def derived_section(controller: str, limits: Limits) -> Data:
    """A section for a controller."""
    return _DERIVED[controller](limits)


def _planner(limits: Limits) -> Data:
    targets = {"ttft_ms": limits.ttft_ms, "itl_ms": limits.itl_ms}
    return {
        "optimization_target": "sla",
        **{key: value for key, value in targets.items() if value is not None},
        "enable_load_scaling": True,
        "min_endpoint": limits.least,
        "max_endpoint": limits.most,
        "max_gpu_budget": None,
    }


def _hpa(limits: Limits) -> Data:
    return {
        "metric": "ttft_p95_s",
        "target": limits.ttft_s,
        "min_replicas": max(1, limits.least),
        "max_replicas": limits.most,
    }


def _keda(limits: Limits) -> Data:
    pending = max(1.0, round(limits.rps * limits.ttft_s, 1))  # they wait as long as they may
    return {
        "triggers": [{"metric": "pending_requests", "target": pending}],
        "min_replicas": limits.least,
        "max_replicas": limits.most,
    }


def _concurrency(limits: Limits) -> Data:
    return {
        "target": float(limits.in_flight),
        "min_replicas": limits.least,
        "max_replicas": limits.most,
    }


_DERIVED = {"planner": _planner, "hpa": _hpa, "keda": _keda, "concurrency": _concurrency}
