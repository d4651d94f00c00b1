"""Every key of a run's report computed a second time, plainly, to be checked by eye.

Plain lists and loops over `naive_run.Run`: requests with the time of each of their tokens, and
engine steps one by one. Nothing is imported from `dynosim.metrics`. What is not worked out here,
because it is a word or a count that somebody else is responsible for (the description of the step
times, the router's counters), is taken from where it belongs.
"""

import math

from naive_latencies import (
    Report,
    goodput_keys,
    latency_keys,
    mean,
    mean_gpus,
    per_second,
    ratio,
    steady_keys,
)
from naive_run import Row, Run
from naive_saturation import saturation_keys

from dynosim.experiment.run import RunOutcome
from dynosim.experiment.sent_ahead import AHEAD_KEYS
from dynosim.timing.fitted import FittedModel

MONEY_AND_ENERGY = (
    "cost_per_m_output_tokens",
    "cost_per_m_good_output_tokens",
    "cost_per_m_tokens",
    "energy_j_per_output_token",
    "output_tok_s_per_mw",
    "energy_source",
)


def naive_report(outcome: RunOutcome, run: Run) -> Report:
    """The report of `run`, which is `outcome` in plain Python; all keys but the real clock's."""
    duration_ms = max([r.finish_ms for r in run.completed if r.finish_ms is not None], default=0.0)
    goodput = goodput_keys(run, outcome.config.sla, duration_ms)
    return {
        **_counts(run),
        "duration_ms": duration_ms,
        **_rates(run, duration_ms, mean_gpus(run, 0.0, duration_ms)),
        **_sizes_and_use(run),
        **_reuse(run),
        **_spread(run),
        **_router(run),
        **_no_handoffs(run, outcome),
        **_no_tiers(),
        **dict.fromkeys(("num_scale_ups", "num_scale_downs", "mean_workers")),  # nobody scales
        **_no_startups(),
        **dict.fromkeys(("peak_pinned_blocks", "evicted_pinned_blocks")),  # nobody pins
        **dict.fromkeys(AHEAD_KEYS),  # nothing is sent ahead
        **latency_keys(run),
        **steady_keys(run),
        **goodput,
        **_cost(run, goodput["goodput_output_throughput_tok_s"], duration_ms),
        **dict.fromkeys(MONEY_AND_ENERGY),  # these runs have no hardware
        **saturation_keys(run),
        **_step_times(outcome, run),
        "num_scheduling_events": outcome.result.num_scheduling_events,
        "skipped_lines": outcome.trace.skipped_lines,
        "assumed_lengths": outcome.trace.assumed_lengths,
        "kv_capacity_source": outcome.capacity.source,
        "kv_capacity_basis": outcome.capacity.basis,
        "kv_capacity_low_blocks": outcome.capacity.low,
        "kv_capacity_high_blocks": outcome.capacity.high,
    }


# ---- counts and rates ------------------------------------------------------------------------


def _counts(run: Run) -> Report:
    statuses = [request.status for request in run.requests]
    return {
        "num_requests": len(run.requests),
        "completed_requests": statuses.count("completed"),
        "rejected_requests": statuses.count("rejected"),
        "failed_requests": statuses.count("failed"),
        "migrated_requests": sum(request.migrations > 0 for request in run.requests),
        "unfinished_requests": statuses.count("unfinished"),
        "timed_out_requests": statuses.count("timed_out"),
        "unsent_requests": statuses.count("not_sent"),
        "total_input_tokens": sum(request.input_tokens for request in run.completed),
        "total_output_tokens": sum(len(request.token_ms) for request in run.completed),
    }


def _rates(run: Run, duration_ms: float, gpus: float) -> Report:
    inputs = sum(request.input_tokens for request in run.completed)
    outputs = sum(len(request.token_ms) for request in run.completed)
    return {
        "request_throughput_rps": per_second(len(run.completed), duration_ms),
        "input_throughput_tok_s": per_second(inputs, duration_ms),
        "output_throughput_tok_s": per_second(outputs, duration_ms),
        "total_throughput_tok_s": per_second(inputs + outputs, duration_ms),
        "output_tok_s_per_gpu": per_second(outputs / gpus, duration_ms) if gpus else None,
        "total_tok_s_per_gpu": per_second((inputs + outputs) / gpus, duration_ms) if gpus else None,
    }


def _sizes_and_use(run: Run) -> Report:
    """Size of the cluster and how much of it was used, by single steps."""
    busy_ms = math.fsum(step.end_ms - step.start_ms for step in run.steps)
    used = [step.used_blocks / run.workers[step.worker].usable_blocks for step in run.steps]
    held_ms = [(worker.gpus, worker.lived_ms(0.0, run.end_ms)) for worker in run.workers]
    return {
        "num_gpus": most_at_once(run, [worker.gpus for worker in run.workers]),
        "num_workers": most_at_once(run, [1 for _ in run.workers]),
        "gpus_per_worker": the_same([worker.gpus for worker in run.workers]),
        "ranks_per_worker": 1,
        "dummy_step_share": None,
        "rank_waiting_share": None,
        "gpu_hours": math.fsum(gpus * ms for gpus, ms in held_ms) / 1000 / 3600,
        "num_gpu_blocks": the_same([worker.usable_blocks for worker in run.workers]),
        "block_size": run.block_size,
        "peak_kv_usage_share": max(used, default=0.0),
        "worker_busy_share": ratio(busy_ms, math.fsum(ms for _, ms in held_ms)),
        "num_steps": len(run.steps),
        "preemptions": sum(request.preemptions for request in run.requests),
        "committed_prefill_tokens": _computed_prompt_tokens(run),
    }


