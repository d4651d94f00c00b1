"""The report of one run: one flat dictionary that goes into report.json as it is.

Keys shared with Dynamo's replay report have that report's meaning (population: completed requests;
clock: 0 is the first arrival), so that both can be laid side by side. A number that does not exist
(no sample, no SLA) is None; NaN never appears. All times are ms of virtual time, except those in
PROCESS_KEYS, the only keys that differ between two runs of one configuration and seed.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynosim.compiled import CORE
from dynosim.metrics.cost import Power, cost_keys, energy_keys, money_keys
from dynosim.metrics.decode_runs import DecodeTimes
from dynosim.metrics.gaps import summarize_gaps
from dynosim.metrics.handoffs import handoff_keys
from dynosim.metrics.in_range import PoolTimes, in_range_keys
from dynosim.metrics.lives import (
    common,
    lived_shares,
    mean_gpus,
    most_at_once,
    step_time_scales,
)
from dynosim.metrics.percentiles import summarize_sample
from dynosim.metrics.routing import hit_keys, retention_keys, router_keys, share_keys
from dynosim.metrics.saturation import load_of
from dynosim.metrics.scaling import scaling_keys
from dynosim.metrics.startups import startup_keys
from dynosim.metrics.steady import steady_keys
from dynosim.metrics.tiers import tier_keys
from dynosim.records import FloatArray, IntArray, RequestLog, RequestStatus, RunResult, StepLog

PROCESS_KEYS: tuple[str, ...] = ("wall_time_ms", "simulate_wall_ms", "core")
"""Keys of the process that ran, not of what was simulated: real time, and which core it was."""

MS_PER_S = 1000.0
MS_PER_HOUR = 3_600_000.0

BoolArray = NDArray[np.bool_]


class ReportTiming(DecodeTimes, Protocol):
    """What a report needs of a step-time model."""

    @property
    def source(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def steps_in_range(self, steps: StepLog) -> IntArray: ...


class Sla(Protocol):
    """Limits that a request must meet; None: no limit."""

    @property
    def ttft_ms(self) -> float | None: ...
    @property
    def itl_ms(self) -> float | None: ...
    @property
    def e2e_ms(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Latencies:
    """Per-request latencies of all requests; NaN where one does not exist. All (n,) in ms."""

    ttft_ms: FloatArray
    ttst_ms: FloatArray
    tpot_ms: FloatArray  # also the request's mean inter-token gap
    e2e_ms: FloatArray

    @classmethod
    def of(cls, log: RequestLog) -> "Latencies":
        gaps = np.where(log.output_tokens > 1, log.output_tokens - 1, np.nan)
        return cls(
            ttft_ms=log.first_token_ms - log.arrival_ms,
            ttst_ms=log.second_token_ms - log.first_token_ms,
            tpot_ms=(log.finish_ms - log.first_token_ms) / gaps,
            e2e_ms=log.finish_ms - log.arrival_ms,
        )


def summarize(
    result: RunResult,
    timing: ReportTiming,
    *,
    sla: Sla | None,
    wall_time_ms: float,
    gpu_hour: float | None = None,
    power: Power | None = None,
    prefill_timing: ReportTiming | None = None,
) -> dict[str, Any]:
    """The report of a run, ready for JSON.

    `prefill_timing` are the step times of prefill workers, `timing` then those of decode workers.

    `wall_time_ms` is the real time of the whole job, `gpu_hour` what an hour of a GPU costs,
    `power` what one draws. Rates per GPU are per GPU held on average while the rate is counted. The
    ITL pool is described at `dynosim.metrics.gaps.summarize_gaps`.
    """
    log = result.requests
    completed = log.status == RequestStatus.COMPLETED
    latencies = Latencies.of(log)
    duration_ms = float(log.finish_ms[completed].max()) if completed.any() else 0.0
    report: dict[str, Any] = {
        **_counts(log, completed),
        "duration_ms": duration_ms,
        "wall_time_ms": wall_time_ms,
        **_throughput(log, completed, duration_ms, mean_gpus(result.workers, 0.0, duration_ms)),
        **_cluster(result),
        **_cache(result, completed),
        **hit_keys(result, completed),
        **retention_keys(result),
        **share_keys(result),
        **router_keys(result),
        **handoff_keys(result, completed),
        **tier_keys(result, completed),
        **scaling_keys(result),
        **startup_keys(result),
        **_latency_keys(result, latencies, completed, timing),
        **steady_keys(result, timing, latencies.ttft_ms, latencies.tpot_ms, latencies.e2e_ms),
        **_goodput(log, latencies, completed, sla, duration_ms),
        **load_of(result).report_keys(),
        **_timing_keys(result, timing, prefill_timing),
        "num_scheduling_events": result.num_scheduling_events,
        "simulate_wall_ms": result.simulate_wall_ms,
        "core": CORE.kind,
    }
    report |= cost_keys(report)
    report |= money_keys(report, gpu_hour) | energy_keys(report, power)
    return {key: _plain(value) for key, value in report.items()}


def per_second(amount: float, duration_ms: float) -> float | None:
    """Amount per second of virtual time; None for a run without duration."""
    return amount * MS_PER_S / duration_ms if duration_ms > 0 else None


def _plain(value: Any) -> Any:
    """The value as JSON knows it: no numpy type, no NaN, no infinity."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _counts(log: RequestLog, completed: BoolArray) -> dict[str, Any]:
    statuses = np.bincount(log.status, minlength=len(RequestStatus))
    return {
        "num_requests": len(log.status),
        "completed_requests": statuses[RequestStatus.COMPLETED],
        "rejected_requests": statuses[RequestStatus.REJECTED],
        "failed_requests": statuses[RequestStatus.FAILED],
        "migrated_requests": (log.migrations > 0).sum(),
        "unfinished_requests": statuses[RequestStatus.UNFINISHED],
        "timed_out_requests": statuses[RequestStatus.TIMED_OUT],
        "unsent_requests": statuses[RequestStatus.NOT_SENT],
        "total_input_tokens": log.input_tokens[completed].sum(),
        "total_output_tokens": log.output_tokens[completed].sum(),
    }


