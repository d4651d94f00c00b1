"""What becomes of workers that drain, and of requests whose workers fail, to the millisecond.

A prefill step takes 10 ms and a decode step 5.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from clusters import equal_workers, run_twin
from probing import Ask, trace_of
from test_placers import SPEC, TIMING, busy_trace, in_hand

from dynosim.cluster import ClusterSpec, PoolSpec, simulate
from dynosim.cluster.control import ControlPlane, Process, ProcessGenerator
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.workers.lifecycle import Phase

ONE_REQUEST = trace_of([Ask(0.0, (1,), 0, output_tokens=20)], 4)


def at(*acts: tuple[float, Callable[[ControlPlane], object]]) -> Process:
    """Does something at each of some times."""

    def act(control: ControlPlane) -> ProcessGenerator:
        for time_ms, what in acts:
            yield control.env.timeout(time_ms - control.now_ms)
            what(control)

    return act


def test_a_worker_that_drains_before_it_is_ready_is_gone_at_once() -> None:
    pool = PoolSpec(engine=SPEC, times=TIMING, workers=1, startup_ms=50.0)
    phases: list[Phase] = []
    process = at(
        (5.0, lambda control: control.launch()),
        (20.0, lambda control: control.drain(1)),
        (60.0, lambda control: phases.append(control.workers[1].phase)),
    )
    lives = simulate(ONE_REQUEST, ClusterSpec(pools=(pool,)), processes=[process]).workers
    assert (lives.launched_ms[1], lives.ended_ms[1]) == (5.0, 20.0)
    assert np.isnan(lives.ready_ms[1]) and phases == [Phase.GONE]


def test_a_worker_that_drains_without_requests_is_gone_at_once() -> None:
    process = at((20.0, lambda control: control.drain(1)))
    cluster = equal_workers(SPEC, TIMING, num_workers=2)
    lives = simulate(ONE_REQUEST, cluster, processes=[process]).workers
    np.testing.assert_array_equal(lives.ended_ms, [np.nan, 20.0])


def test_the_gap_of_a_request_that_moves_twice_is_from_its_last_token() -> None:
    """Nine tokens by 50 ms; the second worker fails, too, before it has delivered a tenth."""
    process = at(
        (52.0, lambda control: control.fail(0)),
        (57.0, lambda control: control.fail(1)),
    )
    cluster = equal_workers(SPEC, TIMING, num_workers=3)
    result = simulate(ONE_REQUEST, cluster, processes=[process])
    log = result.requests
    assert (log.migrations[0], log.worker_id[0], log.output_tokens[0]) == (2, 2, 20)
    assert result.stalled_gaps_ms.tolist() == pytest.approx([57.0 + 10.0 - 50.0])
    assert log.finish_ms[0] == pytest.approx(67.0 + 10 * 5.0)


@pytest.mark.parametrize("records_events", [False, True])  # the second makes it a router's task
@pytest.mark.parametrize("end", ["drain", "fail"])
def test_a_worker_in_the_slot_of_another_has_a_load_of_its_own(
    end: str, records_events: bool
) -> None:
    """Worker 2 comes first among equals from 204 ms on: it has the slot that worker 0 had."""
    routing = RoutingSpec(RouterSpec(4, mode="least-loaded"), records_events=records_events)
    process = at(
        (202.0, lambda control: getattr(control, end)(0)),
        (204.0, lambda control: control.launch()),
    )
    log = run_twin(
        busy_trace(1),
        engine=SPEC,
        timing=TIMING,
        num_workers=2,
        routing=routing,
        processes=[process],
    ).requests
    later = np.flatnonzero(log.arrival_ms > 204.0).tolist()
    loads = [in_hand(log, index, 3) for index in later]
    assert log.worker_id[later].tolist() == [2 if load[2] <= load[1] else 1 for load in loads]
    assert len(later) > 30 and any(load[0] for load in loads) == (end == "drain")


def test_a_seat_that_never_was_leaves_no_hits() -> None:
    """The last request is planned at 15 ms for the step from 20 ms on; its worker fails between."""
    asks = [
        Ask(0.0, (5, 6, 7), 0, output_tokens=1),
        Ask(0.0, (1, 2, 3), 0, output_tokens=20),
        Ask(11.0, (5, 6, 9), 0, output_tokens=3),
    ]
    process = at(
        (16.0, lambda control: control.launch()),
        (17.0, lambda control: control.fail(0)),
    )
    cluster = equal_workers(replace(SPEC, async_scheduling=True), TIMING)
    log = simulate(trace_of(asks, 4), cluster, processes=[process]).requests
    assert log.migrations.tolist() == [0, 1, 1]
    assert (log.scheduled_ms[2], log.cached_tokens[2]) == (17.0, 0)


@pytest.mark.parametrize("exact", [False, True])
def test_a_request_that_has_moved_was_scheduled_when_it_was_first(exact: bool) -> None:
    """It is planned again at 55 ms, for the step from 60 ms on; the run ends between."""
    asks = [Ask(0.0, (1, 2, 3), 0, output_tokens=20), Ask(0.0, (5, 6, 7), 0, output_tokens=20)]
    log = run_twin(
        trace_of(asks, 4),
        engine=replace(SPEC, async_scheduling=True),
        timing=TIMING,
        num_workers=2,
        until_ms=57.0,
        exact_stepping=exact,
        processes=[at((52.0, lambda control: control.fail(0)))],
    ).requests
    assert log.migrations.tolist() == [1, 0]
    assert (log.worker_id.tolist(), log.scheduled_ms.tolist()) == ([1, 1], [0.0, 0.0])
