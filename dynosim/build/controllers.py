"""From a configuration to who decides on the cluster's size."""

from dataclasses import replace

from dynosim.build.knobs import from_section
from dynosim.cluster import ClusterSpec
from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec, pool_cards
from dynosim.config.autoscalers import (
    ConcurrencyConfig,
    KedaConfig,
    KedaTriggerConfig,
    ScalingRulesConfig,
)
from dynosim.config.controllers import HpaConfig, PlannerConfig, ScalingConfig
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.planner.concurrency import ConcurrencyScaler, ConcurrencySpec
from dynosim.planner.controller import Controller
from dynosim.planner.forecast import ForecastSpec
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.keda import Keda, KedaSpec, KedaTrigger
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec
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


def scaling_process(config: RunConfig, cluster: ClusterSpec) -> ScalingProcess | None:
    """The configured controller, ready to run; None: the cluster stays as it is.

    Raises: ConfigError if it does not go with the cluster.
    """
    controller = controller_of(config, cluster)
    return None if controller is None else ScalingProcess(controller, scaling_spec(config))


def controller_of(config: RunConfig, cluster: ClusterSpec) -> Controller | None:
    """The configured controller of a cluster, new; None: there is none.

    Raises: ConfigError if it does not go with the cluster.
    """
    planner = config.planner_in_full
    if planner is not None:
        return _planner(planner, cluster)
    if config.hpa is not None:
        return _hpa(config.hpa, cluster)
    if config.keda is not None:
        return _keda(config.keda, cluster)
    if config.concurrency is not None:
        return _concurrency(config.concurrency, cluster)
    return None


def scaling_spec(config: RunConfig) -> ScalingSpec:
    """What lies between the cluster and its controller. Decisions are kept, metrics are not."""
    section = ScalingConfig() if config.scaling is None else config.scaling
    return from_section(
        ScalingSpec,
        section,
        outages=tuple((one.from_ms, one.to_ms) for one in section.outages),
        max_passes=ScalingSpec().max_passes if _learns_from_steps(config) else 0,
        keeps_metrics=False,
        labels=frontend_labels(config),
    )


def _learns_from_steps(config: RunConfig) -> bool:
    """Whether a controller gets step times from engines' steps: else nobody need tell of them."""
    return config.planner is not None and config.planner.step_times != "plan"


def frontend_labels(config: RunConfig) -> FrontendLabels:
    """What the frontend's metrics say of the deployment."""
    live = config.live
    return FrontendLabels(live.metrics_namespace, live.served_model_name or config.model or "model")


def _planner(section: PlannerConfig, cluster: ClusterSpec) -> Planner:
    """The planner of a section in full: a target that is still null has its default."""
    mode = section.mode or ("agg" if cluster.disagg is None else "disagg")
    predictor = from_section(ForecastSpec, section.load_predictor)
    usual = PlannerSpec()
    spec = from_section(
        PlannerSpec,
        section,
        mode=mode,
        load_predictor=predictor,
        ttft_ms=section.ttft_ms or usual.ttft_ms,
        itl_ms=section.itl_ms or usual.itl_ms,
    )
    is_told = section.step_times == "plan"
    times = {pool.name: pool.times for pool in cluster.pools} if is_told else {}
    try:
        return Planner(spec, pool_cards(cluster), times)
    except ValueError as error:
        lines = "\n".join(f"planner: {line}" for line in str(error).splitlines())
        raise ConfigError(lines) from None


def _hpa(section: HpaConfig, cluster: ClusterSpec) -> Hpa:
    pool = _pool_of("hpa", section.pool, cluster)
    metric = ServiceMetric(
        name=section.metric,
        query=_QUERIES[section.metric],
        target=section.target,
        is_average=section.metric == "pending_requests",
    )
    down = replace(DOWN_BY_DEFAULT, window_ms=section.scale_down_window_ms)
    return Hpa(from_section(HpaSpec, section, pool=pool, metrics=(metric,), down=down))


def _keda(section: KedaConfig, cluster: ClusterSpec) -> Keda:
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


def _concurrency(section: ConcurrencyConfig, cluster: ClusterSpec) -> ConcurrencyScaler:
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
