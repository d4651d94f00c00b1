"""Every key of a run's report computed a second time, plainly, to be checked by eye.

Plain lists and loops over `naive_run.Run`: requests with the time of each of their tokens, and
engine steps one by one. Nothing is imported from `dynosim.metrics`. What is not worked out here,
because it is a word or a count that somebody else is responsible for (the description of the step
times, the router's counters), is taken from where it belongs.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from naive_run import Request, Row, Run
from naive_saturation import saturation_keys
from naive_worker import SAME_MS, Step

from dynosim.runner import RunOutcome
from dynosim.timing.fitted import FittedModel

Report = dict[str, Any]
PERCENTS = {"median": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
ALL = ("mean", "min", "max", "median", "p75", "p90", "p95", "p99", "std")


class Between(NamedTuple):
    """A number that may lie anywhere from `low` to `high`.

    A step may end at the very moment a window opens or closes (an arrival that an answer brought
    about); whether it is inside is then a matter of the order in which step times were added up.
    """

    low: float
    high: float


def naive_report(outcome: RunOutcome, run: Run) -> Report:
    """The report of `run`, which is `outcome` in plain Python; all keys but the real clock's."""
    gpus = run.num_workers * run.gpus_per_worker
    duration_ms = max([r.finish_ms for r in run.completed if r.finish_ms is not None], default=0.0)
    return {
        **_counts(run),
        "duration_ms": duration_ms,
        **_rates(run, duration_ms, gpus),
        **_sizes_and_use(run, gpus),
        **_reuse(run),
        **_spread(run),
        **_router(run),
        **_latencies(run),
        **_steady(run, gpus),
        **_goodput(run, outcome.config.sla, duration_ms),
        **saturation_keys(run),
        **_step_times(outcome, run),
        "num_scheduling_events": outcome.result.num_scheduling_events,
        "skipped_lines": outcome.trace.skipped_lines,
        "kv_capacity_source": outcome.capacity.source,
    }


def per_second(amount: float, duration_ms: float) -> float | None:
    return amount / (duration_ms / 1000) if duration_ms > 0 else None


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


# ---- counts and rates ------------------------------------------------------------------------


def _counts(run: Run) -> Report:
    statuses = [request.status for request in run.requests]
    return {
        "num_requests": len(run.requests),
        "completed_requests": statuses.count("completed"),
        "rejected_requests": statuses.count("rejected"),
        "failed_requests": statuses.count("failed"),
        "unfinished_requests": statuses.count("unfinished"),
        "total_input_tokens": sum(request.input_tokens for request in run.completed),
        "total_output_tokens": sum(len(request.token_ms) for request in run.completed),
    }


def _rates(run: Run, duration_ms: float, gpus: int) -> Report:
    inputs = sum(request.input_tokens for request in run.completed)
    outputs = sum(len(request.token_ms) for request in run.completed)
    return {
        "request_throughput_rps": per_second(len(run.completed), duration_ms),
        "input_throughput_tok_s": per_second(inputs, duration_ms),
        "output_throughput_tok_s": per_second(outputs, duration_ms),
        "total_throughput_tok_s": per_second(inputs + outputs, duration_ms),
        "output_tok_s_per_gpu": per_second(outputs / gpus, duration_ms),
        "total_tok_s_per_gpu": per_second((inputs + outputs) / gpus, duration_ms),
    }


def _sizes_and_use(run: Run, gpus: int) -> Report:
    """Size of the cluster and how much of it was used, by single steps."""
    busy_ms = math.fsum(step.end_ms - step.start_ms for step in run.steps)
    most_blocks = max([step.used_blocks for step in run.steps], default=0)
    return {
        "num_gpus": gpus,
        "num_workers": run.num_workers,
        "gpus_per_worker": run.gpus_per_worker,
        "gpu_hours": gpus * run.end_ms / 1000 / 3600,
        "num_gpu_blocks": run.num_gpu_blocks,
        "block_size": run.block_size,
        "peak_kv_usage_share": most_blocks / run.num_gpu_blocks,
        "worker_busy_share": ratio(busy_ms, run.num_workers * run.end_ms),
        "num_steps": len(run.steps),
        "preemptions": sum(request.preemptions for request in run.requests),
        "committed_prefill_tokens": _computed_prompt_tokens(run),
    }


