"""Kubernetes' HPA rule: values worked out by hand from its documentation."""

import math
from dataclasses import replace
from typing import Any

import pytest

from dynosim.planner.decision import PoolDecision
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.observation import EngineReport, Observation, PoolState, Scrape, WorkerState
from dynosim.planner.queries import (
    PENDING_REQUESTS,
    Metric,
    QuantileQuery,
    RateQuery,
    ServiceMetric,
    SumQuery,
    WorkerMetric,
)
from dynosim.planner.rehearsal import Rehearsal, targets
from dynosim.planner.scaling_rules import ScalingPolicy, ScalingRules
from dynosim.workers.lifecycle import Phase

S = 1000.0
LOAD = ServiceMetric(name="load", query=SumQuery("load"), target=10.0)
SHARED = replace(LOAD, is_average=True)
FAST = ScalingRules(window_ms=0, policies=(ScalingPolicy("pods", 100, S),))


def pool(
    ready: int, starting: int = 0, *, draining: int = 0, wanted: int | None = None
) -> PoolState:
    phases = [Phase.READY] * ready + [Phase.STARTING] * starting + [Phase.DRAINING] * draining
    workers = tuple(WorkerState(i, phase, 0.0) for i, phase in enumerate(phases))
    return PoolState("pool", ready + starting if wanted is None else wanted, workers)


def hpa(*metrics: Metric, **changes: Any) -> Hpa:
    spec = HpaSpec(pool="pool", metrics=metrics or (LOAD,), max_replicas=100, up=FAST, down=FAST)
    return Hpa(replace(spec, **changes))


def looked(
    scaler: Hpa,
    state: PoolState,
    now_s: float = 0.0,
    *,
    reports: tuple[EngineReport, ...] = (),
    **values: float,
) -> PoolDecision:
    scrapes = (Scrape(now_s * S, values),) if values else ()
    decision = scaler.look(Observation(now_s * S, (state,), scrapes, reports))
    assert decision is not None
    assert (decision.now_ms, decision.controller) == (now_s * S, "hpa")
    return decision.pools[0]


# ---- the ceil rule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "ready", "expected"),
    [
        (20, 2, 4),
        (10.99, 2, 2),  # within the tolerance
        (11, 2, 2),  # at it
        (11.01, 2, 3),  # 2 x 1.101, rounded up
        (9, 2, 2),  # at it
        (8.99, 10, 9),
        (5, 3, 2),  # 1.5, rounded up
        (0, 3, 1),  # 0 asked for, the minimum given
        (1e9, 3, 100),
    ],
)
def test_replicas_are_a_multiple_of_the_ready_rounded_up(
    load: float, ready: int, expected: int
) -> None:
    assert looked(hpa(), pool(ready), load=load).target == expected


def test_figures_are_counted_in_thousandths() -> None:
    small = ServiceMetric(name="ttft", query=SumQuery("ttft"), target=0.5)
    assert small.target * 1e3 == 500
    assert looked(hpa(small), pool(1), ttft=0.0459).figures["ttft"] == 0.045


def test_starting_workers_do_not_multiply() -> None:
    found = looked(hpa(), pool(2, starting=2), load=20)
    assert (found.current, found.target, found.verdict) == (4, 4, "no_change")


def test_near_the_target_what_was_wanted_stays_even_if_few_are_ready() -> None:
    assert looked(hpa(), pool(1, starting=5), load=10).target == 6


def test_draining_workers_are_nobody() -> None:
    found = looked(hpa(), pool(2, draining=3), load=20)
    assert (found.current, found.target) == (2, 4)


@pytest.mark.parametrize(
    ("load", "alive", "expected"),
    [(35, 2, 4), (20, 2, 2), (22, 2, 2), (22.1, 2, 3), (17, 2, 2), (0, 2, 1)],
)
def test_average_value_divides_the_figure_by_its_target(
    load: float, alive: int, expected: int
) -> None:
    assert looked(hpa(SHARED), pool(1, starting=alive - 1), load=load).target == expected


def test_tolerance_can_differ_by_direction() -> None:
    rules = replace(FAST, tolerance=0.0)
    assert looked(hpa(up=rules), pool(10), load=10.1).target == 11
    assert looked(hpa(up=rules), pool(10), load=9.5).target == 10
    assert looked(hpa(down=rules), pool(10), load=9.5).target == 10  # 9.5, rounded up
    assert looked(hpa(down=rules), pool(100), load=9.5).target == 95


def test_zero_workers_are_left_alone_unless_zero_is_allowed() -> None:
    off = looked(hpa(), pool(0), load=50)
    assert (off.target, off.verdict) == (0, "scaling_disabled")
    assert looked(hpa(min_replicas=0), pool(0), load=50).target == 5
    assert looked(hpa(min_replicas=0), pool(3), load=0).target == 0


@pytest.mark.parametrize(("wanted", "expected"), [(20, 10), (1, 2)])
def test_outside_its_limits_it_goes_to_them_at_once(wanted: int, expected: int) -> None:
    slow = ScalingRules(window_ms=300 * S, policies=(ScalingPolicy("pods", 1, 60 * S),))
    scaler = hpa(min_replicas=2, max_replicas=10, up=slow, down=slow)
    assert looked(scaler, pool(wanted), load=10).target == expected


