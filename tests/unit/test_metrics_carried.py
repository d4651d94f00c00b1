"""Whether a load was carried: the window, attainment, the late third, and growth."""

from typing import Any

import numpy as np
import pytest

from dynosim.metrics.carried import (
    NOT_SERVED,
    OVERLOADED,
    Bounds,
    SlaTarget,
    judge_load,
)
from dynosim.metrics.in_system import measuring_window
from dynosim.records import FloatArray, RequestLog, RequestStatus

BOUNDS = Bounds(ttft_ms=1000.0, tpot_ms=50.0)
TARGET_90 = SlaTarget(BOUNDS, 0.9)


def log_of(
    arrival_ms: FloatArray, ttft_ms: Any, *, tpot_ms: Any = 20.0, **columns: Any
) -> RequestLog:
    """Requests of 11 tokens."""
    n = len(arrival_ms)
    first_ms = arrival_ms + ttft_ms
    ints = np.zeros(n, np.int64)
    given = {
        "arrival_ms": arrival_ms,
        "dispatch_ms": arrival_ms,
        "scheduled_ms": arrival_ms,
        "first_token_ms": first_ms,
        "second_token_ms": first_ms + tpot_ms,
        "finish_ms": first_ms + 10 * np.broadcast_to(tpot_ms, n),
        "input_tokens": ints + 100,
        "output_tokens": ints + 11,
        "cached_tokens": ints,
        "worker_id": ints,
        "preemptions": ints,
        "migrations": ints,
        "status": ints + RequestStatus.COMPLETED,
        **columns,
    }
    return RequestLog(**given)


def steady(num_requests: int = 3000, gap_ms: float = 100.0) -> FloatArray:
    return np.arange(num_requests) * gap_ms


def test_a_run_within_all_bounds_is_carried() -> None:
    verdict = judge_load(log_of(steady(), 500.0), SlaTarget(BOUNDS, 0.95))
    assert verdict.is_carried and verdict.reason == "" and verdict.attainment == 1.0
    assert verdict.misses == {} and verdict.growth == pytest.approx(0.0, abs=0.1)


def test_the_window_leaves_out_the_warm_up() -> None:
    arrivals = steady()
    ttft_ms = np.where(arrivals < 30_000.0, 5000.0, 500.0)  # the first tenth
    log = log_of(arrivals, ttft_ms)
    assert measuring_window(log) == (30_000.0, 299_900.0)
    verdict = judge_load(log, SlaTarget(BOUNDS, 0.95))
    assert verdict.attainment == 1.0 and verdict.num_judged == 2700


def test_slow_requests_lengthen_the_warm_up_to_a_third_at_most() -> None:
    assert measuring_window(log_of(steady(), 500.0, tpot_ms=2950.0))[0] == 60_000.0
    assert measuring_window(log_of(steady(), 5e6))[0] == pytest.approx(299_900.0 / 3)


def test_too_many_misses_of_either_bound() -> None:
    every_tenth = np.arange(3000) % 10 == 0
    log = log_of(steady(), np.where(every_tenth, 1001.0, 1000.0))
    verdict = judge_load(log, SlaTarget(BOUNDS, 0.95))
    assert not verdict.is_carried and verdict.attainment == pytest.approx(0.9)
    assert verdict.reason == "90.0% of requests within the SLA"
    assert verdict.misses == {"ttft_ms": 270}
    assert judge_load(log, SlaTarget(BOUNDS, 0.9)).is_carried
    slow = log_of(steady(), 500.0, tpot_ms=np.where(every_tenth, 51.0, 50.0))
    assert judge_load(slow, SlaTarget(BOUNDS, 0.95)).misses == {"tpot_ms": 270}
    assert judge_load(slow, SlaTarget(Bounds(ttft_ms=1000.0), 0.95)).is_carried


def test_what_is_not_served_misses() -> None:
    status = np.full(3000, int(RequestStatus.COMPLETED))
    status[1000:1300] = RequestStatus.REJECTED
    verdict = judge_load(log_of(steady(), 500.0, status=status), SlaTarget(BOUNDS, 0.95))
    assert not verdict.is_carried and verdict.misses == {NOT_SERVED: 300}
    assert judge_load(log_of(steady(), 500.0, status=status), SlaTarget(Bounds(), 0.85)).is_carried


