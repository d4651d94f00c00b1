"""KEDA between none and one, and its HPA above; the published examples step by step."""

from dataclasses import replace
from typing import Any

import pytest

from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.keda import Keda, KedaSpec, KedaTrigger
from dynosim.planner.observation import Observation, PoolState, Scrape, WorkerState
from dynosim.planner.queries import (
    PENDING_REQUESTS,
    TTFT_P95_S,
    WAITING_REQUESTS,
    ServiceMetric,
    SumQuery,
)
from dynosim.planner.rehearsal import Rehearsal, targets
from dynosim.planner.scaling_rules import ScalingPolicy, ScalingRules
from dynosim.workers.lifecycle import Phase

S = 1000.0
TTFT = ServiceMetric(name="ttft_p95_s", query=SumQuery("ttft"), target=0.5)
UP = ScalingRules(window_ms=0, policies=(ScalingPolicy("pods", 2, 30 * S),))
DOWN = ScalingRules(window_ms=60 * S, policies=(ScalingPolicy("pods", 1, 30 * S),))


def steps(decisions: list[ScalingDecision]) -> list[tuple[float, int]]:
    return [(at_ms / S, target) for at_ms, target in targets(decisions)]


def rehearsed(scaler: Hpa | Keda, value: Any, *, until_s: float, workers: int = 1,
              name: str = "ttft", start_s: float = 0) -> list[ScalingDecision]:  # fmt: skip
    return Rehearsal(
        metrics=lambda now_ms, ready: {name: float(value(now_ms / S))},
        until_ms=until_s * S,
        num_workers=workers,
        start_ms=start_s * S,
    ).decisions(scaler)


# ---- the published example of an HPA on TTFT: 500m, 1 to 10 --------------------------------------


def ttft_hpa() -> Hpa:
    return Hpa(HpaSpec(pool="pool", metrics=(TTFT,), max_replicas=10, up=UP, down=DOWN))


def test_overload_climbs_two_in_thirty_seconds() -> None:
    found = steps(rehearsed(ttft_hpa(), lambda _: 5.0, until_s=300))
    assert found == [(0, 3), (30, 5), (60, 7), (90, 9), (120, 10)]  # from one


def test_descent_begins_after_its_window_and_takes_one_in_thirty_seconds() -> None:
    found = steps(rehearsed(ttft_hpa(), lambda s: 5.0 if s < 200 else 0.05, until_s=700))
    # the last look that found it overloaded was at 195 s
    assert found[5:] == [(255 + 30 * i, 9 - i) for i in range(9)]


def test_ratio_that_is_small_climbs_by_the_rule_and_not_by_the_limit() -> None:
    found = steps(rehearsed(ttft_hpa(), lambda _: 0.75, until_s=120))
    # 1.5 times one is two, of two is three; of three 4.5, but only two more than 30 s before
    assert found == [(15 * i, 2 + i) for i in range(9)]


def test_45_milliseconds_of_500_keep_one() -> None:
    decisions = rehearsed(ttft_hpa(), lambda _: 0.045, until_s=600)
    assert steps(decisions) == [(0, 1)]
    last = decisions[-1].pools[0]
    assert (last.verdict, last.figures["ttft_p95_s"]) == ("no_change", 0.045)


@pytest.mark.parametrize(("queue", "expected"), [(10, 1), (11, 1), (12, 2), (40, 3)])
def test_queue_above_ten_grows(queue: int, expected: int) -> None:
    metric = ServiceMetric(name="queue", query=PENDING_REQUESTS, target=10)
    scaler = Hpa(HpaSpec(pool="pool", metrics=(metric,), max_replicas=10, up=UP, down=DOWN))
    name = 'dynamo_frontend_stage_requests{phase="",stage="dispatch"}'
    found = rehearsed(scaler, lambda _: queue, until_s=0, name=name)
    assert steps(found) == [(0, expected)]


def test_p95_over_five_minutes_falls_long_after_the_overload() -> None:
    metric = replace(TTFT, query=TTFT_P95_S)
    scaler = Hpa(HpaSpec(pool="pool", metrics=(metric,), max_replicas=10, up=UP, down=DOWN))

    def ttft_of(now_ms: float, ready: int) -> dict[str, float]:
        """A request a second; those from 300 to 600 s wait for 2.5 s, others for 50 ms."""
        slow = min(max(now_ms / S - 300, 0), 300)
        name = "dynamo_frontend_time_to_first_token_seconds_bucket"
        fast = now_ms / S - slow
        counts = {"0.05": fast, "2.0": fast, "3.0": fast + slow, "+Inf": fast + slow}
        return {f'{name}{{le="{le}"}}': count for le, count in counts.items()}

    decisions = Rehearsal(metrics=ttft_of, until_ms=1500 * S, scrape_ms=15 * S).decisions(scaler)
    found = steps(decisions)
    # p95 passes 0.5 s when 5 % of five minutes are slow, and falls below it when 95 % are not
    assert found[:6] == [(0, 1), (315, 3), (345, 5), (375, 7), (405, 9), (435, 10)]
    slow_until_s = max(d.now_ms for d in decisions if d.pools[0].figures.get("ttft_p95_s", 0) > 1)
    assert slow_until_s == 870 * S
    assert found[6:] == [(930 + 30 * i, 9 - i) for i in range(9)]


# ---- KEDA's own part -----------------------------------------------------------------------------

TRIGGER = KedaTrigger(metric=replace(TTFT, is_average=True), activation=0.1)


def keda(*triggers: KedaTrigger, **changes: Any) -> Keda:
    """The published example."""
    spec = KedaSpec(
        pool="pool",
        triggers=triggers or (TRIGGER,),
        min_replicas=1,
        max_replicas=10,
        poll_ms=15 * S,
        cooldown_ms=60 * S,
    )
    return Keda(replace(spec, **changes))


