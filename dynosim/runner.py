"""One configuration to one report: reads the workload, times the engine, simulates, summarizes."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynosim.cluster import check_requests_fit, simulate
from dynosim.cluster.prefill_estimate import StepTimeEstimator
from dynosim.config.schema import EngineConfig, RunConfig
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.metrics import check_conservation, summarize
from dynosim.records import RunResult, Trace
from dynosim.replay_log import LogWriter
from dynosim.routing_config import check_tiers, routing_spec
from dynosim.silicon import Capacity, build_timing, resolve_num_gpu_blocks
from dynosim.silicon.catalogue import model_entry
from dynosim.timing.model import StepTimeModel
from dynosim.workload.build import build_trace


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run, with all that reports and plots need."""

    config: RunConfig
    trace: Trace
    timing: StepTimeModel
    result: RunResult
    capacity: Capacity
    report: dict[str, Any]  # what `summarize` returns, and what this module knows


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a configuration means, before any request is served."""

    engine: EngineSpec
    timing: StepTimeModel
    capacity: Capacity


def run(
    config: RunConfig,
    *,
    exact_stepping: bool = False,
    check: bool = False,
    trace: Trace | None = None,
    prepared: Prepared | None = None,
    router_log: Path | None = None,
    record_kv_events: bool = False,
) -> RunOutcome:
    """Simulate `config`. `trace` is the workload if it has been loaded already, `prepared` what
    `prepare` gives, perhaps with other step times.

    `router_log` is a file to write the router's inputs and decisions to, for `replay_log`;
    `record_kv_events` keeps every KV event in the result. `wall_time_ms` in the report is real time
    from before the trace is opened to the end. `check` tests the laws of conservation on the
    result.

    Raises: ConfigError, TraceError, InfeasibleError; InvariantError if a law is broken.
    """
    started = time.perf_counter()
    if config.router.mode == "direct":
        raise ConfigError(
            "router.mode: direct needs requests that name their worker, which traces do not "
            "(use another mode in simulations)"
        )
    check_tiers(config.router)
    with collector_paused():
        trace = load_trace(config) if trace is None else trace
        prepared = prepare(config) if prepared is None else prepared
        if config.engine.max_model_len is None:
            check_requests_fit(trace, prepared.engine)
        routing = routing_spec(
            config.router,
            block_size=config.engine.block_size,
            seed=config.seed,
            estimator=StepTimeEstimator(prepared.timing, config.engine.max_num_batched_tokens),
            cpu_workers=config.cluster.cpu_workers,
        )
        routing = replace(routing, records_events=record_kv_events)
        log = None
        if router_log is not None:
            log = LogWriter(router_log, config.router.policy)
            routing = replace(routing, open_log=log.open)
        result = simulate(
            trace,
            engine=prepared.engine,
            timing=prepared.timing,
            num_workers=config.cluster.workers,
            gpus_per_worker=config.engine.tensor_parallel,
            routing=routing,
            cpu_step_time_scale=config.cluster.cpu_step_time_scale,
            concurrency=config.workload.concurrency,
            seed=config.seed,
            exact_stepping=exact_stepping,
            max_sim_time_ms=config.cluster.max_sim_time_ms,
        )
        if log is not None:
            log.close()
        if check:
            check_conservation(result, trace)
        report = summarize(result, prepared.timing, sla=config.sla, wall_time_ms=0.0)
    report["skipped_lines"] = trace.skipped_lines
    report["assumed_lengths"] = trace.assumed_lengths
    report["max_model_len"] = prepared.engine.max_model_len
    report["kv_capacity_source"] = prepared.capacity.source
    report["wall_time_ms"] = (time.perf_counter() - started) * 1e3
    return RunOutcome(config, trace, prepared.timing, result, prepared.capacity, report)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside: a run makes many objects and no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def load_trace(config: RunConfig) -> Trace:
    """The requests of the configured workload. Raises: TraceError, ConfigError."""
    return build_trace(config.workload, seed=config.seed, resolve=config.resolve)


def prepare(config: RunConfig) -> Prepared:
    """The engine and the step times that the configuration means.

    Raises: ConfigError for an unknown model, hardware or profile; InfeasibleError for an engine
    that the hardware cannot hold or that vLLM would not start.
    """
    engine, model, hardware = config.engine, config.model_source, config.hardware_source
    capacity = resolve_num_gpu_blocks(engine, model=model, hardware=hardware)
    blocks = capacity.num_gpu_blocks
    spec = engine_spec(engine, num_gpu_blocks=blocks, max_model_len=_context_length(config, blocks))
    timing = build_timing(
        config.timing,
        model=model,
        hardware=hardware,
        engine=engine,
        num_gpu_blocks=spec.usable_blocks,
        resolve=config.resolve,
    )
    return Prepared(spec, timing, capacity)


def engine_spec(engine: EngineConfig, *, num_gpu_blocks: int, max_model_len: int) -> EngineSpec:
    """The scheduler's configuration.

    Raises: InfeasibleError if vLLM refuses it now that `max_model_len` is known.
    """
    tokens, threshold = engine.max_num_batched_tokens, engine.long_prefill_token_threshold
    if not engine.enable_chunked_prefill and tokens < max_model_len:
        raise InfeasibleError(
            f"engine.max_num_batched_tokens: {tokens} is less than max_model_len ({max_model_len}) "
            "without chunked prefill; vLLM refuses that (raise it, lower engine.max_model_len, or "
            "enable chunked prefill)"
        )
    if threshold > max_model_len:
        raise InfeasibleError(
            f"engine.long_prefill_token_threshold: {threshold} is more than max_model_len "
            f"({max_model_len}); vLLM refuses that (lower it)"
        )
    return EngineSpec(
        num_gpu_blocks=num_gpu_blocks,
        max_model_len=max_model_len,
        block_size=engine.block_size,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=tokens,
        enable_prefix_caching=engine.enable_prefix_caching,
        enable_chunked_prefill=engine.enable_chunked_prefill,
        long_prefill_token_threshold=threshold,
        long_prefill_token_threshold_adaptive=engine.long_prefill_token_threshold_adaptive,
        policy=engine.policy,
        watermark=engine.watermark,
        scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
        max_num_active_seqs=engine.max_num_active_seqs,
        async_scheduling=engine.async_scheduling,
    )


def _context_length(config: RunConfig, num_gpu_blocks: int) -> int:
    """As configured; else the model's own; without a model, all that the cache holds."""
    if config.engine.max_model_len is not None:
        return config.engine.max_model_len
    if config.model_source is not None:
        data = model_entry(config.model_source).config
        length = data.get("text_config", data).get("max_position_embeddings")
        if isinstance(length, int) and length > 0:
            return length
    return (num_gpu_blocks - 1) * config.engine.block_size