def test_a_run_that_collapses_late_is_not_carried() -> None:
    arrivals = steady()
    late = arrivals > 280_000.0  # 7 % of the window
    log = log_of(arrivals, np.where(late, 1500.0, 100.0))
    verdict = judge_load(log, SlaTarget(BOUNDS, 0.92))
    assert verdict.attainment is not None and verdict.attainment > 0.92
    assert "of the last third's requests" in verdict.reason


def test_a_last_third_is_as_sure_as_the_parts_before_it_are_alike() -> None:
    """Parts of which three in ten requests miss: more of them are in the last third by chance."""
    arrivals = steady()
    part = (arrivals // 15_000).astype(int)  # 20 of them
    numbers = np.arange(len(arrivals))
    for bad, words in (((3, 7, 15, 17, 19), ""), ((15, 16, 17, 18, 19), "of the last third's")):
        is_slow = np.isin(part, bad) & (numbers % 10 < 3)
        verdict = judge_load(log_of(arrivals, np.where(is_slow, 2000.0, 100.0)), TARGET_90)
        assert verdict.attainment is not None and verdict.attainment > 0.9
        assert words in verdict.reason and verdict.is_carried is (words == "")


def test_a_queue_that_grows_is_overload_though_every_bound_is_kept() -> None:
    arrivals = steady()
    log = log_of(arrivals, 100.0 + arrivals / 10)  # 10 % more comes than is served
    verdict = judge_load(log, SlaTarget(Bounds(tpot_ms=50.0), 0.95))
    assert verdict.attainment == 1.0 and not verdict.is_carried
    assert verdict.reason.startswith(OVERLOADED) and verdict.growth is not None
    assert verdict.growth == pytest.approx(1800 * (1 - 1 / 1.1), rel=0.01)
    a_little = log_of(arrivals, 100.0 + arrivals / 100)
    assert judge_load(a_little, SlaTarget(Bounds(tpot_ms=50.0), 0.95)).is_carried


def test_a_closed_loop_cannot_be_overloaded() -> None:
    arrivals = steady()
    closed = np.zeros(3000, np.bool_)
    log = log_of(arrivals, 100.0 + arrivals / 10, is_timed=closed)
    verdict = judge_load(log, SlaTarget(Bounds(tpot_ms=50.0), 0.95))
    assert verdict.is_carried and verdict.growth is None


def test_a_run_without_requests() -> None:
    verdict = judge_load(log_of(np.zeros(0), 1.0), SlaTarget(BOUNDS, 0.95))
    assert not verdict.is_carried and verdict.attainment is None


def test_single_tokens_have_no_gap_to_miss() -> None:
    log = log_of(steady(), 100.0, tpot_ms=500.0, output_tokens=np.ones(3000, np.int64))
    assert judge_load(log, SlaTarget(BOUNDS, 0.95)).attainment == 1.0


@pytest.mark.parametrize(("statistic", "is_carried"), [("median", True), ("p95", False)])
def test_a_statistic_in_place_of_attainment(statistic: str, is_carried: bool) -> None:
    every_tenth = np.arange(3000) % 10 == 0
    log = log_of(steady(), np.where(every_tenth, 1500.0, 500.0))
    verdict = judge_load(log, SlaTarget(BOUNDS, statistic=statistic))
    assert verdict.is_carried == is_carried and verdict.attainment == pytest.approx(0.9)
    if not is_carried:
        assert verdict.reason == "p95 of ttft_ms is 1,500 ms, the bound 1,000 ms"


def test_who_is_not_served_has_waited_for_ever() -> None:
    status = np.full(3000, int(RequestStatus.COMPLETED))
    status[1000] = RequestStatus.REJECTED
    log = log_of(steady(), 500.0, status=status)
    assert judge_load(log, SlaTarget(BOUNDS, statistic="p99")).is_carried
    assert "for ever" in judge_load(log, SlaTarget(BOUNDS, statistic="mean")).reason


def test_it_says_what_is_in_flight_and_which_prompts_miss() -> None:
    arrivals = steady()
    long = np.arange(len(arrivals)) % 10 == 0
    tokens = np.where(long, 5000, 100)
    log = log_of(arrivals, np.where(long, 1800.0, 300.0), tpot_ms=20.0, input_tokens=tokens)
    verdict = judge_load(log, SlaTarget(BOUNDS, 0.95))
    assert verdict.miss_tokens == {"ttft_ms": 5000.0} and set(verdict.misses) == {"ttft_ms"}
    mean_s = 0.1 * 1.8 + 0.9 * 0.3 + 10 * 0.02  # by Little's law, at ten requests a second
    assert verdict.in_flight == pytest.approx(10 * mean_s, rel=0.02)
