import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from toy_runs import ToyRun, ToyTiming, toy_run

from dynosim.metrics import PROCESS_KEYS, summarize
from dynosim.metrics.percentiles import PERCENTILES, STATISTICS, nearest_rank
from dynosim.records import RequestStatus

METRICS = ("ttft_ms", "ttst_ms", "tpot_ms", "itl_ms", "e2e_latency_ms")


@dataclass(frozen=True)
class Limits:
    ttft_ms: float | None = None
    itl_ms: float | None = None
    e2e_ms: float | None = None


def report_of(run: ToyRun, sla: Limits | None = None) -> dict:
    return summarize(run.result, run.timing, sla=sla, wall_time_ms=12.0)


def cut_off(run: ToyRun, index: int, status: RequestStatus) -> ToyRun:
    """The run with one request that was never scheduled."""
    log = run.result.requests

    def without(values: np.ndarray, blank: float) -> np.ndarray:
        changed = values.copy()
        changed[index] = blank
        return changed

    names = ("scheduled_ms", "first_token_ms", "second_token_ms", "finish_ms")
    times = {name: without(getattr(log, name), np.nan) for name in names}
    counts = {name: without(getattr(log, name), 0) for name in ("output_tokens", "cached_tokens")}
    log = replace(log, status=without(log.status, status), **times, **counts)
    return replace(run, result=replace(run.result, requests=log))