def looked(scaler: Keda, now_s: float, wanted: int, **values: float) -> PoolDecision | None:
    workers = tuple(WorkerState(i, Phase.READY, 0.0) for i in range(wanted))
    scrapes = (Scrape(now_s * S, values),) if values else ()
    decision = scaler.look(Observation(now_s * S, (PoolState("pool", wanted, workers),), scrapes))
    return None if decision is None else decision.pools[0]


def test_example_at_45_of_500_milliseconds_keeps_one() -> None:
    assert steps(rehearsed(keda(), lambda _: 0.045, until_s=600)) == [(0, 1)]


def test_share_of_each_worker_asks_for_the_figure_by_its_target() -> None:
    """KEDA's default: a TTFT of twice the target never gives more than two workers."""
    assert steps(rehearsed(keda(), lambda _: 1.0, until_s=600)) == [(0, 2)]
    whole = KedaTrigger(metric=TTFT, activation=0.1)
    assert steps(rehearsed(keda(whole), lambda _: 1.0, until_s=600))[-1][1] == 10


@pytest.mark.parametrize(
    ("value", "verdict", "target"),
    [(0.05, "no_change", 0), (0.1, "no_change", 0), (0.101, "wake_up", 1), (5.0, "wake_up", 1)],
)
def test_nothing_wakes_at_or_below_activation(value: float, verdict: str, target: int) -> None:
    found = looked(keda(min_replicas=0), 0, 0, ttft=value)
    assert found is not None
    assert (found.verdict, found.target) == (verdict, target)


def test_to_zero_only_after_the_cooldown_of_the_last_active_poll() -> None:
    spec = {"min_replicas": 0, "down": replace(DOWN, window_ms=0)}
    found = steps(rehearsed(keda(**spec), lambda s: 0.3 if s < 100 else 0.05, until_s=300))
    assert found == [(0, 1), (165, 0)]  # active at 90 s; 150 s is not yet more than 60 s later


def test_cooldown_concerns_the_way_to_zero_alone() -> None:
    """With a minimum of one it is the HPA's 300 s that hold two workers, not the 60 s."""
    found = steps(rehearsed(keda(), lambda s: 1.0 if s < 100 else 0.05, until_s=500))
    assert found == [(0, 2), (390, 1)]


def test_several_workers_go_to_zero_at_once_when_the_cooldown_is_the_shorter() -> None:
    found = steps(rehearsed(keda(min_replicas=0), lambda s: 1.5 if s < 100 else 0.0, until_s=300))
    assert found == [(0, 3), (165, 0)]


def test_never_active_goes_to_zero_at_the_first_poll_or_after_its_first_cooldown() -> None:
    assert steps(rehearsed(keda(min_replicas=0), lambda _: 0.0, until_s=60)) == [(0, 0)]
    patient = keda(min_replicas=0, initial_cooldown_ms=45 * S)
    assert steps(rehearsed(patient, lambda _: 0.0, until_s=60)) == [(0, 1), (45, 0)]


QUEUE = KedaTrigger(
    metric=ServiceMetric(name="waiting", query=WAITING_REQUESTS, target=10, is_average=True)
)
ROUTE = 'dynamo_frontend_stage_requests{stage="route"}'


def test_queue_that_waits_for_the_first_worker_wakes_it_and_ttft_does_not() -> None:
    asleep = {ROUTE: 3.0, "ttft": 0.0}
    blind = looked(keda(min_replicas=0), 0, 0, **asleep)
    assert blind is not None
    assert blind.target == 0
    seeing = looked(keda(TRIGGER, QUEUE, min_replicas=0), 0, 0, **asleep)
    assert seeing is not None
    assert (seeing.target, seeing.verdict) == (1, "wake_up")
    assert seeing.figures["waiting"] == 3
    assert seeing.reasons == ("waiting 3 is above 0",)


def test_waking_is_noticed_at_the_next_poll_and_then_the_hpa_takes_over() -> None:
    scaler = keda(QUEUE, min_replicas=0, poll_ms=30 * S)
    decisions = Rehearsal(
        metrics=lambda now_ms, ready: {ROUTE: 0.0 if now_ms < 40 * S else 30.0},
        until_ms=100 * S,
        num_workers=0,
        start_ms=20 * S,
    ).decisions(scaler)
    assert steps(decisions) == [(0, 0), (60, 1), (75, 3)]


def test_minimum_wakes_all_of_it_and_is_kept_while_idle() -> None:
    scaler = keda(min_replicas=3)
    found = looked(scaler, 0, 0, ttft=0.3)
    assert found is not None
    assert (found.target, found.verdict) == (3, "wake_up")
    idle = looked(scaler, 15, 1, ttft=0.0)
    assert idle is not None
    assert (idle.target, idle.verdict) == (3, "scale_up")


def test_metric_that_is_missing_puts_nobody_to_sleep() -> None:
    scaler = keda(TRIGGER, QUEUE, min_replicas=0)
    found = looked(scaler, 0, 2, ttft=0.0)
    assert found is not None
    assert (found.target, found.verdict) == (2, "metrics_missing")
    assert found.reasons == ("waiting is not known",)


def test_poll_between_syncs_that_changes_nothing_decides_nothing() -> None:
    scaler = keda(poll_ms=10 * S)
    assert looked(scaler, 0, 1, ttft=0.3) is not None
    assert scaler.next_ms == 10 * S
    assert looked(scaler, 10, 1, ttft=0.3) is None
    assert scaler.next_ms == 15 * S
    assert looked(scaler, 12, 1, ttft=9.0) is None
