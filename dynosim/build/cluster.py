"""From a configuration to its cluster: pools of workers, the front end, and how far a run goes."""

from dataclasses import replace

from dynosim.build.engine import Prepared
from dynosim.build.routing import routing_spec
from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions
from dynosim.config.schema import RunConfig
from dynosim.router.spec import OpenLog
from dynosim.router.witness import ChoiceWitness
from dynosim.timing.prefill_estimate import StepTimeEstimator
from dynosim.timing.scaled import ScaledModel


def cluster_spec(
    config: RunConfig,
    prepared: Prepared,
    *,
    open_log: OpenLog | None = None,
    records_events: bool = False,
    witness: ChoiceWitness | None = None,
) -> ClusterSpec:
    """The configured cluster. `open_log` opens a log of its router, `records_events` keeps all.

    `witness` notes what some requests' workers were chosen from.

    Raises: ConfigError if a policy class cannot be imported.
    """
    engine = config.engine
    routing = routing_spec(
        config.router,
        block_size=engine.block_size,
        seed=config.seed,
        estimator=StepTimeEstimator(prepared.timing, engine.max_num_batched_tokens),
    )
    routing = replace(routing, records_events=records_events, open_log=open_log, witness=witness)
    return ClusterSpec(pools=_pools(config, prepared), routing=routing)


def run_options(
    config: RunConfig, *, exact_stepping: bool = False, records_trail: bool = False
) -> RunOptions:
    """How the configured cluster is run."""
    return RunOptions(
        concurrency=config.workload.concurrency,
        seed=config.seed,
        until_ms=config.cluster.max_sim_time_ms,
        exact_stepping=exact_stepping,
        records_trail=records_trail,
        client_timeout_ms=config.workload.client_timeout_ms,
    )


def _pools(config: RunConfig, prepared: Prepared) -> tuple[PoolSpec, ...]:
    """The configured workers; CPUs among them come last and take longer for a step."""
    cluster, times = config.cluster, prepared.timing
    scale = cluster.cpu_step_time_scale
    gpus = PoolSpec(
        engine=prepared.engine,
        times=times,
        workers=cluster.workers - cluster.cpu_workers,
        gpus_per_worker=config.engine.gpus_per_worker,
        ranks=prepared.ranks,
        taints=frozenset(cluster.taints),
        topology=cluster.topology,
    )
    if not cluster.cpu_workers:
        return (gpus,)
    cpus = replace(
        gpus,
        name="cpu_workers",
        times=ScaledModel(times, scale),
        workers=cluster.cpu_workers,
        device="cpu",
        step_time_scale=scale,
        topology={domain: _turned(of, gpus.workers) for domain, of in cluster.topology.items()},
    )
    return gpus, cpus


def _turned(values: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The values in turn, as they go on behind so many workers."""
    start = number % len(values)
    return values[start:] + values[:start]
