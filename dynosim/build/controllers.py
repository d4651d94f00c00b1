"""From a configuration to who decides on the cluster's size."""

from dynosim.build.knobs import from_section
from dynosim.cluster import ClusterSpec
from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec, pool_cards
from dynosim.config.controllers import PlannerConfig, ScalingConfig
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.planner.controller import Controller
from dynosim.planner.forecast import ForecastSpec
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec


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
    if not config.is_scaled:
        return None
    # Here, or who has a planner would load them all.
    from dynosim.build.autoscalers import concurrency_scaler, hpa, keda

    if config.hpa is not None:
        return hpa(config.hpa, cluster)
    if config.keda is not None:
        return keda(config.keda, cluster)
    return None if config.concurrency is None else concurrency_scaler(config.concurrency, cluster)


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