# ---- several metrics, missing metrics ------------------------------------------------------------

OTHER = ServiceMetric(name="other", query=SumQuery("other"), target=1.0)


def test_largest_of_several_metrics_counts() -> None:
    assert looked(hpa(LOAD, OTHER), pool(2), load=5, other=3).target == 6


def test_missing_metric_blocks_shrinking_only() -> None:
    up = looked(hpa(LOAD, OTHER), pool(2), load=30)
    assert (up.target, up.verdict) == (6, "scale_up")
    down = looked(hpa(LOAD, OTHER), pool(4), load=5)
    assert (down.target, down.verdict) == (4, "metrics_missing")
    assert any("other is not known" in reason for reason in down.reasons)
    nothing = looked(hpa(LOAD, OTHER), pool(4))
    assert (nothing.target, nothing.verdict) == (4, "metrics_missing")


def test_service_without_any_worker_keeps_what_was_wanted() -> None:
    assert looked(hpa(), pool(0, wanted=3), load=50).target == 3
    assert looked(hpa(SHARED), pool(0, wanted=3), load=50).target == 5


def test_gauge_of_an_outage_is_used_until_it_is_stale() -> None:
    scaler = hpa(sync_ms=100 * S)
    assert looked(scaler, pool(2), load=20).target == 4
    assert looked(scaler, pool(2), 200).target == 4
    assert looked(scaler, pool(2), 300).verdict == "metrics_missing"


def test_quantile_of_nothing_observed_counts_as_zero() -> None:
    ttft = ServiceMetric(name="ttft", query=QuantileQuery(0.95, "ttft", 60 * S), target=0.5)
    scaler = hpa(ttft)
    idle = {'ttft_bucket{le="1.0"}': 4.0, 'ttft_bucket{le="+Inf"}': 4.0}
    assert looked(scaler, pool(4), 0, **idle).verdict == "metrics_missing"
    assert looked(scaler, pool(4), 15, **idle).target == 1


def test_rate_is_per_second() -> None:
    served = ServiceMetric(name="served", query=RateQuery("served_total", 60 * S), target=2.0)
    scaler = hpa(served)
    looked(scaler, pool(2), 0, served_total=1000)
    assert looked(scaler, pool(2), 60, served_total=1240).verdict == "metrics_missing"  # open left
    assert looked(scaler, pool(2), 90, served_total=1360).target == 4


def test_adapter_that_polls_gives_figures_of_its_last_poll() -> None:
    polled = replace(LOAD, poll_ms=60 * S)
    scaler = hpa(polled)
    assert looked(scaler, pool(2), 0, load=20).target == 4
    assert looked(scaler, pool(2), 45, load=60).target == 4
    assert looked(scaler, pool(2), 60, load=40).target == 8


def test_pending_requests_are_those_of_three_stages() -> None:
    stages = {"preprocess": 1.0, "route": 4.0, "dispatch": 16.0, "other": 64.0}
    values = {f'dynamo_frontend_stage_requests{{stage="{k}"}}': v for k, v in stages.items()}
    queue = ServiceMetric(name="queue", query=PENDING_REQUESTS, target=10.0)
    assert looked(hpa(queue), pool(2), **values).figures["queue"] == 21


# ---- figures of each worker ----------------------------------------------------------------------

WAITING = WorkerMetric(figure="num_waiting", target=10.0)


def reports(*waiting: int, at_s: float = 0.0, name: str = "pool") -> tuple[EngineReport, ...]:
    return tuple(
        EngineReport(i, name, at_s * S, 0, count, 0, 0, 0, 0.0) for i, count in enumerate(waiting)
    )


@pytest.mark.parametrize(
    ("state", "waiting", "expected"),
    [
        (pool(2), (30, 10), 4),
        (pool(2), (11, 11), 2),
        (pool(3), (30, 30), 6),  # the third counts as idle: 60 / 3 of 10, on 3
        (pool(3), (12, 12), 3),  # it would turn growth into shrinking: 8 of 10
        (pool(3), (2, 2), 2),  # it counts as at the target: 14 / 3 of 10, on 3
        (pool(2, starting=2), (30, 30), 6),  # those that start count as idle
        (pool(2, starting=2), (12, 12), 4),
        (pool(2, starting=2), (2, 2), 1),  # not when fewer are asked for
        (pool(2, starting=1, wanted=9), (30, 10), 9),  # growth that would be fewer than wanted
    ],
)
def test_missing_and_starting_workers_are_counted_against_a_change(
    state: PoolState, waiting: tuple[int, ...], expected: int
) -> None:
    assert looked(hpa(WAITING), state, reports=reports(*waiting)).target == expected


def test_reports_of_others_and_old_ones_are_missing() -> None:
    scaler = hpa(WAITING)
    stale = looked(scaler, pool(2), 61, reports=reports(30, 30))
    assert (stale.target, stale.verdict) == (2, "metrics_missing")
    assert looked(scaler, pool(2), 76, reports=reports(9, 9, name="prefill")).target == 2
    assert looked(scaler, pool(2), 91, reports=reports(30, 30, at_s=31)).target == 6


