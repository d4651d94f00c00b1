"""The verdict on queues whose waits follow from the load (one server, first come first served)."""

from dataclasses import replace

import numpy as np
import pytest
from toy_runs import toy_run

from dynosim.config import RunConfig
from dynosim.experiment.run import run
from dynosim.metrics.saturation import Saturation, judge_saturation, load_of
from dynosim.records import RequestStatus, RunResult

SERVICE_MS = 100.0


def queue(arrival_ms: np.ndarray, seed: int = 0, *, is_even: bool = False) -> RunResult:
    """A run whose requests were served one by one, SERVICE_MS each on average or exactly."""
    rng = np.random.default_rng(seed)
    service = rng.gamma(4.0, SERVICE_MS / 4, len(arrival_ms))
    service = np.full(len(arrival_ms), SERVICE_MS) if is_even else service
    start, free = np.empty(len(arrival_ms)), 0.0
    for index, arrival in enumerate(arrival_ms):
        start[index] = max(arrival, free)
        free = start[index] + service[index]
    base = toy_run(len(arrival_ms), mean_output=0.01, mean_input=1).result
    finish = start + service
    log = replace(
        base.requests,
        arrival_ms=arrival_ms,
        dispatch_ms=arrival_ms,
        scheduled_ms=start,
        first_token_ms=finish,
        finish_ms=finish,
    )
    return replace(base, requests=log, end_ms=float(finish.max()))


def poisson(load: float, count: int = 1000, seed: int = 0) -> np.ndarray:
    gaps = np.random.default_rng(seed + 100).exponential(SERVICE_MS / load, count)
    return np.concatenate(([0.0], np.cumsum(gaps)[:-1]))


