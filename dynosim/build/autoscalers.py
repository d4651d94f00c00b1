"""From a configuration to an autoscaler."""

from dataclasses import replace

from dynosim.build.knobs import from_section
from dynosim.cluster import ClusterSpec
from dynosim.config.autoscalers import (
    ConcurrencyConfig,
    KedaConfig,
    KedaTriggerConfig,
    ScalingRulesConfig,
)
from dynosim.config.controllers import HpaConfig
from dynosim.errors import ConfigError
from dynosim.planner.concurrency import ConcurrencyScaler, ConcurrencySpec
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.keda import Keda, KedaSpec, KedaTrigger
from dynosim.planner.queries import (
    PENDING_REQUESTS,
    TTFT_P95_S,
    WAITING_REQUESTS,
    Query,
    ServiceMetric,
)
from dynosim.planner.scaling_rules import (
    DOWN_BY_DEFAULT,
    UP_BY_DEFAULT,
    ScalingPolicy,
    ScalingRules,
)

_QUERIES: dict[str, Query] = {
    "ttft_p95_s": TTFT_P95_S,
    "pending_requests": PENDING_REQUESTS,
    "waiting_requests": WAITING_REQUESTS,
}


def hpa(section: HpaConfig, cluster: ClusterSpec) -> Hpa:
    """The HPA of a section. Raises: ConfigError if it does not go with the cluster."""
    pool = _pool_of("hpa", section.pool, cluster)
    metric = ServiceMetric(
        name=section.metric,
        query=_QUERIES[section.metric],
        target=section.target,
        is_average=section.metric == "pending_requests",
    )
    down = replace(DOWN_BY_DEFAULT, window_ms=section.scale_down_window_ms)
    return Hpa(from_section(HpaSpec, section, pool=pool, metrics=(metric,), down=down))


def keda(section: KedaConfig, cluster: ClusterSpec) -> Keda:
    """The KEDA of a section. Raises: ConfigError if it does not go with the cluster."""
    spec = from_section(
        KedaSpec,
        section,
        pool=_pool_of("keda", section.pool, cluster),
        triggers=tuple(_trigger(trigger) for trigger in section.triggers),
        up=_scaling_rules(section.scale_up, UP_BY_DEFAULT),
        down=_scaling_rules(section.scale_down, DOWN_BY_DEFAULT),
    )
    return Keda(spec)


def _trigger(section: KedaTriggerConfig) -> KedaTrigger:
    query = _QUERIES[section.metric]
    metric = from_section(ServiceMetric, section, name=section.metric, query=query)
    return KedaTrigger(metric=metric, activation=section.activation)


def _scaling_rules(section: ScalingRulesConfig, default: ScalingRules) -> ScalingRules:
    policies = default.policies
    if section.policies is not None:
        policies = tuple(from_section(ScalingPolicy, policy) for policy in section.policies)
    window_ms = default.window_ms if section.window_ms is None else section.window_ms
    return from_section(ScalingRules, section, window_ms=window_ms, policies=policies)


def concurrency_scaler(section: ConcurrencyConfig, cluster: ClusterSpec) -> ConcurrencyScaler:
    """The scaler of a section. Raises: ConfigError if it does not go with the cluster."""
    pool = _pool_of("concurrency", section.pool, cluster)
    return ConcurrencyScaler(from_section(ConcurrencySpec, section, pool=pool))


def _pool_of(section: str, stated: str | None, cluster: ClusterSpec) -> str:
    """The pool that a section means. Raises: ConfigError if that is none, or could be two."""
    pools = [pool.name for pool in cluster.pools]
    if stated in pools or (stated is None and len(pools) == 1):
        return stated or pools[0]
    known = " or ".join(pools)
    wrong = "missing" if stated is None else f"there is no pool {stated!r}"
    raise ConfigError(f"{section}.pool: {wrong} (say {known})")
