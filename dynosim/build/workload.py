"""From the workload section of a run to its trace."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np

from dynosim.blocks.retention import RetentionClasses
from dynosim.build.knobs import from_section
from dynosim.config.schema import RunConfig
from dynosim.config.workload import SOURCES, PoolConfig, RetentionConfig, WorkloadConfig
from dynosim.errors import ConfigError
from dynosim.records import IntArray, Trace
from dynosim.workload.readers import read_trace
from dynosim.workload.recorded import RECORDED_FORMATS, recorded_format_of
from dynosim.workload.retained import Wording, with_wording
from dynosim.workload.scaling import start_sessions_faster, tiled
from dynosim.workload.spec import as_spec
from dynosim.workload.stages import Stage, draw_stages, stage_windows_s
from dynosim.workload.streams import stream
from dynosim.workload.template import with_template


def load_trace(config: RunConfig) -> Trace:
    """The requests of the configured workload. Raises: TraceError, ConfigError."""
    return build_trace(config.workload, seed=config.seed, resolve=config.resolve)


def build_trace(workload: WorkloadConfig, *, seed: int, resolve: Callable[[str], Path]) -> Trace:
    """The requests of `workload`, read from its trace file or drawn from its description.

    `speedup` divides arrivals and delays, `arrival_scale` arrivals alone; `repeat` puts it end to
    end. `concurrency` does not shape the trace, but a closed loop may do without arrivals.
    Raises: TraceError, ConfigError.
    """
    if sum(getattr(workload, source) is not None for source in SOURCES) != 1:
        raise ConfigError(f"workload: give exactly one of {', '.join(SOURCES)}")
    trace = _source_trace(workload, seed=seed, resolve=resolve)
    trace = tiled(_speed_up(trace, workload.speedup), workload.repeat)
    return start_sessions_faster(trace, workload.arrival_scale)


def _source_trace(workload: WorkloadConfig, *, seed: int, resolve: Callable[[str], Path]) -> Trace:
    """The requests as their source has them, behind the chat template's tokens."""
    stages = _stages(workload)
    if workload.pool is not None:
        trace = first_requests(_pool_trace(workload, workload.pool, stages, seed), workload.limit)
        tokens = workload.template_tokens + workload.pool.system_tokens
        return _with_retention(trace, np.full(len(trace), tokens), workload.retention)
    if workload.trace is not None:
        trace = read_trace(
            resolve(workload.trace),
            workload.format,
            workload.trace_block_size,
            workload.limit,
            workload.skip_bad_lines,
            workload.sort,
            needs_arrival=workload.concurrency is None,
            lengths_from_hash_ids=workload.lengths_from_hash_ids,
        )
    elif workload.agents is not None:
        from dynosim.workload.agents import write_agents

        trace = write_agents(
            workload.agents, seed, resolve=resolve, wording=_wording(workload.retention)
        )
        trace = first_requests(trace, workload.limit)
    else:
        from dynosim.workload.synthetic import shared_tokens, synthesize

        spec = as_spec(workload.synthetic, is_staged=bool(stages))
        trace = first_requests(
            synthesize(spec, seed, resolve=resolve, stages=stages), workload.limit
        )
        if workload.retention is not None:
            trace = _with_retention(trace, shared_tokens(spec, trace), workload.retention)
    return with_template(trace, workload.template_tokens)


def _with_retention(
    trace: Trace, system_tokens: IntArray, section: RetentionConfig | None
) -> Trace:
    """The trace with what its requests say of their blocks, if that is configured."""
    wording = _wording(section)
    return trace if wording is None else with_wording(trace, system_tokens, wording)


def _wording(section: RetentionConfig | None) -> Wording | None:
    """What requests say of their blocks, if that is configured."""
    if section is None:
        return None
    return Wording(
        classes=RetentionClasses(
            system_priority=section.system_priority,
            history_priority=section.history_priority,
            output_priority=section.output_priority,
            subagent_priority=section.sub_agent_priority,
        ),
        history_duration_ms=section.history_duration_ms,
        pin_ttl_ms=section.pin_ttl_ms,
        pin_ends_with_session=section.pin_ends_with_session,
        sub_agent_duration_ms=section.sub_agent_duration_ms,
        sub_agent_pin_ttl_ms=section.sub_agent_pin_ttl_ms,
    )


def recorded_format(workload: WorkloadConfig, resolve: Callable[[str], Path]) -> str | None:
    """The format of a recording of a graph of requests, which states its own block size."""
    if workload.trace is None:
        return None
    form = workload.format or recorded_format_of(resolve(workload.trace))
    return form if form in RECORDED_FORMATS else None


def _stages(workload: WorkloadConfig) -> list[Stage]:
    return [Stage(s.rate_rps, s.duration_s, s.start_s) for s in workload.stages or ()]


def stage_windows(workload: WorkloadConfig) -> list[tuple[float, float, float]]:
    """Start and end (s) and rate of each load stage, on the clock of the trace that is made."""
    factor = workload.speedup * workload.arrival_scale
    stages = _stages(workload)
    return [
        (start_s / factor, end_s / factor, stage.rate_rps * factor)
        for stage, (start_s, end_s) in zip(stages, stage_windows_s(stages), strict=True)
    ]


def _pool_trace(
    workload: WorkloadConfig, section: PoolConfig, stages: Sequence[Stage], seed: int
) -> Trace:
    from dynosim.workload.pool import PromptPool, pool_trace

    pool = from_section(PromptPool, section, template_tokens=workload.template_tokens)
    if not stages:
        return pool_trace(pool, np.zeros(section.requests or 0), seed=seed)
    arrival_ms, numbers = draw_stages(
        section.arrival, stages, stream(seed, "arrivals"), burstiness=section.burstiness
    )
    return pool_trace(pool, arrival_ms, seed=seed, stages=numbers)


def first_requests(trace: Trace, limit: int | None) -> Trace:
    """The first `limit` requests of `trace`; all of them if None or more than there are.

    Raises: ConfigError if `limit` is below 1.
    """
    if limit is None or limit >= len(trace):
        return trace
    if limit < 1:
        raise ConfigError(f"limit: expected an integer >= 1, got {limit}")
    return trace.take(np.arange(limit))


def _speed_up(trace: Trace, speedup: float) -> Trace:
    if not 0.0 < speedup < inf:
        raise ConfigError(f"workload.speedup: expected a number > 0, got {speedup}")
    if speedup == 1.0:
        return trace
    delay_ms = None if trace.delay_ms is None else trace.delay_ms / speedup
    dependencies = trace.dependencies
    if dependencies is not None:
        dependencies = replace(dependencies, delay_ms=dependencies.delay_ms / speedup)
    return replace(
        trace,
        arrival_ms=trace.arrival_ms / speedup,
        delay_ms=delay_ms,
        dependencies=dependencies,
    )
