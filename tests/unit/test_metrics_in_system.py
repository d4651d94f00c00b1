"""Whether what a system holds grows, more than arrivals and chance explain."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_runs import toy_run

from dynosim.metrics.in_system import growth_in_system
from dynosim.metrics.saturation import judge_saturation
from dynosim.records import FloatArray, RequestLog, RequestStatus, RunResult

END_MS = 300_000.0


def run_of(arrival_ms: FloatArray, took_ms: Any, **columns: Any) -> RunResult:
    """Requests that are scheduled as they come, and end after `took_ms`."""
    base = toy_run(len(arrival_ms), mean_output=2.0, mean_input=1, workers=1).result
    finish_ms = arrival_ms + took_ms
    log = replace(
        base.requests,
        arrival_ms=arrival_ms,
        dispatch_ms=arrival_ms,
        scheduled_ms=arrival_ms,
        first_token_ms=arrival_ms,
        finish_ms=finish_ms,
        status=np.full(len(arrival_ms), int(RequestStatus.COMPLETED)),
        **columns,
    )
    return replace(base, requests=log, end_ms=float(finish_ms.max()))


def growth(log: RequestLog) -> tuple[float | None, float]:
    return growth_in_system(log, 0.0, END_MS)


def steady(gap_ms: float = 100.0) -> FloatArray:
    return np.arange(0.0, END_MS + 1, gap_ms)


def test_batches_that_grow_are_overload_though_nobody_waits() -> None:
    arrivals = steady()
    verdict = judge_saturation(run_of(arrivals, 1000.0 + 0.1 * arrivals))
    assert verdict.wait_growth == 0.0 and verdict.backlog_share == 0.0
    assert verdict.is_saturated
    assert (
        verdict.reason
        == f"{verdict.more_in_system:.0f} more requests were in the system at the end"
    )


def test_the_same_number_all_the_time_is_none() -> None:
    verdict = judge_saturation(run_of(steady(), 20_000.0))
    assert not verdict.is_saturated
    assert verdict.more_in_system == pytest.approx(0.0, abs=1.0)


def test_more_arrivals_explain_more_requests() -> None:
    rising = np.concatenate([np.arange(0.0, 100_000.0, 200.0), np.arange(1e5, END_MS + 1, 50.0)])
    more, limit = growth(run_of(rising, 20_000.0).requests)
    assert more is not None and more < limit
    slower = np.where(rising < 2e5, 20_000.0, 40_000.0)
    more, limit = growth(run_of(rising, slower).requests)
    assert more is not None and more > limit


def test_fewer_arrivals_excuse_no_growth() -> None:
    falling = np.concatenate([np.arange(0.0, 1e5, 50.0), np.arange(1e5, END_MS + 1, 200.0)])
    more, limit = growth(run_of(falling, 20_000.0).requests)
    assert more is not None and more < -100
    more, limit = growth(run_of(falling, np.where(falling < 1e5, 5000.0, 40_000.0)).requests)
    assert more is not None and more == pytest.approx(100.0, rel=0.1)  # 200 after 100
    assert more > limit


def test_two_percent_of_the_arrivals_is_kept_up_with() -> None:
    arrivals = steady(10.0)  # 20,000 between the middles of the thirds: 400 may be
    for added_ms, is_less in ((3500.0, True), (4500.0, False)):
        took_ms = np.where(arrivals < END_MS / 2, 1000.0, 1000.0 + added_ms)
        more, limit = growth(run_of(arrivals, took_ms).requests)
        assert limit == pytest.approx(400.0, rel=0.001)
        assert more is not None and (more <= limit) is is_less


def test_who_is_not_served_is_in_the_system_unless_given_up() -> None:
    arrivals = steady()
    late = arrivals > 1e5
    for status, is_counted in ((RequestStatus.UNFINISHED, True), (RequestStatus.FAILED, False)):
        log = run_of(arrivals, 1000.0).requests
        log = replace(
            log,
            finish_ms=np.where(late, np.nan, log.finish_ms),
            status=np.where(late, int(status), log.status),
        )
        more, limit = growth(log)
        assert more is not None and (more > limit) is is_counted


def test_a_closed_loop_tells_nothing() -> None:
    arrivals = steady()
    log = run_of(arrivals, 1000.0, is_timed=np.zeros(len(arrivals), np.bool_)).requests
    assert growth(log) == (None, 0.0)
