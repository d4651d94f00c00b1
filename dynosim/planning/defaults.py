"""Sections of controllers that a file does not state, made of its SLA and its planner's limits."""

from dataclasses import dataclass
from typing import Any

from dynosim.config.controllers import PlannerConfig
from dynosim.config.schema import RunConfig

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What all derived sections share: latencies, and the fewest and most workers of a pool."""

    ttft_ms: float | None
    itl_ms: float | None
    least: int
    most: int

    @property
    def ttft_s(self) -> float:
        """The bound on TTFT; where there is none, what a planner aims at by default."""
        ttft_ms = PlannerConfig().ttft_ms if self.ttft_ms is None else self.ttft_ms
        return max(0.001, ttft_ms / 1e3)


def limits_of(config: RunConfig, planner: PlannerConfig | None, peak: int) -> Limits:
    """The limits of a stated planner; without any, from one worker to twice the fixed peak."""
    assert config.sla is not None, "a comparison has one"
    ttft_ms, itl_ms = config.sla.ttft_ms, config.sla.itl_ms
    if planner is None:
        return Limits(ttft_ms, itl_ms, 1, 2 * peak)
    most = [2 * peak] if planner.max_endpoint is None else [planner.max_endpoint]
    if planner.max_gpu_budget is not None and not config.cluster.is_disagg:
        most.append(planner.max_gpu_budget // config.engine.gpus_per_worker)
    return Limits(ttft_ms, itl_ms, planner.min_endpoint, max(1, *[min(most)]))


def derived_section(controller: str, limits: Limits, in_flight: int) -> Data:
    """A section for a controller; `in_flight` is what a worker takes at a time within the SLA."""
    return _DERIVED[controller](limits, in_flight)


def _planner(limits: Limits, _: int) -> Data:
    targets = {"ttft_ms": limits.ttft_ms, "itl_ms": limits.itl_ms}
    return {
        "optimization_target": "sla",
        **{key: value for key, value in targets.items() if value is not None},
        "enable_load_scaling": True,
        "min_endpoint": limits.least,
        "max_endpoint": limits.most,
        "max_gpu_budget": None,
    }


def _hpa(limits: Limits, _: int) -> Data:
    return {
        "metric": "ttft_p95_s",
        "target": limits.ttft_s,
        "min_replicas": max(1, limits.least),
        "max_replicas": limits.most,
    }


def _keda(limits: Limits, _: int) -> Data:
    return {
        "triggers": [
            {"metric": "ttft_p95_s", "target": limits.ttft_s, "is_average": False},
            {"metric": "waiting_requests", "target": 1.0},
        ],
        "min_replicas": limits.least,
        "max_replicas": limits.most,
    }


def _concurrency(limits: Limits, in_flight: int) -> Data:
    return {
        "target": float(in_flight),
        "min_replicas": limits.least,
        "max_replicas": limits.most,
    }


_DERIVED = {"planner": _planner, "hpa": _hpa, "keda": _keda, "concurrency": _concurrency}