def _throughput(
    log: RequestLog, completed: BoolArray, duration_ms: float, gpus: float
) -> dict[str, Any]:
    """Rates over the whole run, first arrival to last completion; `gpus` are held on average."""
    inputs, outputs = (
        int(log.input_tokens[completed].sum()),
        int(log.output_tokens[completed].sum()),
    )
    return {
        "request_throughput_rps": per_second(int(completed.sum()), duration_ms),
        "input_throughput_tok_s": per_second(inputs, duration_ms),
        "output_throughput_tok_s": per_second(outputs, duration_ms),
        "total_throughput_tok_s": per_second(inputs + outputs, duration_ms),
        "output_tok_s_per_gpu": per_second(outputs / gpus, duration_ms) if gpus else None,
        "total_tok_s_per_gpu": per_second((inputs + outputs) / gpus, duration_ms) if gpus else None,
    }


def _cluster(result: RunResult) -> dict[str, Any]:
    """Size and use: the most workers and GPUs at once; None for sizes in which workers differ.

    Workers of the run's start exist from the first arrival on, those of its end to the last event.
    """
    steps, workers, end_ms = result.steps, result.workers, result.end_ms
    ranks, lock_step = workers.ranks_per_worker, result.lock_step
    provisioned_ms = end_ms * float(lived_shares(workers, 0.0, end_ms).sum())
    kv_shares = steps.used_blocks / workers.usable_blocks[steps.worker_id]
    return {
        "num_gpus": most_at_once(workers, workers.gpus, end_ms),
        "num_workers": most_at_once(workers, np.ones_like(workers.gpus), end_ms) // ranks,
        "gpus_per_worker": common(workers.gpus * ranks),
        "ranks_per_worker": ranks,
        "gpu_hours": end_ms * mean_gpus(workers, 0.0, end_ms) / MS_PER_HOUR,
        "num_gpu_blocks": common(workers.usable_blocks),
        "block_size": result.block_size,
        "peak_kv_usage_share": kv_shares.max(initial=0.0),
        "worker_busy_share": steps.duration_ms.sum() / provisioned_ms if provisioned_ms else None,
        "dummy_step_share": lock_step and lock_step.dummy_share,
        "rank_waiting_share": lock_step and lock_step.waiting_share,
        "num_steps": steps.num_steps.sum(),
        "preemptions": result.num_preemptions,
    }


