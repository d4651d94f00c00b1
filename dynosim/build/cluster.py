"""From a configuration to its cluster: pools of workers, the front end, and how far a run goes."""

from dataclasses import replace

from dynosim.build.disagg import handoff_spec, kv_geometry, link_of
from dynosim.build.engine import Prepared
from dynosim.build.knobs import from_section
from dynosim.build.routing import routing_spec
from dynosim.build.startup import starts_cold, startup_spec
from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions
from dynosim.cluster.spec import DisaggSpec, TransferSpec
from dynosim.config.cluster import POOL_ROLES
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.router.frontend import FrontendSpec
from dynosim.router.spec import OpenLog, RoutingSpec
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
    if config.cluster.is_disagg:
        if open_log is not None:
            raise ConfigError(
                "a router log is of one router, and this cluster has one for each pool (deploy the "
                "plan to get both, or set cluster.mode: agg)"
            )
        return _disagg_spec(config, prepared, records_events=records_events, witness=witness)
    routing = _routing(config, prepared)
    routing = replace(routing, records_events=records_events, open_log=open_log, witness=witness)
    return ClusterSpec(
        pools=_pools(config, prepared),
        routing=routing,
        frontend=_frontend(config, prepared),
        starts_empty=config.waits_for_workers,
    )


def _frontend(config: RunConfig, first: Prepared) -> FrontendSpec | None:
    """The stages of the frontend, before workers that are prepared so; None: they take no time.

    Raises: ConfigError if step times of unknown parts have them already.
    """
    section = config.cluster.frontend
    if section.is_instant:
        return None
    spec = from_section(FrontendSpec, section)
    if spec == FrontendSpec(startup_ms=spec.startup_ms):
        return spec
    stated = config.pools()[0].timing.ingress_ms
    if stated is None and first.timing.ingress_ms:
        raise ConfigError(
            "cluster.frontend: the step times have a way into the engine already, of "
            f"{first.timing.ingress_ms:g} ms, which may be the same work (state timing.ingress_ms, "
            "what is left beside the frontend's stages; 0: nothing)"
        )
    return spec


def _routing(config: RunConfig, prepared: Prepared) -> RoutingSpec:
    engine, tiers = config.engine, prepared.tiers
    return routing_spec(
        config.router,
        block_size=engine.block_size,
        seed=config.seed,
        estimator=StepTimeEstimator(prepared.timing, engine.max_num_batched_tokens),
        has_slower_tiers=tiers is not None and tiers.are_published,
    )


def _disagg_spec(
    config: RunConfig,
    decode: Prepared,
    *,
    records_events: bool,
    witness: ChoiceWitness | None,
) -> ClusterSpec:
    """A pool for each phase; `witness` looks at the choice of prefill workers."""
    prefill = decode.prefill
    assert prefill is not None
    plans = [config.for_pool(role) for role in POOL_ROLES]
    routings = [
        replace(_routing(plan, prepared), records_events=records_events)
        for plan, prepared in zip(plans, (prefill, decode), strict=True)
    ]
    pools = tuple(
        PoolSpec(
            name=role,
            role=role,
            engine=prepared.engine,
            times=prepared.timing,
            workers=plan.cluster.workers,
            gpus_per_worker=plan.engine.gpus_per_worker,
            ranks=prepared.ranks,
            tensor_parallel=plan.engine.tensor_parallel,
            topology=dict(plan.cluster.topology),
            taints=frozenset(plan.cluster.taints),
            model=plan.model,
            kv_dtype=plan.engine.kv_cache_dtype,
            tiers=prepared.tiers,
            startup=startup_spec(plan),
            start_cold=starts_cold(plan),
        )
        for role, plan, prepared in zip(POOL_ROLES, plans, (prefill, decode), strict=True)
    )
    return ClusterSpec(
        pools=pools,
        routing=replace(routings[0], witness=witness),
        disagg=DisaggSpec(
            handoff=handoff_spec(config),
            transfer=transfer_spec(config),
            decode_routing=routings[1],
        ),
        frontend=_frontend(config, prefill),
    )


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
        migration_limit=config.live.migration_limit,
        waits_for_workers=config.waits_for_workers,
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
        tensor_parallel=config.engine.tensor_parallel,
        topology=dict(cluster.topology),
        taints=frozenset(cluster.taints),
        model=config.model,
        kv_dtype=config.engine.kv_cache_dtype,
        tiers=prepared.tiers,
        startup=startup_spec(config),
        start_cold=starts_cold(config),
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


def transfer_spec(config: RunConfig) -> TransferSpec:
    """How KV gets from prefill to decode workers. Raises: ConfigError, see `kv_geometry`."""
    transfer = config.cluster.transfer
    assert transfer is not None
    return TransferSpec(
        link=link_of(transfer),
        geometry=kv_geometry(config),
        exposed_share=transfer.exposed_share,
        moves=transfer.moves,
        uplinks=dict(transfer.uplink_gb_s),
    )
