"""Clusters of equal workers, the last of them CPUs if asked for, in few words."""

from collections.abc import Sequence
from dataclasses import replace

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.cluster.control import Process
from dynosim.engine.spec import EngineSpec
from dynosim.records import RunResult, Trace
from dynosim.router.spec import RoutingSpec
from dynosim.timing.model import StepTimeModel
from dynosim.timing.scaled import ScaledModel


def equal_workers(
    engine: EngineSpec,
    timing: StepTimeModel,
    *,
    num_workers: int = 1,
    routing: RoutingSpec | None = None,
    cpu_workers: int = 0,
    cpu_step_time_scale: float = 8.0,
) -> ClusterSpec:
    """A pool of workers, and one of CPUs behind it."""
    gpus = PoolSpec(engine=engine, times=timing, workers=num_workers - cpu_workers)
    cpus = replace(
        gpus,
        name="cpus",
        times=ScaledModel(timing, cpu_step_time_scale),
        workers=cpu_workers,
        device="cpu",
        step_time_scale=cpu_step_time_scale,
    )
    return ClusterSpec(pools=(gpus, cpus) if cpu_workers else (gpus,), routing=routing)


def run_twin(
    trace: Trace,
    *,
    engine: EngineSpec,
    timing: StepTimeModel,
    num_workers: int = 1,
    routing: RoutingSpec | None = None,
    cpu_workers: int = 0,
    cpu_step_time_scale: float = 8.0,
    concurrency: int | None = None,
    seed: int = 0,
    until_ms: float | None = None,
    exact_stepping: bool = False,
    processes: Sequence[Process] = (),
    client_timeout_ms: float | None = None,
) -> RunResult:
    """`trace` on such a cluster."""
    cluster = equal_workers(
        engine,
        timing,
        num_workers=num_workers,
        routing=routing,
        cpu_workers=cpu_workers,
        cpu_step_time_scale=cpu_step_time_scale,
    )
    options = RunOptions(
        concurrency=concurrency,
        seed=seed,
        until_ms=until_ms,
        exact_stepping=exact_stepping,
        client_timeout_ms=client_timeout_ms,
    )
    return simulate(trace, cluster, options, processes=processes)
