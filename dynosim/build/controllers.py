"""From a configuration to who decides on the cluster's size."""

from dataclasses import replace

from dynosim.build.knobs import from_section
from dynosim.cluster import ClusterSpec
from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec, pool_cards
from dynosim.config.controllers import HpaConfig, PlannerConfig, ScalingConfig
from dynosim.config.schema import RunConfig, SlaConfig
from dynosim.errors import ConfigError
from dynosim.planner.controller import Controller
from dynosim.planner.forecast import ForecastSpec
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.queries import PENDING_REQUESTS, TTFT_P95_S, ServiceMetric
from dynosim.planner.scaling_rules import DOWN_BY_DEFAULT


def scaling_process(config: RunConfig, cluster: ClusterSpec) -> ScalingProcess | None:
    """The configured controller, ready to run; None: the cluster stays as it is.

    Raises: ConfigError if it does not go with the cluster.
    """
    controller: Controller
    if config.planner is not None:
        controller = _planner(_with_targets(config.planner, config.sla), cluster)
    elif config.hpa is not None:
        controller = _hpa(config.hpa, cluster)
    else:
        return None
    return ScalingProcess(controller, scaling_spec(config))


def scaling_spec(config: RunConfig) -> ScalingSpec:
    """What lies between the cluster and its controller. Decisions are kept, metrics are not."""
    section = ScalingConfig() if config.scaling is None else config.scaling
    return from_section(
        ScalingSpec,
        section,
        outages=tuple((one.from_ms, one.to_ms) for one in section.outages),
        keeps_metrics=False,
        labels=FrontendLabels(model=config.live.served_model_name or config.model or "model"),
    )


def _with_targets(section: PlannerConfig, sla: SlaConfig | None) -> PlannerConfig:
    """What a planner is to keep, unless it says so itself: the bounds of the `sla:` section."""
    bounds = {} if sla is None else {key: getattr(sla, key) for key in ("ttft_ms", "itl_ms")}
    stated = section.model_fields_set
    missing = {key: bound for key, bound in bounds.items() if bound and key not in stated}
    return section.model_copy(update=missing)


def _planner(section: PlannerConfig, cluster: ClusterSpec) -> Planner:
    mode = section.mode or ("agg" if cluster.disagg is None else "disagg")
    predictor = from_section(ForecastSpec, section.load_predictor)
    spec = from_section(PlannerSpec, section, mode=mode, load_predictor=predictor)
    times = {pool.name: pool.times for pool in cluster.pools}
    try:
        return Planner(spec, pool_cards(cluster), times)
    except ValueError as error:
        lines = "\n".join(f"planner: {line}" for line in str(error).splitlines())
        raise ConfigError(lines) from None


def _hpa(section: HpaConfig, cluster: ClusterSpec) -> Hpa:
    pools = [pool.name for pool in cluster.pools]
    pool = section.pool or pools[0]
    if pool not in pools or (section.pool is None and len(pools) > 1):
        known = " or ".join(pools)
        stated = "missing" if section.pool is None else f"there is no pool {pool!r}"
        raise ConfigError(f"hpa.pool: {stated} (say {known})")
    is_average = section.metric == "pending_requests"
    query = PENDING_REQUESTS if is_average else TTFT_P95_S
    metric = ServiceMetric(
        name=section.metric, query=query, target=section.target, is_average=is_average
    )
    down = replace(DOWN_BY_DEFAULT, window_ms=section.scale_down_window_ms)
    spec = from_section(HpaSpec, section, pool=pool, metrics=(metric,), down=down)
    try:
        return Hpa(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from None