# ---- when it looks, and how it settles -----------------------------------------------------------


def test_it_looks_every_sync_period_and_not_before() -> None:
    scaler = hpa()
    assert scaler.next_ms == 0
    looked(scaler, pool(2), 0, load=10)
    assert scaler.next_ms == 15 * S
    early = Observation(14 * S, (pool(2),), (Scrape(14 * S, {"load": 40.0}),))
    assert scaler.look(early) is None
    assert looked(scaler, pool(2), 50).target == 8  # what was scraped early is not lost
    assert scaler.next_ms == 60 * S


def held(load: Any, *, until_s: float, workers: int = 1, start_s: float = 0, **spec: Any) -> Any:
    scaler = Hpa(HpaSpec(pool="pool", metrics=(LOAD,), **{"max_replicas": 10} | spec))
    rehearsal = Rehearsal(
        metrics=lambda now_ms, ready: {"load": float(load(now_ms / S))},
        until_ms=until_s * S,
        num_workers=workers,
        start_ms=start_s * S,
    )
    decisions = rehearsal.decisions(scaler)
    return decisions, [(at_ms / S, target) for at_ms, target in targets(decisions)]


def test_by_default_growth_is_doubling_or_four_each_period() -> None:
    _, found = held(lambda _: 1000, until_s=60, max_replicas=100)
    assert found == [(0, 5), (15, 10), (30, 20), (45, 40), (60, 80)]


def test_by_default_nothing_shrinks_for_five_minutes_and_then_all_at_once() -> None:
    decisions, found = held(lambda s: 10 if s < 100 else 0, until_s=500, workers=8)
    assert found == [(0, 8), (390, 1)]  # the last that was near its target: at 90 s
    waiting = decisions[10].pools[0]
    assert (waiting.verdict, waiting.figures["proposed"]) == ("held_by_window", 0)
    assert any("300 s" in reason for reason in waiting.reasons)


def test_window_upwards_takes_the_least_of_its_proposals() -> None:
    up = ScalingRules(window_ms=60 * S, policies=(ScalingPolicy("pods", 9, S),))
    _, found = held(lambda s: 50 if s % 45 else 20, until_s=60, up=up)
    assert found == [(0, 1), (60, 2)]  # the 1 of the start is forgotten; 2 was asked for at 45 s


@pytest.mark.parametrize(
    ("select", "expected"), [("max", [(0, 6), (60, 12)]), ("min", [(0, 4), (60, 6)])]
)
def test_several_policies_allow_the_most_or_the_least(
    select: Any, expected: list[tuple[float, int]]
) -> None:
    policies = (ScalingPolicy("pods", 2, 60 * S), ScalingPolicy("percent", 100, 60 * S))
    up = ScalingRules(window_ms=0, policies=policies, select=select)
    _, found = held(lambda _: 1000, until_s=60, workers=3 if select == "max" else 2, up=up,
                    max_replicas=99)  # fmt: skip
    assert found == expected


def test_select_disabled_never_shrinks() -> None:
    down = ScalingRules(window_ms=0, policies=(), select="disabled")
    decisions, found = held(lambda _: 0, until_s=600, workers=4, down=down)
    assert found == [(0, 4)]
    assert decisions[-1].pools[0].verdict == "held_by_rate"


def test_percent_downwards_is_cut_to_whole_workers() -> None:
    down = ScalingRules(window_ms=0, policies=(ScalingPolicy("percent", 10, 30 * S),))
    _, found = held(lambda _: 0, until_s=90, workers=9, down=down)
    assert found == [(0, 8), (30, 7), (60, 6), (90, 5)]  # 8.1, 7.2, 6.3, 5.4


def test_workers_that_start_slowly_are_not_asked_for_twice() -> None:
    _, found = held(lambda _: 21, until_s=200, start_s=100)
    assert found == [(0, 3), (105, 7)]  # ready at 100 s, the load still there


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas 3"),
        ({"max_replicas": 0, "min_replicas": 0}, "max_replicas 0"),
        ({"metrics": ()}, "metrics"),
    ],
)
def test_what_could_never_decide_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HpaSpec(**{"pool": "pool", "metrics": (LOAD,), "max_replicas": 3} | changes)


def test_metrics_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="num_waiting"):
        WorkerMetric(figure="queue", target=1.0)
    for target in (0.0, -1.0, 0.0004):
        with pytest.raises(ValueError, match="target"):
            replace(LOAD, target=target)
        with pytest.raises(ValueError, match="target"):
            replace(WAITING, target=target)
    with pytest.raises(ValueError, match="policies"):
        ScalingRules(window_ms=0, policies=())


def test_every_decision_names_its_figures() -> None:
    found = looked(hpa(), pool(2, starting=1), load=20.5)
    assert found.figures == {
        "load": 20.5, "proposed": 5.0, "wanted": 3.0, "ready": 2.0, "starting": 1.0
    }  # fmt: skip
    assert found.reasons == ("load 20.5 of 10 on 2 ready asks for 5",)
    assert not math.isnan(found.figures["load"])
