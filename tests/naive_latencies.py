"""Latencies, what the SLA makes of them, and the steady part of a run, plainly.

See `naive_report`. Latencies are of completed requests; gaps between tokens of all requests.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from naive_run import Request, Run
from naive_serving import SAME_MS, Step

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


def per_second(amount: float, duration_ms: float) -> float | None:
    return amount / (duration_ms / 1000) if duration_ms > 0 else None


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def mean_gpus(run: Run, start_ms: float, end_ms: float) -> float:
    """GPU time held between two times over that time; at an instant, the GPUs held then."""
    if end_ms <= start_ms:
        return sum(worker.gpus for worker in run.workers if worker.launched_ms <= start_ms)
    held_ms = [worker.gpus * worker.lived_ms(start_ms, end_ms) for worker in run.workers]
    return math.fsum(held_ms) / (end_ms - start_ms)


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


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


def latency_keys(run: Run) -> Report:
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


def goodput_keys(run: Run, sla: Any, duration_ms: float) -> Report:
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


def steady_keys(run: Run) -> Report:
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
        **_steady_rates(run, start_ms, end_ms),
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


def _steady_rates(run: Run, start_ms: float, end_ms: float) -> Report:
    names = ("offered_rps", "request_throughput_rps", "output_throughput_tok_s",
             "output_tok_s_per_gpu")  # fmt: skip
    if end_ms <= start_ms:
        return {f"steady_{name}": None for name in names}
    seconds = (end_ms - start_ms) / 1000

    def number_inside(times: list[float | None]) -> int:
        return sum(time is not None and start_ms < time <= end_ms for time in times)

    gpus = mean_gpus(run, start_ms, end_ms)
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
        "steady_output_tok_s_per_gpu": Between(low / gpus, high / gpus) if gpus else None,
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
