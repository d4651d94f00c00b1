"""The limits of the saturation rule: at them, just below and just above."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_runs import STEP_COLUMNS, toy_run

from dynosim.metrics.saturation import Load, Saturation, judge_saturation, load_of
from dynosim.records import RequestStatus, RoutingStats, RunResult, StepLog, WorkerLog

GROWTH_LIMIT = 1 / 0.95 - 1  # ms of wait gained per ms of arrivals
POWERS = [0.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0]  # six of 20 slices, and exact products


def run_of(
    arrival_ms: list[float], wait_ms: list[float], *, service_ms: float = 10.0, **more: Any
) -> RunResult:
    """Requests with these waits, served in `service_ms`; NaN is a request that was not served."""
    base = toy_run(len(arrival_ms), mean_output=0.01, mean_input=1, workers=1).result
    arrival, scheduled = np.array(arrival_ms), np.array(arrival_ms) + np.array(wait_ms)
    finish = scheduled + service_ms
    served = ~np.isnan(scheduled)
    log = replace(
        base.requests,
        arrival_ms=arrival,
        dispatch_ms=arrival,
        scheduled_ms=scheduled,
        first_token_ms=finish,
        finish_ms=finish,
        status=np.where(served, int(RequestStatus.COMPLETED), int(RequestStatus.UNFINISHED)),
    )
    end_ms = float(np.nanmax(finish)) if served.any() else 0.0
    return replace(base, requests=log, **{"end_ms": end_ms, **more})


def growing(growth: float) -> list[float]:
    return [growth * time for time in POWERS]


def test_the_wait_may_grow_by_the_limit_and_no_more() -> None:
    at_limit = judge_saturation(run_of(POWERS, growing(GROWTH_LIMIT)))
    assert at_limit.wait_growth == GROWTH_LIMIT
    assert not at_limit.is_saturated
    assert at_limit.reason == (
        "the wait did not grow steadily: 95% of the offered load was served as it came"
    )
    above = judge_saturation(run_of(POWERS, growing(GROWTH_LIMIT * (1 + 1e-14))))
    assert above.is_saturated
    assert above.reason == "the queue kept growing: 95% of the offered load was served as it came"


def test_a_queue_that_shrinks_served_all_of_the_load() -> None:
    falling = [1000.0 - wait for wait in growing(0.05)]
    found = judge_saturation(run_of(POWERS, falling))
    assert found.wait_growth == pytest.approx(-0.05)
    assert "100% of the offered load" in found.reason


@pytest.mark.parametrize(("count", "expected"), [(49, True), (50, True), (51, False)])
def test_two_percent_still_waiting_are_a_backlog(count: int, expected: bool) -> None:
    """The wait grows; only the last request is scheduled after the last arrival. 1 of 50 is 2 %."""
    last_ms = 16_000.0
    arrivals = [last_ms * index / (count - 1) for index in range(count)]
    waits = [min(0.06 * arrival, last_ms - arrival) for arrival in arrivals[:-1]]
    assert judge_saturation(run_of(arrivals, [*waits, 0.0])).backlog_share == 0
    assert judge_saturation(run_of(arrivals, [*waits, math.nan])).backlog_share == 1 / count
    verdict = judge_saturation(run_of(arrivals, [*waits, 500.0]))
    assert verdict.backlog_share == 1 / count
    assert verdict.wait_growth is not None and verdict.wait_growth > GROWTH_LIMIT
    assert verdict.is_saturated is expected
    if not expected:
        assert verdict.reason == "a backlog was worked off before the last arrival"


def test_five_slices_have_no_rate_and_six_have() -> None:
    assert judge_saturation(run_of(POWERS, growing(0.5))).wait_growth == 0.5
    five = [*POWERS[:1], *POWERS[:1], *POWERS[2:]]
    assert judge_saturation(run_of(five, [0.5 * time for time in five])).wait_growth is None
    at_once = judge_saturation(run_of([5.0] * 20, [1.0] * 20))
    assert at_once.wait_growth is None


def test_slices_are_twentieths_of_the_time_of_arrivals() -> None:
    """Pairs that share a slice count as one point each; the last arrival is in the last slice."""
    arrivals = [0.0, 4.9, 5.0, 9.9, 20.0, 24.9, 40.0, 60.0, 80.0, 100.0]
    waits = [0.0, 9.8, 10.0, 19.8, 0.0, 0.0, 80.0, 120.0, 160.0, 200.0]
    points = [(2.45, 4.9), (7.45, 14.9), (22.45, 0.0), (40.0, 80.0), (60.0, 120.0), (80.0, 160.0)]
    points += [(100.0, 200.0)]
    slopes = sorted(
        (points[j][1] - points[i][1]) / (points[j][0] - points[i][0])
        for j in range(len(points))
        for i in range(j)
    )
    found = judge_saturation(run_of(arrivals, waits))
    assert found.wait_growth == pytest.approx(slopes[len(slopes) // 2], rel=1e-12)


@pytest.mark.parametrize(("wait_ms", "expected"), [(99.0, False), (100.0, False), (101.0, True)])
def test_a_burst_is_saturation_when_half_waited_longer_than_serving_took(
    wait_ms: float, expected: bool
) -> None:
    found = judge_saturation(run_of([0.0] * 3, [0.0, wait_ms, 5000.0], service_ms=100.0))
    assert found.is_saturated is expected
    words = "most requests waited longer" if expected else "served without a long wait"
    assert words in found.reason


@pytest.mark.parametrize(("wait_ms", "expected"), [(50.0, False), (50.5, True)])
def test_a_burst_is_saturation_when_half_waited_longer_than_arrivals_lasted(
    wait_ms: float, expected: bool
) -> None:
    found = judge_saturation(run_of([0.0, 0.0, 50.0], [wait_ms, 0.0, 5000.0]))
    assert found.is_saturated is expected


def test_what_a_burst_left_unserved_waited_until_the_end() -> None:
    def found(end_ms: float) -> bool:
        waits = [0.0, math.nan, math.nan]
        return judge_saturation(run_of([0.0] * 3, waits, end_ms=end_ms)).is_saturated

    assert not found(10.0)  # as long as the one that was served took
    assert found(10.5)


def test_draining_lasts_from_the_last_arrival_to_the_last_answer_or_the_cut() -> None:
    waits = growing(0.0)
    assert judge_saturation(run_of(POWERS, waits, end_ms=1e6)).drain_ms == 10.0
    cut = run_of(POWERS, [*waits[:-1], math.nan], end_ms=17_000.0)
    assert judge_saturation(cut).drain_ms == 17_000.0 - POWERS[-1]
    nobody = run_of(POWERS, [math.nan] * 6, end_ms=POWERS[-1] - 1)
    assert judge_saturation(nobody).drain_ms == 0.0


# ---- what is sustained -----------------------------------------------------------------------


def rows_of(*rows: tuple[int, float, float, int, int, int]) -> StepLog:
    """Rows of (worker, start, duration, steps, decodes, waiting at the end); no prompts."""
    columns: dict[str, Any] = {name: np.zeros(len(rows), np.int64) for name in STEP_COLUMNS}
    names = ("worker_id", "start_ms", "duration_ms", "num_steps", "num_decodes", "num_waiting")
    for position, name in enumerate(names):
        kind = np.float64 if name.endswith("_ms") else np.int64
        columns[name] = np.array([row[position] for row in rows], kind)
    return StepLog(**columns)


def full_run(steps: StepLog, **more: Any) -> RunResult:
    """An overloaded run of a second of arrivals with these rows."""
    arrivals = [1000.0 * index / 19 for index in range(20)]
    waits = [2.0 * arrival for arrival in arrivals]
    run = run_of(arrivals, waits, workers=WorkerLog.equal(2), steps=steps, **more)
    nothing = np.full(20, np.nan)
    return replace(run, requests=replace(run.requests, first_token_ms=nothing))


def test_a_worker_sustains_what_it_makes_while_a_queue_lasts() -> None:
    """100 tokens in 400 ms; rows in which the queue came do not count."""
    steps = rows_of(
        (0, 0.0, 100.0, 10, 9, 0),
        (0, 100.0, 100.0, 10, 9, 1),
        (0, 200.0, 300.0, 30, 2, 1),
        (0, 500.0, 100.0, 10, 4, 2),
        (0, 1100.0, 100.0, 10, 9, 0),
    )
    load = load_of(full_run(steps))
    assert load.sustained_tok_s == pytest.approx(100 / 0.4)
    assert load.is_saturated
    assert load.collapse_ms == 200.0


def test_a_worker_for_which_nothing_waited_counts_with_all_it_made() -> None:
    steps = rows_of(
        (0, 0.0, 100.0, 10, 1, 1),
        (0, 100.0, 100.0, 10, 2, 1),
        (1, 0.0, 100.0, 10, 3, 0),
        (1, 300.0, 200.0, 10, 5, 1),
    )
    load = load_of(full_run(steps))
    assert load.sustained_tok_s == pytest.approx(20 / 0.1 + 80 / 0.5)
    idle = rows_of((0, 0.0, 100.0, 10, 1, 0), (1, 0.0, 100.0, 10, 3, 1))
    assert load_of(full_run(idle)).sustained_tok_s is None


def test_collapse_is_when_the_first_queue_no_longer_empties_before_the_last_arrival() -> None:
    def collapse(start_ms: float) -> float | None:
        """Worker 1 has a queue all the time, but for its row that starts at `start_ms`."""
        rows = [(0, 0.0, 10.0, 1, 1, 1), (0, 700.0, 10.0, 1, 1, 1), (1, 0.0, 10.0, 1, 1, 1)]
        rows += [(1, 100.0, 10.0, 1, 1, 1), (1, start_ms, 10.0, 1, 1, 0)]
        rows += [(1, 1100.0, 10.0, 1, 1, 1), (1, 1200.0, 10.0, 1, 1, 1)]
        return load_of(full_run(rows_of(*rows))).collapse_ms

    # The row behind an idle one has no queue all through it either, if it comes after the end.
    assert collapse(1000.5) == 100.0  # after the last arrival: it may empty
    assert collapse(1000.0) == 700.0
    assert collapse(600.0) == 700.0


def test_a_queue_that_comes_after_the_last_arrival_only_is_no_collapse() -> None:
    steps = rows_of(
        (0, 0.0, 10.0, 1, 1, 1), (0, 10.0, 10.0, 1, 1, 1), (0, 900.0, 10.0, 1, 1, 0),
        (0, 1100.0, 10.0, 1, 1, 1), (0, 1200.0, 10.0, 1, 1, 1),
    )  # fmt: skip
    load = load_of(full_run(steps))
    assert load.is_saturated and load.sustained_tok_s is not None
    assert load.collapse_ms is None


def test_a_run_that_kept_up_has_no_collapse_but_what_it_sustained() -> None:
    steps = rows_of((0, 0.0, 100.0, 10, 1, 1), (0, 100.0, 100.0, 10, 2, 1))
    run = run_of(POWERS, growing(0.0), steps=steps)
    load = load_of(run)
    assert (load.is_saturated, load.collapse_ms) == (False, None)
    assert load.sustained_tok_s == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("start_ms", "waits"), [(99.0, False), (100.0, True), (149.0, True), (150.0, False)]
)
def test_a_request_waits_in_the_router_from_its_arrival_until_it_leaves(
    start_ms: float, waits: bool
) -> None:
    steps = rows_of((0, start_ms, 100.0, 10, 1, 0))
    run = full_run(steps)
    queued_ms, dispatch_ms = np.zeros(20), run.requests.arrival_ms.copy()
    queued_ms[3], dispatch_ms[3] = 50.0, 150.0
    routing = RoutingStats(np.zeros(20), queued_ms, 1, {}, 0, {})
    log = replace(run.requests, dispatch_ms=dispatch_ms)
    load = load_of(replace(run, requests=log, routing=routing))
    assert load.sustained_tok_s == (pytest.approx(100.0) if waits else None)


def test_requests_still_in_the_router_at_a_cut_wait_to_the_end() -> None:
    steps = rows_of((0, 0.0, 100.0, 10, 1, 0), (0, 900.0, 100.0, 10, 2, 0))
    run = full_run(steps)
    status = run.requests.status.copy()
    dispatch_ms = run.requests.arrival_ms.copy()
    status[10:], dispatch_ms[10:] = int(RequestStatus.UNFINISHED), np.nan
    log = replace(run.requests, status=status, dispatch_ms=dispatch_ms)
    routing = RoutingStats(np.zeros(20), np.zeros(20), 10, {}, 0, {})
    load = load_of(replace(run, requests=log, routing=routing))
    assert load.sustained_tok_s == pytest.approx(200.0)
    assert load.collapse_ms == 900.0


def test_the_document_of_a_prediction_holds_the_same_figures() -> None:
    load = Load(Saturation(True, "why", 0.1, 0.2, 3.0), 44.0, 55.0)
    assert load.to_dict() == {
        "saturated": True,
        "reason": "why",
        "sustained_output_tok_s": 44.0,
        "time_to_collapse_ms": 55.0,
    }