def _no_handoffs(run: Run, outcome: RunOutcome) -> Report:
    """What a cluster without pools for each phase says of them."""
    names = ("mean", "median", "p99")
    times = [f"{name}_{what}_ms" for what in ("transfer", "handoff") for name in names]
    shares = ["prefill_busy_share", "decode_busy_share", "local_prefill_share", "decode_held_ratio"]
    counts = ["kv_transfers", "cancelled_kv_transfers", "kv_bytes_moved"]
    counts.append("cross_generation_requests")
    workers = outcome.result.workers
    at_start = [ms for ms in workers.launched_ms.tolist() if ms == 0]
    found = dict.fromkeys((*times, *shares, *counts))
    return {**found, "layout": f"{len(at_start) // workers.ranks_per_worker}x"}


def _no_startups() -> Report:
    """What is said of starts where every worker is there from the start."""
    phases = ["schedule", "node", "image", "wait_checkpoint", "restore", "boot", "wait_source"]
    phases += ["weights", "compile", "warm_up", "checkpoint", "probe"]
    means = [f"mean_startup_{phase}_ms" for phase in phases]
    return dict.fromkeys(["num_startups", "mean_startup_ms", "max_startup_ms", *means])


def _no_tiers() -> Report:
    """What a cluster without tiers below its devices says of them."""
    ratios = ["device_reused_ratio", "onboarded_ratio", "beyond_onboarded_ratio"]
    times = [f"{name}_onboard_ms" for name in ("mean", "median", "p99")]
    blocks = [
        f"{name}_{what}_blocks"
        for name in ("host", "peers", "disk", "remote")
        for what in ("stored", "evicted", "resident", "loaded")
    ]
    return dict.fromkeys((*ratios, "onboarded_requests", *times, *blocks))


def most_at_once(run: Run, amounts: list[int]) -> int:
    """The largest sum over the workers there at one instant: as one comes, the sum is looked at."""
    instants_ms = [worker.launched_ms for worker in run.workers if worker.launched_ms <= run.end_ms]
    sums = [
        sum(
            amount
            for amount, worker in zip(amounts, run.workers, strict=True)
            if worker.launched_ms <= now_ms
            and (worker.ended_ms is None or now_ms < worker.ended_ms)
        )
        for now_ms in instants_ms
    ]
    return max(sums, default=0)


def the_same(values: list[int]) -> int | None:
    """The only value there is, if there is only one."""
    return values[0] if len(set(values)) == 1 else None


def _computed_prompt_tokens(run: Run) -> int:
    """Tokens computed by chunks; a single one that takes an answer up again is such a chunk."""
    return sum(step.prefill_tokens + step.resumed for step in run.steps)


def _cost(run: Run, good_tok_s: float | None, duration_ms: float) -> Report:
    """GPU hours of a million tokens: of answers, of answers within the SLA, of all."""
    held_ms = [worker.gpus * worker.lived_ms(0.0, run.end_ms) for worker in run.workers]
    hours = math.fsum(held_ms) / 1000 / 3600
    inputs = sum(request.input_tokens for request in run.completed)
    outputs = sum(len(request.token_ms) for request in run.completed)
    good = None if good_tok_s is None else good_tok_s * duration_ms / 1000
    return {
        "gpu_hours_per_m_output_tokens": hours * 1e6 / outputs if outputs else None,
        "gpu_hours_per_m_good_output_tokens": hours * 1e6 / good if good else None,
        "gpu_hours_per_m_tokens": hours * 1e6 / (inputs + outputs) if inputs + outputs else None,
    }


def _reuse(run: Run) -> Report:
    """Prompt tokens found in the cache at first admission, of completed requests."""
    cached = sum(request.cached_tokens for request in run.completed)
    reused = ratio(cached, sum(request.input_tokens for request in run.completed))
    shares = [request.cached_tokens / request.input_tokens for request in run.completed]
    hits = [request for request in run.completed if request.cached_tokens > 0]
    return {
        "prefix_cache_reused_ratio": reused,
        "first_admission_prefix_cache_reused_ratio": reused,
        "mean_request_hit_rate": mean(shares),
        "requests_with_hit_share": ratio(len(hits), len(run.completed)),
        "kv_read_write_ratio": ratio(cached, _computed_prompt_tokens(run)),
    }


# ---- routing ---------------------------------------------------------------------------------