def _cache(result: RunResult, completed: BoolArray) -> dict[str, Any]:
    """Reuse at first admission over all prompt tokens; both of completed requests.

    Dynamo's `prefix_cache_reused_ratio` takes the largest reuse over a request's admissions, which
    differs after a preemption only; its `first_admission_...` is this number.
    """
    log = result.requests
    inputs = int(log.input_tokens[completed].sum())
    ratio = int(log.cached_tokens[completed].sum()) / inputs if inputs else None
    return {
        "prefix_cache_reused_ratio": ratio,
        "first_admission_prefix_cache_reused_ratio": ratio,
        "committed_prefill_tokens": result.steps.prefill_tokens.sum(),
    }


def _latency_keys(
    result: RunResult, latencies: Latencies, completed: BoolArray, timing: ReportTiming
) -> dict[str, Any]:
    ttft = summarize_sample(latencies.ttft_ms[completed])
    tpot = summarize_sample(latencies.tpot_ms[completed])
    e2e = summarize_sample(latencies.e2e_ms[completed])
    scales = step_time_scales(result.workers)
    gaps = summarize_gaps(result.steps, result.stalled_gaps_ms, timing, scales)
    return {
        **ttft.keys_for("ttft_ms"),
        **summarize_sample(latencies.ttst_ms[completed]).keys_for("ttst_ms"),
        **tpot.keys_for("tpot_ms"),
        **gaps.gap_ms.keys_for("itl_ms"),
        **e2e.keys_for("e2e_latency_ms"),
        **gaps.token_rate.keys_for("output_token_throughput_per_user"),
        "num_ttft_samples": ttft.count,
        "num_tpot_samples": tpot.count,
        "num_itl_samples": gaps.gap_ms.count,
        "num_e2e_latency_samples": e2e.count,
    }


def meets_sla(latencies: Latencies, completed: BoolArray, sla: Sla) -> BoolArray:
    """Which requests completed within every limit; one with a single token has no ITL to miss."""
    good = completed.copy()
    limits = (
        (latencies.ttft_ms, sla.ttft_ms),
        (latencies.tpot_ms, sla.itl_ms),
        (latencies.e2e_ms, sla.e2e_ms),
    )
    for values, limit in limits:
        if limit is not None:
            good &= ~(values > limit)
    return good


def _goodput(
    log: RequestLog,
    latencies: Latencies,
    completed: BoolArray,
    sla: Sla | None,
    duration_ms: float,
) -> dict[str, Any]:
    """Requests within the SLA. Attainment is over all requests: one not served is one missed."""
    limits = () if sla is None else (sla.ttft_ms, sla.itl_ms, sla.e2e_ms)
    if sla is None or all(limit is None for limit in limits):
        keys = ("goodput_completed_requests", "goodput_rps", "goodput_output_throughput_tok_s")
        return dict.fromkeys((*keys, "sla_attainment"))
    good = meets_sla(latencies, completed, sla)
    return {
        "goodput_completed_requests": good.sum(),
        "goodput_rps": per_second(int(good.sum()), duration_ms),
        "goodput_output_throughput_tok_s": per_second(
            int(log.output_tokens[good].sum()), duration_ms
        ),
        "sla_attainment": good.mean() if len(good) else None,
    }


_LEAST_SURE = ("estimated", "derived", "measured")


def _timing_keys(
    result: RunResult, timing: ReportTiming, prefill_timing: ReportTiming | None
) -> dict[str, Any]:
    """How sure the step times are; of two models the less sure one counts."""
    if prefill_timing is None:
        return {
            "timing_source": timing.source,
            "timing_description": timing.description,
            "timing_notes": "; ".join(timing.notes) or None,
            **in_range_keys(timing, result.steps),
        }
    both = (prefill_timing, timing)
    about = [one.description for one in both]
    notes = dict.fromkeys([note for one in both for note in one.notes])
    return {
        "timing_source": min((one.source for one in both), key=_LEAST_SURE.index),
        "timing_description": about[0]
        if about[0] == about[1]
        else f"prefill: {about[0]}; decode: {about[1]}",
        "timing_notes": "; ".join(notes) or None,
        **in_range_keys(PoolTimes(prefill_timing, timing, result.workers), result.steps),
    }
