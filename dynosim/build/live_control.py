"""The controller of a live deployment: of its plan alone, so that a log's reader makes it, too."""

from dataclasses import replace

from dynosim.build.cluster import cluster_spec
from dynosim.build.controllers import controller_of
from dynosim.build.engine import prepare
from dynosim.config.cluster import POOL_ROLES
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.planner.controller import Controller
from dynosim.timing.scaled import ScaledModel


def live_controller(plan: RunConfig, speedup: float = 1.0) -> Controller:
    """The plan's controller, in real time; steps take `speedup` times less than the plan says.

    Raises: ConfigError if the plan has none, or one that does not go with its workers.
    """
    cluster = cluster_spec(plan, prepare(plan))
    pools = cluster.pools
    if speedup != 1:
        pools = tuple(replace(pool, times=ScaledModel(pool.times, 1 / speedup)) for pool in pools)
    controller = controller_of(plan, replace(cluster, pools=pools))
    if controller is None:
        raise ConfigError(
            "the plan says nobody who decides on the number of workers (add planner:, hpa:, keda: "
            "or concurrency:)"
        )
    return controller


def pool_name(role: str) -> str:
    """What controllers call the pool of live workers of a role: as the twin does."""
    return "workers" if role == "agg" else role


def pool_gpus(plan: RunConfig) -> dict[str, int]:
    """The GPUs of one worker, by pool."""
    if not plan.cluster.is_disagg:
        return {pool_name("agg"): plan.engine.gpus_per_worker}
    return {pool_name(role): plan.for_pool(role).engine.gpus_per_worker for role in POOL_ROLES}


def pool_sizes(plan: RunConfig) -> dict[str, int]:
    """Workers at the start, by pool."""
    if not plan.cluster.is_disagg:
        return {pool_name("agg"): plan.cluster.workers}
    return {pool_name(role): plan.cluster.pool(role).workers for role in POOL_ROLES}