def verdict(arrival_ms: np.ndarray, seed: int = 0) -> Saturation:
    return judge_saturation(queue(arrival_ms, seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("load", [0.3, 0.8, 0.9])
def test_a_load_below_the_limit_is_sustained(load: float, seed: int) -> None:
    assert not verdict(poisson(load, seed=seed), seed).is_saturated


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("load", [1.2, 1.5, 3.0])
def test_a_load_above_the_limit_is_saturation(load: float, seed: int) -> None:
    assert verdict(poisson(load, seed=seed), seed).is_saturated


@pytest.mark.parametrize("load", [1.2, 1.5, 3.0])
def test_the_wait_grows_by_what_is_offered_beyond_what_is_served(load: float) -> None:
    """Without chance the k-th request waits k times service less k times the arrivals' distance."""
    count = 1000
    found = judge_saturation(queue(np.arange(count) * (SERVICE_MS / load), is_even=True))
    assert found.wait_growth == pytest.approx(load - 1, rel=1e-9)  # sums of a thousand floats


def test_a_burst_at_the_end_of_a_comfortable_run_is_not_saturation() -> None:
    calm = poisson(0.5)
    burst = calm[-1] + np.linspace(0, SERVICE_MS, 150)
    found = verdict(np.concatenate((calm, burst)))
    assert not found.is_saturated
    assert found.drain_ms > 100 * SERVICE_MS


def test_a_burst_that_is_worked_off_before_the_end_is_not_saturation() -> None:
    wave = np.concatenate((poisson(1.5, 400), poisson(1.5, 400)[-1] + poisson(0.4, 300)))
    assert not verdict(wave).is_saturated


def test_overload_in_the_second_half_is_saturation() -> None:
    calm = poisson(0.5, 400)
    assert verdict(np.concatenate((calm, calm[-1] + poisson(1.8, 1000)))).is_saturated


def test_everything_at_once_is_saturation_when_the_queue_makes_the_latency() -> None:
    assert verdict(np.zeros(500)).is_saturated
    assert not verdict(np.zeros(1)).is_saturated


def test_a_few_bursts_far_apart_are_not_saturation() -> None:
    assert not verdict(np.repeat([0.0, 60_000.0, 120_000.0], 5)).is_saturated


@pytest.mark.parametrize(("load", "expected"), [(0.5, False), (1.5, True), (3.0, True)])
def test_a_run_cut_off_at_the_last_arrival_is_judged_alike(load: float, expected: bool) -> None:
    run = queue(poisson(load))
    log = run.requests
    cut_ms = float(log.arrival_ms[-1])
    late = log.finish_ms > cut_ms
    log = replace(
        log,
        scheduled_ms=np.where(late, np.nan, log.scheduled_ms),
        finish_ms=np.where(late, np.nan, log.finish_ms),
        status=np.where(late, RequestStatus.UNFINISHED, RequestStatus.COMPLETED),
    )
    found = judge_saturation(replace(run, requests=log, end_ms=cut_ms))
    assert found.is_saturated is expected


def test_rejected_requests_are_not_offered_load() -> None:
    run = queue(poisson(0.5, 20))
    status = np.full(20, int(RequestStatus.REJECTED))
    rejected = replace(run, requests=replace(run.requests, status=status))
    assert judge_saturation(rejected).backlog_share is None


def test_later_turns_when_they_slow_down_with_the_cluster_hide_no_overload() -> None:
    arrivals = np.arange(1000) * 10.0
    run = queue(arrivals, 1)
    log = run.requests
    late = np.arange(1000) % 2 == 1
    wait = np.where(late, 0.0, np.arange(1000) * 5.0)
    overloaded = replace(log, scheduled_ms=log.arrival_ms + wait, is_timed=~late)
    assert judge_saturation(replace(run, requests=overloaded)).is_saturated
    closed = replace(overloaded, is_timed=np.zeros(1000, bool))
    assert not judge_saturation(replace(run, requests=closed)).is_saturated


def cluster_run(rate_rps: float, *, workers: int = 2, **router: object) -> RunResult:
    config = RunConfig.model_validate(
        {
            "workload": {
                "synthetic": {"requests": 400, "isl": 64, "osl": 20, "rate_rps": rate_rps}
            },
            "engine": {"num_gpu_blocks": 2000, "max_num_seqs": 4},
            "timing": {"kind": "fixed", "prefill_ms": 10.0, "decode_ms": 10.0},
            "cluster": {"workers": workers},
            "router": router or {"mode": "round-robin"},
        }
    )
    return run(config).result


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_sustained_is_what_all_workers_make_while_something_waits(workers: int) -> None:
    # Exactly what it is: tests/property/test_report_definitions.py. Here, that it is plausible.
    most_tok_s = workers * 4 * 100  # seats times steps a second, less the steps of prompts
    load = load_of(cluster_run(workers * 40.0, workers=workers))
    assert load.is_saturated
    assert load.sustained_tok_s is not None
    assert 0.75 * most_tok_s < load.sustained_tok_s <= most_tok_s
    assert load.collapse_ms is not None and 0 < load.collapse_ms < 5000


def test_a_load_that_is_kept_up_with_has_no_collapse() -> None:
    load = load_of(cluster_run(10.0))
    assert not load.is_saturated
    assert load.collapse_ms is None
    assert load_of(cluster_run(0.5)).sustained_tok_s is None  # nothing ever waited


def test_requests_that_wait_in_the_router_wait_for_the_workers() -> None:
    queueing = {"mode": "kv", "queue_threshold": 0.01}
    run_ = cluster_run(80.0, **queueing)
    assert run_.routing is not None and run_.routing.num_queued > 0
    load = load_of(run_)
    assert load.is_saturated
    assert load.sustained_tok_s is not None and load.collapse_ms is not None


def test_chunks_of_one_prompt_are_not_counted_as_tokens() -> None:
    base = cluster_run(80.0)
    steps = base.steps
    chunked = replace(base, steps=replace(steps, num_prefills=3 * steps.num_prefills))
    whole, cut = load_of(base).sustained_tok_s, load_of(chunked).sustained_tok_s
    assert whole is not None and cut == pytest.approx(whole)