def _computed_prompt_tokens(run: Run) -> int:
    """Tokens computed by chunks; a single one that takes an answer up again is such a chunk."""
    return sum(step.prefill_tokens + step.resumed for step in run.steps)


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
    counts = [0] * run.num_workers
    for request in run.requests:
        if request.worker is not None:
            counts[request.worker] += 1
    placed = sum(counts)
    if placed == 0:
        return {"busiest_worker_request_share": None, "worker_request_cv": None}
    each = placed / run.num_workers
    variance = sum((count - each) ** 2 for count in counts) / run.num_workers
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
    refusals = [request.error or "" for request in run.requests if request.status == "rejected"]
    report |= {
        "router_queued_requests": stats.num_queued,
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


# ---- latencies -------------------------------------------------------------------------------


def statistics(values: list[float]) -> dict[str, float | None]:
    """Mean, extremes, nearest-rank percentiles and population deviation; None of nothing."""
    if not values:
        return dict.fromkeys(ALL)
    ordered = sorted(values)
    center = math.fsum(ordered) / len(ordered)
    found: dict[str, float | None] = {"mean": center, "min": ordered[0], "max": ordered[-1]}
    for name, percent in PERCENTS.items():
        rank = Fraction((len(ordered) - 1) * percent, 100)
        found[name] = ordered[math.floor(rank + Fraction(1, 2))]  # half away from zero
    variance = math.fsum((value - center) ** 2 for value in ordered) / len(ordered)
    return {**found, "std": math.sqrt(variance)}


def ttft_ms(request: Request) -> float | None:
    """Arrival to first token."""
    if request.first_ms is None or request.arrival_ms is None:
        return None
    return request.first_ms - request.arrival_ms


def ttst_ms(request: Request) -> float | None:
    """First to second token."""
    if len(request.token_ms) < 2:
        return None
    return request.token_ms[1] - request.token_ms[0]


def tpot_ms(request: Request) -> float | None:
    """First to last token, by the gaps in between: their mean. None before the answer is whole."""
    if len(request.token_ms) < 2 or request.finish_ms is None:
        return None
    return (request.finish_ms - request.token_ms[0]) / (len(request.token_ms) - 1)


def e2e_ms(request: Request) -> float | None:
    """Arrival to last token."""
    if request.finish_ms is None or request.arrival_ms is None:
        return None
    return request.finish_ms - request.arrival_ms


def known_of(requests: list[Request], latency: Callable[[Request], float | None]) -> list[float]:
    values = [latency(request) for request in requests]
    return [value for value in values if value is not None]


def _latencies(run: Run) -> Report:
    """Of completed requests; gaps between tokens also of those that were cut off."""
    gaps = []
    for request in run.requests:
        for earlier, later in zip(request.token_ms, request.token_ms[1:], strict=False):
            gaps.append(later - earlier)
    samples = {
        "ttft_ms": known_of(run.completed, ttft_ms),
        "ttst_ms": known_of(run.completed, ttst_ms),
        "tpot_ms": known_of(run.completed, tpot_ms),
        "itl_ms": gaps,
        "e2e_latency_ms": known_of(run.completed, e2e_ms),
        "output_token_throughput_per_user": [1000 / gap for gap in gaps if gap > 0],
    }
    report: Report = {}
    for metric, values in samples.items():
        report |= {f"{name}_{metric}": value for name, value in statistics(values).items()}
    return report | {
        "num_ttft_samples": len(samples["ttft_ms"]),
        "num_tpot_samples": len(samples["tpot_ms"]),
        "num_itl_samples": len(gaps),
        "num_e2e_latency_samples": len(samples["e2e_latency_ms"]),
    }


def _goodput(run: Run, sla: Any, duration_ms: float) -> Report:
    """Completed requests within all bounds; a single token has no gap that could be too long."""
    bounds = [] if sla is None else [(ttft_ms, sla.ttft_ms), (tpot_ms, sla.itl_ms)]
    bounds += [] if sla is None else [(e2e_ms, sla.e2e_ms)]
    bounds = [(latency, bound) for latency, bound in bounds if bound is not None]
    if not bounds:
        names = ("completed_requests", "rps", "output_throughput_tok_s")
        return {**{f"goodput_{name}": None for name in names}, "sla_attainment": None}
    good = []
    for request in run.completed:
        values = [(latency(request), bound) for latency, bound in bounds]
        if all(value is None or value <= bound for value, bound in values):
            good.append(request)
    tokens = sum(len(request.token_ms) for request in good)
    return {
        "goodput_completed_requests": len(good),
        "goodput_rps": per_second(len(good), duration_ms),
        "goodput_output_throughput_tok_s": per_second(tokens, duration_ms),
        "sla_attainment": ratio(len(good), len(run.requests)),
    }


# ---- the steady part -------------------------------------------------------------------------


def _steady(run: Run, gpus: int) -> Report:
    """From when a tenth of the requests has come to the last arrival."""
    arrivals = sorted(r.arrival_ms for r in run.requests if r.arrival_ms is not None)
    start_ms, end_ms = (arrivals[len(arrivals) // 10], arrivals[-1]) if arrivals else (0.0, 0.0)
    has_window = end_ms > start_ms
    inside = [
        request
        for request in run.completed
        if has_window and request.arrival_ms is not None and request.arrival_ms >= start_ms
    ]
    report: Report = {
        "steady_start_ms": start_ms if has_window else None,
        "steady_end_ms": end_ms if has_window else None,
        "steady_num_requests": len(inside) if has_window else None,
        "steady_mean_itl_ms": _mean_gap_ms(inside),
        **_steady_rates(run, start_ms, end_ms, gpus),
    }
    samples = {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms, "e2e_latency_ms": e2e_ms}
    for metric, latency in samples.items():
        found = statistics(known_of(inside, latency))
        for name in ("mean", "median", "p90", "p99"):
            report[f"steady_{name}_{metric}"] = found[name]
    return report


def _mean_gap_ms(requests: list[Request]) -> float | None:
    gaps = []
    for request in requests:
        for earlier, later in zip(request.token_ms, request.token_ms[1:], strict=False):
            gaps.append(later - earlier)
    return mean(gaps)


def _steady_rates(run: Run, start_ms: float, end_ms: float, gpus: int) -> Report:
    names = ("offered_rps", "request_throughput_rps", "output_throughput_tok_s",
             "output_tok_s_per_gpu")  # fmt: skip
    if end_ms <= start_ms:
        return {f"steady_{name}": None for name in names}
    seconds = (end_ms - start_ms) / 1000

    def number_inside(times: list[float | None]) -> int:
        return sum(time is not None and start_ms < time <= end_ms for time in times)

    first = number_inside([request.first_ms for request in run.requests])
    ends_ms = _ends_of_ordinary_gaps(run)
    surely = sum(start_ms + SAME_MS < end <= end_ms - SAME_MS for end in ends_ms)
    perhaps = sum(start_ms - SAME_MS < end <= end_ms + SAME_MS for end in ends_ms)
    low, high = ((first + tokens) / seconds for tokens in (surely, perhaps))
    return {
        "steady_offered_rps": number_inside([r.arrival_ms for r in run.requests]) / seconds,
        "steady_request_throughput_rps": number_inside([r.finish_ms for r in run.completed])
        / seconds,
        "steady_output_throughput_tok_s": Between(low, high),
        "steady_output_tok_s_per_gpu": Between(low / gpus, high / gpus),
    }


def _ends_of_ordinary_gaps(run: Run) -> list[float]:
    """When tokens were decoded one step after the token before; one entry per token."""
    ends = []
    last: dict[int, list[int]] = {}  # worker -> who got a token in its step before
    for step in run.steps:
        ends += [step.end_ms] * len(ordinary_decodes(step, last.get(step.worker, [])))
        last[step.worker] = step.got_token
    return ends


def ordinary_decodes(step: Step, got_token_before: list[int]) -> list[int]:
    """Who decoded a token in this step and had one in the step before: no gap was stretched."""
    decoded = [index for index in step.got_token if index not in step.by_prefill]
    return [index for index in decoded if index in got_token_before]


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
    return outcome.result.num_gpu_blocks * engine.block_size
