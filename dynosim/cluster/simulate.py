"""Runs a trace through a cluster of simulated engines."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynosim.cluster.fleet import Fleet
from dynosim.cluster.journal import Journal
from dynosim.cluster.outside import as_clients_see
from dynosim.cluster.routing import RoutingSpec, make_placer
from dynosim.cluster.token_log import TokenLog
from dynosim.cluster.worker import Worker
from dynosim.engine.engine import Engine
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.records import FloatArray, RunResult, Trace
from dynosim.router.settings import RouterSettings
from dynosim.timing.model import StepTimeModel
from dynosim.timing.scaled import ScaledModel
from dynosim.workload.extents import prefix_extents
from dynosim.workload.load import NEVER, LoadDriver

if TYPE_CHECKING:
    from dynosim.cluster.control import Process


def simulate(
    trace: Trace,
    *,
    engine: EngineSpec,
    timing: StepTimeModel,
    num_workers: int,
    gpus_per_worker: int = 1,
    routing: RoutingSpec | None = None,
    cpu_step_time_scale: float = 8.0,
    concurrency: int | None = None,
    seed: int = 0,
    exact_stepping: bool = False,
    max_sim_time_ms: float | None = None,
    processes: "Sequence[Process]" = (),
) -> RunResult:
    """Replay `trace` on `num_workers` equal engines in virtual time.

    `routing` is round-robin if not given, with `seed` for its choices. CPU workers among them take
    `cpu_step_time_scale` times as long for a step. `exact_stepping` decides every engine step on
    its own instead of in bulk: the same result, slower. Events after `max_sim_time_ms` do not
    happen; what is under way then is unfinished. `processes` are SimPy processes that watch and
    steer the run, see `dynosim.cluster.control`.

    Raises: InfeasibleError if the cache is too small for the model length or for a request.
    """
    started = time.perf_counter()
    check_capacity(trace, engine)
    if num_workers < 1:
        raise ConfigError(f"cluster.workers: at least 1 is needed, got {num_workers}")
    extents = prefix_extents(
        trace, engine.block_size, single_blocks=engine.long_prefill_token_threshold > 0
    )
    extent_blocks: list[int] = extents.extent_blocks.tolist()
    journal = Journal(trace)
    if routing is None:
        settings = RouterSettings(engine.block_size, mode="round-robin", seed=seed)
        routing = RoutingSpec(settings)
    # Only other requests' blocks matter to a router; a hash index is told of all, as in reality.
    tells_all = routing.stamps_events or routing.uses_hashes
    announced = None if tells_all else extents.shared_extents()
    first_cpu = num_workers - routing.cpu_workers

    def make_worker(worker_id: int) -> Worker:
        times = timing if worker_id < first_cpu else ScaledModel(timing, cpu_step_time_scale)
        core = VllmScheduler(
            engine,
            extent_blocks,
            keep_rows=exact_stepping,
            publish_events=routing.publishes_events and engine.enable_prefix_caching,
            announced=announced,
        )
        token_log = TokenLog(
            journal,
            worker_id,
            core,
            times,
            is_pipelined=engine.async_scheduling,
            reports_first_tokens=routing.needs_router,
        )
        return Worker(
            worker_id,
            Engine(
                core,
                times,
                token_log,
                depth=engine.pipeline_depth,
                steps_singly=exact_stepping,
                stamps_events=routing.stamps_events,
            ),
            token_log,
        )

    workers = [make_worker(worker_id) for worker_id in range(num_workers)]
    outside_ms = timing.ingress_ms + timing.egress_ms
    placer = make_placer(routing, trace, extents, engine, workers)
    fleet = Fleet(
        trace,
        extents,
        engine,
        workers=workers,
        placer=placer,
        load=LoadDriver(trace, concurrency),
        journal=journal,
        turnaround_ms=outside_ms,
    )
    until_ms = NEVER if max_sim_time_ms is None else max_sim_time_ms - outside_ms
    if processes:
        from dynosim.cluster.control import ControlPlane

        control = ControlPlane(fleet, processes)
        control.run_until(until_ms)
        until_ms = control.now_ms if control.is_stopped else until_ms
    else:
        fleet.run_until(until_ms)
    for worker in workers:
        worker.engine.cut_off(until_ms)
    result = RunResult(
        requests=journal.request_log(is_closed_loop=concurrency is not None),
        steps=journal.step_log(),
        stalled_gaps_ms=np.array(journal.stalled_gaps_ms),
        num_workers=num_workers,
        gpus_per_worker=gpus_per_worker,
        num_gpu_blocks=engine.usable_blocks,
        block_size=engine.block_size,
        end_ms=until_ms if fleet.next_ms() < NEVER else fleet.now_ms,
        num_preemptions=sum(worker.engine.core.num_preemptions for worker in workers),
        num_scheduling_events=sum(worker.engine.num_events for worker in workers),
        routing=placer.stats(),
        kv_events=placer.kv_events(),
        step_time_scale=_step_time_scale(num_workers, first_cpu, cpu_step_time_scale),
        simulate_wall_ms=(time.perf_counter() - started) * 1e3,
    )
    if outside_ms == 0:
        return result
    return as_clients_see(result, ingress_ms=timing.ingress_ms, egress_ms=timing.egress_ms)


def _step_time_scale(num_workers: int, first_cpu: int, cpu_scale: float) -> FloatArray | None:
    if first_cpu == num_workers:
        return None
    return np.where(np.arange(num_workers) < first_cpu, 1.0, cpu_scale)


def check_capacity(trace: Trace, engine: EngineSpec) -> None:
    """Refuse an engine that vLLM would not start, or that some request would block for ever.

    Raises: InfeasibleError naming the sizes, the first such request and what to change.
    """
    capacity = engine.usable_blocks * engine.block_size
    if capacity < engine.max_model_len:
        raise InfeasibleError(
            f"engine.num_gpu_blocks: {engine.usable_blocks} usable blocks of {engine.block_size} "
            f"hold {capacity} tokens, fewer than engine.max_model_len {engine.max_model_len}: "
            "more blocks, more GPUs per worker, or a smaller max_model_len is needed"
        )


def check_requests_fit(trace: Trace, engine: EngineSpec) -> None:
    """Refuse a trace with requests that outgrow the KV cache.

    Meant for runs without a `max_model_len`: with one, longer prompts are rejected one by one, as
    an engine does.

    Raises: InfeasibleError naming the first such request and what to change.
    """
    capacity = engine.usable_blocks * engine.block_size
    needed = trace.input_tokens + trace.output_tokens - 1
    too_long = np.flatnonzero(needed > capacity)
    if len(too_long):
        row = int(too_long[0])
        raise InfeasibleError(
            f"{trace.source or 'trace'}: request {row} ({trace.input_tokens[row]} input + "
            f"{trace.output_tokens[row]} output tokens) is longer than the KV cache of one worker "
            f"({capacity} tokens), and so are {len(too_long) - 1} others: give workers more memory "
            "(engine.tensor_parallel, engine.num_gpu_blocks), or set engine.max_model_len to have "
            "too long prompts rejected and counted"
        )