def test_report_has_the_documented_keys_and_is_json() -> None:
    report = report_of(toy_run())
    expected = {f"{statistic}_{metric}" for statistic in STATISTICS for metric in METRICS}
    expected |= {f"{s}_output_token_throughput_per_user" for s in STATISTICS}
    expected |= {
        "num_requests",
        "completed_requests",
        "total_input_tokens",
        "total_output_tokens",
        "duration_ms",
        "wall_time_ms",
        "core",
        "request_throughput_rps",
        "output_throughput_tok_s",
        "total_throughput_tok_s",
        "gpu_hours",
        "prefix_cache_reused_ratio",
        "num_gpus",
        "output_tok_s_per_gpu",
        "steady_output_throughput_tok_s",
        "goodput_rps",
        "sla_attainment",
        "preemptions",
        "timing_source",
        "timing_in_range_share",
        "saturated",
    }
    assert expected <= set(report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_totals_and_rates_follow_their_definitions() -> None:
    run = toy_run()
    log, report = run.result.requests, report_of(run)
    seconds = log.finish_ms.max() / 1000
    assert report["duration_ms"] == log.finish_ms.max()
    assert report["output_throughput_tok_s"] == pytest.approx(log.output_tokens.sum() / seconds)
    assert report["num_gpus"] == 4
    assert report["output_tok_s_per_gpu"] * 4 == pytest.approx(report["output_throughput_tok_s"])
    assert report["gpu_hours"] == pytest.approx(run.result.end_ms * 4 / 3.6e6)
    assert report["prefix_cache_reused_ratio"] == pytest.approx(
        log.cached_tokens.sum() / log.input_tokens.sum()
    )


def test_gap_statistics_are_those_of_the_tokens_times() -> None:
    run = toy_run(preempt_chance=0.03)
    report, gaps = report_of(run), np.sort(run.gaps_ms)
    assert run.result.num_preemptions > 0
    assert report["num_itl_samples"] == len(gaps)
    assert report["mean_itl_ms"] == pytest.approx(gaps.mean())
    assert report["std_itl_ms"] == pytest.approx(gaps.std())
    rates = np.sort(1000 / gaps)
    assert report["mean_output_token_throughput_per_user"] == pytest.approx(rates.mean())
    for name, percent in PERCENTILES.items():
        rank = nearest_rank(len(gaps), percent)
        assert report[f"{name}_itl_ms"] == pytest.approx(gaps[rank])
        rate = report[f"{name}_output_token_throughput_per_user"]
        assert rate == pytest.approx(rates[rank])


def test_requests_that_did_not_complete_count_only_as_such() -> None:
    run = cut_off(toy_run(), 5, RequestStatus.REJECTED)
    report = report_of(run, Limits(ttft_ms=1e9))
    assert report["completed_requests"] == 59
    assert report["rejected_requests"] == 1
    assert report["num_ttft_samples"] == 59
    assert report["sla_attainment"] == pytest.approx(59 / 60)


def test_goodput_counts_requests_within_every_limit() -> None:
    run = toy_run()
    log = run.result.requests
    ttft = log.first_token_ms - log.arrival_ms
    gaps = np.maximum(log.output_tokens - 1, 1)
    itl = (log.finish_ms - log.first_token_ms) / gaps
    good = (ttft <= 25) & (itl <= 8)
    report = report_of(run, Limits(ttft_ms=25, itl_ms=8))
    assert 0 < good.sum() < 60
    assert report["goodput_completed_requests"] == good.sum()
    assert report["sla_attainment"] == pytest.approx(good.mean())
    assert report["goodput_rps"] == pytest.approx(good.sum() / report["duration_ms"] * 1000)


def latencies_of(run: ToyRun) -> dict[str, np.ndarray]:
    """Per request, under the names of the bounds that they must keep."""
    log = run.result.requests
    gaps = np.where(log.output_tokens > 1, log.output_tokens - 1, np.nan)
    return {
        "ttft_ms": log.first_token_ms - log.arrival_ms,
        "itl_ms": (log.finish_ms - log.first_token_ms) / gaps,
        "e2e_ms": log.finish_ms - log.arrival_ms,
    }


@pytest.mark.parametrize("bound", ["ttft_ms", "itl_ms", "e2e_ms"])
def test_a_request_at_the_bound_is_good_and_one_just_above_is_not(bound: str) -> None:
    run = toy_run(20)
    values = latencies_of(run)[bound]
    most = float(np.nanmax(values))
    below = float(np.nextafter(most, 0))
    assert report_of(run, Limits(**{bound: most}))["goodput_completed_requests"] == 20
    assert report_of(run, Limits(**{bound: below}))["goodput_completed_requests"] == 19


def test_answers_of_one_token_miss_no_bound_on_gaps() -> None:
    run = toy_run(8, mean_output=0.01)
    report = report_of(run, Limits(itl_ms=1e-9))
    assert report["goodput_completed_requests"] == 8
    assert report["sla_attainment"] == 1
    assert report["goodput_output_throughput_tok_s"] == report["output_throughput_tok_s"]


@pytest.mark.parametrize(
    "status", [RequestStatus.REJECTED, RequestStatus.FAILED, RequestStatus.UNFINISHED]
)
def test_who_is_not_served_misses_the_sla_and_makes_no_goodput(status: RequestStatus) -> None:
    run = cut_off(toy_run(10), 4, status)
    report = report_of(run, Limits(itl_ms=1e9))
    tokens = run.result.requests.output_tokens
    assert report["goodput_completed_requests"] == 9
    assert report["sla_attainment"] == 0.9
    assert report[f"{status.name.lower()}_requests"] == 1
    seconds = report["duration_ms"] / 1000
    assert report["goodput_output_throughput_tok_s"] == pytest.approx(tokens.sum() / seconds)
    assert report["request_throughput_rps"] == pytest.approx(9 / seconds)


def test_no_limit_means_no_goodput() -> None:
    for sla in (None, Limits()):
        report = report_of(toy_run(5), sla)
        assert report["goodput_rps"] is None
        assert report["sla_attainment"] is None


def test_steady_window_leaves_warm_up_and_tail_out() -> None:
    run = toy_run(200, rate_rps=10.0)
    log, report = run.result.requests, report_of(run)
    start, end = report["steady_start_ms"], report["steady_end_ms"]
    assert start == np.sort(log.arrival_ms)[20]
    assert end == log.arrival_ms.max()
    inside = (log.arrival_ms >= start) & (log.arrival_ms <= end)
    ttft = (log.first_token_ms - log.arrival_ms)[inside]
    assert report["steady_num_requests"] == inside.sum()
    assert report["steady_mean_ttft_ms"] == pytest.approx(ttft.mean())
    finished = ((log.finish_ms > start) & (log.finish_ms <= end)).sum()
    rate = report["steady_request_throughput_rps"]
    assert rate == pytest.approx(finished / (end - start) * 1000)


def test_steps_that_end_as_the_window_opens_are_outside_and_as_it_closes_inside() -> None:
    """Steps of 8 ms, arrivals at multiples of 8 ms: exact floats, and ties at both ends."""
    timing = ToyTiming(base_ms=8.0, per_prefill_token_ms=0, per_decode_ms=0, per_context_token_ms=0)
    arrivals = [8.0 * number for number in (0, 3, 5, 7, 9, 12, 12, 20, 31, 40)]
    run = toy_run(10, timing=timing, arrivals_ms=arrivals, workers=1, max_seqs=4)
    log, report = run.result.requests, report_of(run)
    start, end = report["steady_start_ms"], report["steady_end_ms"]
    assert (start, end) == (24.0, 320.0)
    times, seconds = token_times(run), 0.296
    inside = sum(start < time <= end for time in times)
    assert {start, end} <= set(times)
    assert report["steady_output_throughput_tok_s"] == pytest.approx(inside / seconds)
    assert report["steady_output_tok_s_per_gpu"] == pytest.approx(inside / seconds / 2)
    finished = ((log.finish_ms > start) & (log.finish_ms <= end)).sum()
    assert report["steady_request_throughput_rps"] == pytest.approx(finished / seconds)
    assert report["steady_offered_rps"] == pytest.approx(8 / seconds)


@pytest.mark.parametrize("scale", [None, 2.0])
def test_tokens_of_a_row_are_counted_step_by_step_as_contexts_grow(scale: float | None) -> None:
    """Steps of 4 sequences take 8, 12, ... 44 ms: their contexts grow by four tokens a step.

    The window cuts the row at both ends, once just so that a step's end is at each border.
    """
    timing = ToyTiming(base_ms=0.0, per_decode_ms=0.0, per_context_token_ms=1.0)
    factor = 1.0 if scale is None else scale
    ends = [factor * sum(8 + 4 * step for step in range(count + 1)) for count in range(10)]
    base = toy_run(10, arrivals_ms=[0.0] * 10, workers=1).result
    whole = {name: np.zeros(1, np.int64) for name in base.steps.__slots__}
    row = {"start_ms": 0.0, "duration_ms": ends[-1], "num_steps": 10, "num_decodes": 4,
           "decode_context_tokens": 8}  # fmt: skip
    steps = replace(base.steps, **whole | {name: np.array([row[name]]) for name in row})
    for start, end in ((ends[2], ends[7]), (ends[2] + 0.5, ends[7] - 0.5), (ends[0], ends[1] + 1)):
        arrivals = np.array([0.0, start, *[end] * 8])
        log = replace(base.requests, arrival_ms=arrivals, first_token_ms=np.full(10, np.nan))
        result = replace(base, requests=log, steps=steps)
        if scale is not None:
            slow = replace(result.workers, step_time_scale=np.array([scale]))
            result = replace(result, workers=slow)
        report = summarize(result, timing, sla=None, wall_time_ms=0.0)
        tokens = 4 * sum(start < time <= end for time in ends)
        assert tokens > 0
        rate = report["steady_output_throughput_tok_s"]
        assert rate == pytest.approx(tokens / (end - start) * 1000)


def token_times(run: ToyRun) -> list[float]:
    """When tokens came: first ones, and the gaps behind them, request by request."""
    log, gaps = run.result.requests, run.gaps_ms.tolist()
    times = []
    for index, first_ms in enumerate(log.first_token_ms.tolist()):
        times.append(first_ms)
        for _ in range(int(log.output_tokens[index]) - 1):
            times.append(times[-1] + gaps.pop(0))
    return times


@pytest.mark.parametrize(("count", "first"), [(9, 0), (10, 1), (19, 1), (20, 2)])
def test_the_window_opens_when_a_tenth_has_arrived(count: int, first: int) -> None:
    arrivals = [3.0 * number for number in range(count)]
    report = report_of(toy_run(count, arrivals_ms=arrivals))
    assert report["steady_start_ms"] == arrivals[first]
    assert report["steady_num_requests"] == count - first


def test_steady_keys_are_the_same_with_and_without_a_window() -> None:
    at_once = report_of(toy_run(5, arrivals_ms=[0.0] * 5))
    assert at_once["steady_mean_ttft_ms"] is None
    assert set(at_once) == set(report_of(toy_run(20)))


def test_share_of_steps_outside_the_measured_range_is_told() -> None:
    run = toy_run(timing=ToyTiming(in_range_below_tokens=1000, source="derived"))
    report = report_of(run)
    assert report["timing_source"] == "derived"
    assert 0 < report["timing_in_range_share"] < 1


def test_empty_run_has_a_report_without_numbers() -> None:
    report = report_of(toy_run(0))
    json.dumps(report, allow_nan=False)
    assert report["num_requests"] == 0
    assert report["mean_itl_ms"] is None
    assert report["request_throughput_rps"] is None
    assert report["saturated"] is False


def test_single_token_outputs_have_no_gaps() -> None:
    report = report_of(toy_run(8, mean_output=0.01))
    assert report["total_output_tokens"] == 8
    assert report["num_itl_samples"] == 0
    assert report["p99_tpot_ms"] is None
    assert report["mean_ttst_ms"] is None


def test_zero_gaps_count_as_gaps_but_have_no_rate() -> None:
    free = ToyTiming(base_ms=0, per_prefill_token_ms=1, per_decode_ms=0, per_context_token_ms=0)
    run = toy_run(timing=free)
    report = report_of(run)
    positive = np.sort(run.gaps_ms[run.gaps_ms > 0])
    assert 0 < len(positive) < report["num_itl_samples"]
    assert report["min_itl_ms"] == 0
    fastest = report["max_output_token_throughput_per_user"]
    assert fastest == pytest.approx(1000 / positive[0])
    median = report["median_output_token_throughput_per_user"]
    assert median == pytest.approx(np.sort(1000 / positive)[nearest_rank(len(positive), 50)])


def test_equal_runs_give_equal_reports_but_for_the_real_clock() -> None:
    first, second = report_of(toy_run(seed=3)), report_of(toy_run(seed=3))
    assert set(PROCESS_KEYS) <= set(first)
    assert json.dumps(first) == json.dumps(second)
    assert report_of(toy_run(seed=4)) != first


def test_a_share_that_does_not_exist_is_null_and_no_nan() -> None:
    """Clients may measure requests whose prompts nobody counted."""
    run = toy_run(3)
    log = replace(run.result.requests, input_tokens=np.zeros(3, np.int64),
                  cached_tokens=np.zeros(3, np.int64))  # fmt: skip
    with np.errstate(invalid="ignore"):
        report = report_of(replace(run, result=replace(run.result, requests=log)))
    assert report["mean_request_hit_rate"] is None
    assert report["prefix_cache_reused_ratio"] is None
    json.dumps(report, allow_nan=False)