def _spread(run: Run) -> Report:
    """How requests were spread over workers, whatever became of them."""
    counts = [0] * len(run.workers)
    for request in run.requests:
        if request.worker is not None:
            counts[request.worker] += 1
    placed = sum(counts)
    if placed == 0:
        return {"busiest_worker_request_share": None, "worker_request_cv": None}
    served = [
        count
        for count, worker in zip(counts, run.workers, strict=True)
        if worker.ready_ms is not None
    ]
    each = placed / len(served)
    variance = sum((count - each) ** 2 for count in served) / len(served)
    return {
        "busiest_worker_request_share": max(counts) / placed,
        "worker_request_cv": math.sqrt(variance) / each,
    }


INDEX_COUNTERS = ("stored_blocks", "removed_blocks", "duplicate_blocks", "unknown_parents",
                  "unknown_blocks", "queries", "lookups")  # fmt: skip
EVENT_COUNTERS = ("events_lost", "event_gaps", "event_replays", "event_dumps")


def _router(run: Run) -> Report:
    """What routers believed, made wait and refused; all None where nobody followed the caches."""
    report: Report = dict.fromkeys(
        ["router_overlap_ratio", "mean_overlap_error_tokens", "router_queued_requests",
         "mean_router_queue_ms", "p99_router_queue_ms", "refused_busy_requests",
         "refused_queue_full_requests", "index_blocks"]
    )  # fmt: skip
    report |= {f"index_{name}": None for name in INDEX_COUNTERS}
    report |= {f"kv_{name}": None for name in EVENT_COUNTERS}
    stats = run.routing
    if stats is None:
        return report
    met = [request for request in run.requests if request.scheduled_ms is not None]
    believed = [request.overlap_blocks * run.block_size for request in met]
    if met:
        errors = [abs(b - r.cached_tokens) for b, r in zip(believed, met, strict=True)]
        report["router_overlap_ratio"] = sum(believed) / sum(r.input_tokens for r in met)
        report["mean_overlap_error_tokens"] = mean(errors)
    waits_ms = [request.queued_ms for request in run.requests if request.queued_ms > 0]
    waiting_still = [
        request
        for request in run.requests
        if request.worker is None
        and request.status == "unfinished"
        and request.arrival_ms is not None
    ]
    refusals = [request.error or "" for request in run.requests if request.status == "rejected"]
    report |= {
        "router_queued_requests": len(waits_ms) + len(waiting_still),
        "mean_router_queue_ms": mean(waits_ms) or 0.0,
        "p99_router_queue_ms": interpolated(waits_ms, 99) if waits_ms else 0.0,
        "refused_busy_requests": sum(error.startswith("HTTP 503: ") for error in refusals),
        "refused_queue_full_requests": sum(error.startswith("HTTP 529: ") for error in refusals),
        "index_blocks": stats.index_blocks,
    }
    report |= {f"index_{name}": stats.counters[name] for name in INDEX_COUNTERS}
    return report | {f"kv_{name}": stats.counters.get(name, 0) for name in EVENT_COUNTERS}


def interpolated(values: list[float], percent: float) -> float:
    """The percentile in line between its two neighbours in the sorted sample."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


# ---- step times ------------------------------------------------------------------------------


def _step_times(outcome: RunOutcome, run: Run) -> Report:
    timing = outcome.timing
    report: Report = {
        "timing_source": timing.source,
        "timing_description": timing.description,
        "timing_notes": "; ".join(timing.notes) if timing.notes else None,
        "timing_in_range_share": None,
        "max_model_len": _longest_request(outcome),
    }
    axes = ("prefill_tokens", "prefix_tokens", "num_decodes", "mean_context")
    report |= {f"timing_in_range_share_{axis}": None for axis in axes}
    if not run.steps:
        return report
    if not isinstance(timing, FittedModel):
        return report | {"timing_in_range_share": 1.0}  # a formula has no range
    measured = {axis: getattr(timing.fit.measured, axis) for axis in axes}
    sizes = [_size_of_step(row, number) for row in run.rows for number in range(row.num_steps)]
    inside_all = 0
    inside = dict.fromkeys(axes, 0)
    for size in sizes:
        on = {axis: measured[axis] is None or size[axis] <= measured[axis] for axis in axes}
        inside_all += all(on.values())
        for axis in axes:
            inside[axis] += on[axis]
    report["timing_in_range_share"] = inside_all / len(sizes)
    for axis in axes:
        if measured[axis] is not None:
            report[f"timing_in_range_share_{axis}"] = inside[axis] / len(sizes)
    return report


def _size_of_step(row: Row, number: int) -> dict[str, float]:
    """How large one step of a row was on each axis; contexts grow by a token a step."""
    context = row.context_tokens + number * row.num_decodes
    return {
        "prefill_tokens": row.prefill_tokens,
        "prefix_tokens": row.prefix_tokens / row.num_prefills if row.num_prefills else 0.0,
        "num_decodes": row.num_decodes,
        "mean_context": context / row.num_decodes if row.num_decodes else 0.0,
    }


def _longest_request(outcome: RunOutcome) -> int:
    """As configured; without a model to ask, all that a worker's cache holds."""
    engine = outcome.config.engine
    if engine.max_model_len is not None:
        return engine.max_model_len
    return (outcome.capacity.num_gpu_blocks - 1) * engine.block_size
