"""The planner as a whole: when it looks, what it asks for, and what it says."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from planner_support import CountingFrontend, card, linear, observation, only, pool_state, report

from dynosim.planner.decision import PoolDecision
from dynosim.planner.forecast import ForecastSpec
from dynosim.planner.observation import EngineReport, Observation, Pass, PoolState, Scrape
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec

INTERVAL_MS = 60_000.0

DEMAND = PlannerSpec(
    mode="agg",
    optimization_target="sla",
    ttft_ms=1e9,
    itl_ms=1e9,
    throughput_adjustment_interval_ms=INTERVAL_MS,
    load_predictor=ForecastSpec(method="constant"),
    max_utilization=1.0,
    max_gpu_budget=None,
)
"""An engine of `card()` with `linear()` times serves 8 requests of 100 and 20 tokens at a time, 18
ms a step: 22.22 a second, 1333.3 a minute."""

LOAD = PlannerSpec(mode="agg", optimization_target="throughput", max_gpu_budget=None)


class Service:
    """A frontend that is scraped every 10 s, and one pool that does as it is told."""

    def __init__(self, planner: Planner, replicas: int, pool: str = "agg") -> None:
        self.planner, self.replicas, self.pool = planner, replicas, pool
        self.frontend = CountingFrontend()
        self.at_ms = 0.0
        self.scrapes: list[Scrape] = [self.frontend.scrape(0.0)]
        self.is_scraped = True
        self.is_obeyed = True

    def minute(self, requests: int) -> PoolDecision:
        """A minute in which so many come; the decision at its end."""
        for _ in range(6):
            self.at_ms += 10_000.0
            self.frontend.serve(requests // 6, isl=100, osl=20)
            if self.is_scraped:
                self.scrapes.append(self.frontend.scrape(self.at_ms))
        return self.look()

    def look(self, reports: Sequence[EngineReport] = ()) -> PoolDecision:
        """Show it all at once."""
        state = pool_state(self.pool, self.replicas)
        seen = observation(self.at_ms, [state], self.scrapes, reports)
        self.scrapes = []
        decided = only(self.planner.look(seen))
        if self.is_obeyed:
            self.replicas = decided.target
        return decided


def _service(replicas: int = 1, spec: PlannerSpec = DEMAND, **changes: object) -> Service:
    planner = Planner(replace(spec, **changes), [card()], {"agg": linear()})  # type: ignore[arg-type]
    return Service(planner, replicas)


# ---- by demand -----------------------------------------------------------------------------------


def test_it_looks_at_the_end_of_each_interval() -> None:
    service = _service()
    assert service.planner.next_ms == 60_000.0
    early = observation(59_999.0, [pool_state("agg", 1)])
    assert service.planner.look(early) is None
    service.minute(60)
    assert service.planner.next_ms == 120_000.0
    service.at_ms = 250_000.0  # late: what was missed is not made up for
    service.look()
    assert service.planner.next_ms == 300_000.0


@pytest.mark.parametrize(("requests", "replicas"), [(600, 1), (1320, 1), (1380, 2), (4200, 4)])
def test_demand_takes_so_many_engines(requests: int, replicas: int) -> None:
    service = _service()
    service.minute(requests)
    decided = service.minute(requests)
    assert decided.target == replicas
    assert decided.figures["engine_rps"] == pytest.approx(22.222, rel=1e-4)
    assert decided.figures["demand_rps"] == pytest.approx(requests / 60, rel=1e-6)
    assert f"{requests} requests in the next interval" in decided.reasons[0]
    assert "by 22.22/s of an engine (8 at a time)" in " ".join(decided.reasons)


def test_what_an_engine_may_take_leaves_room() -> None:
    service = _service(max_utilization=0.5)
    service.minute(600)
    assert service.minute(1320).target == 2


def test_it_moves_so_many_at_a_time() -> None:
    service = _service(max_throughput_scaling_replicas=2)
    service.minute(6000)
    assert [service.minute(6000).target for _ in range(3)] == [5, 5, 5]
    service = _service(max_throughput_scaling_replicas=2)
    assert [service.minute(9000).target for _ in range(4)] == [3, 5, 7, 7]


def test_who_waits_already_is_served_within_the_interval() -> None:
    """10/s come, and 1200 wait: 20/s more, 30 of 22.22 an engine."""
    service = _service()
    service.minute(600)
    service.at_ms += 60_000.0
    for index in range(6):
        service.frontend.serve(100, isl=100, osl=20)
        service.scrapes.append(service.frontend.scrape(60_000.0 + (index + 1) * 10_000.0))
    decided = service.look([report(0, at_ms=service.at_ms, running=8, waiting=1200)])
    assert decided.target == 2
    assert "1200 wait already: 20/s more" in decided.reasons


def test_what_noise_brings_back_is_not_given_up() -> None:
    """3 engines hold 4000 a minute: 3600 with 10 % to grow take 3, 3960 took them as well."""
    service = _service()
    service.minute(4200)
    assert [service.minute(requests).target for requests in (4200, 3900, 3600)] == [4, 4, 3]
    assert service.minute(3900).target == 3


@pytest.mark.parametrize(("requests", "replicas"), [(96, 1), (108, 2)])
def test_of_few_requests_noise_leaves_more_room(requests: int, replicas: int) -> None:
    """Of 133 a minute one engine takes: 108 may be 137 at the same rate, 96 only 124."""
    service = _service(max_utilization=0.1)
    service.minute(240)
    assert service.minute(240).target == 2
    decided = service.minute(requests)
    assert decided.target == replicas
    assert ("of room to grow" in " ".join(decided.reasons)) == (replicas == 2)


def test_no_traffic_scales_down_to_the_minimum_and_comes_back() -> None:
    service = _service(replicas=5, min_endpoint=2)
    assert (service.minute(0).target, service.replicas) == (2, 2)
    service.minute(4200)
    assert service.minute(4200).target == 4
    assert service.minute(0).target == 2


def test_no_traffic_scales_to_none_and_a_waiting_request_wakes_it_soon() -> None:
    service = _service(replicas=2, min_endpoint=0)
    service.minute(600)
    assert service.minute(0).target == 0
    assert service.planner.next_ms == service.at_ms + 5_000.0
    service.at_ms += 5_000.0
    service.scrapes = [service.frontend.scrape(service.at_ms)]
    assert service.look().target == 0
    service.at_ms += 5_000.0
    service.frontend.active = 3.0
    service.scrapes = [service.frontend.scrape(service.at_ms)]
    woken = service.look()
    assert (woken.target, woken.verdict) == (1, "scale_up")
    assert "3 requests wait" in " ".join(woken.reasons)


def test_the_last_one_stays_while_requests_are_under_way() -> None:
    service = _service(replicas=2, min_endpoint=0)
    service.minute(600)
    service.frontend.active = 1.0
    assert service.minute(0).target == 1


def test_old_metrics_decide_nothing_and_say_so() -> None:
    service = _service(replicas=3, max_metric_age_ms=30_000.0)
    service.minute(600)
    service.replicas, service.is_scraped = 3, False
    stale = service.minute(6000)
    assert (stale.target, stale.verdict) == (3, "metrics_stale")
    assert stale.figures["metrics_age_ms"] == 60_000.0
    assert "the last metrics are 60 s old, 30 s at most" in stale.reasons
    service.is_scraped = True
    assert service.minute(4200).verdict == "scale_up"


def test_after_an_outage_demand_is_what_comes_and_not_what_was_scraped() -> None:
    """Scraped twice in the last minute only: 65/s all the same, and 3 engines."""
    service = _service(replicas=3)
    service.minute(3900)
    service.is_scraped = False
    service.minute(3900)
    service.at_ms += 40_000.0
    service.frontend.serve(2600, isl=100, osl=20)
    service.scrapes = [service.frontend.scrape(service.at_ms)]
    service.at_ms += 20_000.0
    service.frontend.serve(1300, isl=100, osl=20)
    service.scrapes.append(service.frontend.scrape(service.at_ms))
    decided = service.look()
    assert decided.figures["demand_rps"] == pytest.approx(65.0, rel=1e-3)
    assert decided.target == 3


def test_before_any_metrics_nothing_is_decided() -> None:
    service = _service(replicas=3)
    service.scrapes, service.is_scraped = [], False
    assert service.minute(0).verdict == "metrics_stale"


def test_one_scrape_is_no_traffic_data() -> None:
    planner = Planner(DEMAND, [card()], {"agg": linear()})
    seen = observation(60_000.0, [pool_state("agg", 3)], [CountingFrontend().scrape(59_000.0)], [])
    assert only(planner.look(seen)).verdict == "no_traffic_data"


def test_targets_out_of_reach_are_warned_of_and_planned_for_as_near_as_can_be() -> None:
    service = _service(itl_ms=5.0)
    service.minute(600)
    decided = service.minute(600)
    assert any(
        reason.startswith("warning: no engine meets the targets") for reason in decided.reasons
    )
    assert decided.figures["engine_itl_ms"] <= 1.25 * 11.0
    assert decided.target >= 1


def test_latencies_observed_correct_those_expected_within_a_factor_of_two() -> None:
    """Prompts of 100 tokens take 20 ms alone; the frontend saw 50."""
    service = _service(latency_correction=True)
    service.minute(600)
    corrected, plain = service.minute(600).figures, _service().minute(600).figures
    assert corrected["ttft_factor"] == 2.0 and "ttft_factor" not in plain
    # And what demand takes is reckoned with it.
    assert corrected["engine_ttft_ms"] == 2 * plain["engine_ttft_ms"]


def test_an_advisory_planner_says_so() -> None:
    planner = Planner(replace(DEMAND, advisory=True), [card()], {"agg": linear()})
    seen = observation(60_000.0, [pool_state("agg", 1)])
    decision = planner.look(seen)
    assert decision is not None
    assert decision.is_advisory


def test_fewer_are_wanted_for_a_while_before_there_are_fewer() -> None:
    service = _service(scale_down_stabilization_ms=150_000.0)
    service.minute(4200)
    assert service.minute(4200).target == 4
    held = [service.minute(1380) for _ in range(3)]
    assert [one.target for one in held] == [4, 4, 2]
    assert [one.verdict for one in held] == ["scale_down_stabilizing"] * 2 + ["scale_down"]


def test_somebody_elses_hand_is_noticed() -> None:
    service = _service()
    service.minute(600)
    service.replicas = 5
    decided = service.minute(600)
    assert decided.figures["foreign_changes"] == 1.0
    assert "somebody else made it 5, this planner had said 1" in decided.reasons


def test_a_budget_is_kept_and_named() -> None:
    service = _service(max_gpu_budget=3)
    service.minute(4200)
    decided = service.minute(4200)
    assert decided.target == 3
    assert "at most 3 GPUs" in decided.reasons[-1]


def _disagg(seen_reports: Sequence[EngineReport] = (), **times: object) -> list[PoolDecision]:
    spec = replace(DEMAND, mode="disagg")
    planner = Planner(spec, [card("prefill"), card("decode")], times)  # type: ignore[arg-type]
    frontend = CountingFrontend()
    scrapes = []
    for index in range(7):
        frontend.serve(400, isl=100, osl=20)
        scrapes.append(frontend.scrape(index * 10_000.0))
    pools = [pool_state("prefill", 1), pool_state("decode", 1)]
    decision = planner.look(observation(60_000.0, pools, scrapes, seen_reports))
    assert decision is not None
    return list(decision.pools)


def test_prefill_and_decode_are_scaled_apart() -> None:
    """40/s: prefill 8 in 90 ms, 88.9/s; decode 8 of 20 tokens in 14 ms each, 28.57/s."""
    prefill, decode = _disagg(prefill=linear(), decode=linear())
    assert (prefill.target, decode.target) == (1, 2)
    assert prefill.figures["engine_rps"] == pytest.approx(88.89, rel=1e-4)
    assert decode.figures["engine_rps"] == pytest.approx(28.57, rel=1e-3)


def test_one_side_without_step_times_holds_both() -> None:
    prefill, decode = _disagg(prefill=linear())
    assert (prefill.verdict, decode.verdict) == ("partner_not_ready", "model_not_ready")
    assert (prefill.target, decode.target) == (1, 1)


def test_without_a_model_step_times_are_learned() -> None:
    """The same line, from steps that were seen."""
    old = pool_state("agg", 1)
    aged = msgspec.structs.replace(old.workers[0], since_ms=-1e6)
    old = msgspec.structs.replace(old, workers=(aged,))
    planner = Planner(DEMAND, [card()])
    passes = [
        Pass(10 + 0.1 * tokens + 0.01 * kv, 1, tokens, 4, kv)
        for tokens, kv in ((10, 900), (20, 100), (50, 500), (40, 800), (90, 50), (5, 10))
    ]
    frontend, scrapes = CountingFrontend(), []
    for index in range(7):
        frontend.serve(100, isl=100, osl=20)
        scrapes.append(frontend.scrape(index * 10_000.0))
    first = report(0, at_ms=1_000.0)
    assert planner.look(observation(1_500.0, [old], scrapes[:1], [first])) is None
    second = report(0, at_ms=50_000.0, passes=passes)
    decided = only(planner.look(observation(60_000.0, [old], scrapes[1:], [second])))
    # 8 sequences: 40 prompt tokens and 880 of KV a step, 22.8 ms
    assert decided.figures["engine_rps"] == pytest.approx(8 / (20 * 0.0228), rel=1e-6)


# ---- by load -------------------------------------------------------------------------------------


def _look(
    planner: Planner, state: PoolState, reports: Sequence[EngineReport], at_ms: float = 5_000.0
) -> PoolDecision:
    return only(planner.look(observation(at_ms, [state], [], reports)))


def _kv(*tokens: int, at_ms: float = 5_000.0) -> list[EngineReport]:
    return [
        report(index, at_ms=at_ms, running=1 + kv // 100, kv=kv) for index, kv in enumerate(tokens)
    ]


def test_load_is_looked_at_every_five_seconds_and_without_metrics_of_the_frontend() -> None:
    planner = Planner(LOAD, [card()])
    assert planner.next_ms == 5_000.0
    assert _look(planner, pool_state("agg", 2), _kv(10_001, 0)).target == 3
    assert planner.next_ms == 10_000.0


@pytest.mark.parametrize(
    ("state", "reports", "verdict"),
    [
        (pool_state("agg", 1, starting=1), _kv(20_000), "scaling_in_progress"),
        (pool_state("agg", 2, wanted=1), _kv(0, 0), "scaling_in_progress"),
        (pool_state("agg", 2), [], "no_fpm_data"),
        (pool_state("agg", 2), _kv(20_000), "worker_count_mismatch"),
        (pool_state("agg", 2), _kv(20_000, 20_000, at_ms=-60_000.0), "metrics_stale"),
        (pool_state("agg", 2), _kv(7_000, 7_000), "no_change"),
        (pool_state("agg", 2), _kv(5_500, 0), "scale_down_refused_consolidation"),
        (pool_state("agg", 1), _kv(0), "no_change"),
    ],
)
def test_why_load_decides_nothing(
    state: PoolState, reports: list[EngineReport], verdict: str
) -> None:
    decided = _look(Planner(LOAD, [card()]), state, reports)
    assert (decided.verdict, decided.target) == (verdict, state.wanted)
    assert decided.reasons


def test_workers_still_starting_are_stopped_once_superfluous_for_three_looks() -> None:
    planner = Planner(LOAD, [card()])
    state = pool_state("agg", 1, starting=2)
    found = [
        _look(planner, state, _kv(load, at_ms=at_ms), at_ms)
        for at_ms, load in (
            (5e3, 100), (10e3, 100), (15e3, 9_000), (20e3, 100), (25e3, 100), (30e3, 100),
        )
    ]  # fmt: skip
    assert [one.target for one in found] == [3, 3, 3, 3, 3, 1]
    assert found[-1].verdict == "scale_down"


def test_a_number_that_was_too_few_is_not_come_down_to_again_at_the_same_rate() -> None:
    """One engine at its limit is overloaded, two have little to do: 2, 1, 2, and no more."""
    service = Service(Planner(LOAD, [card()]), 2)
    targets, last = [], None
    for index in range(60):
        service.at_ms += 5_000.0
        service.frontend.serve(10 if index < 40 else 1)
        service.scrapes.append(service.frontend.scrape(service.at_ms))
        load = 11_000 if service.replicas == 1 and index < 40 else 1_000
        last = service.look(
            [report(i, at_ms=service.at_ms, running=1, kv=load) for i in range(service.replicas)]
        )
        targets.append(last.target)
        if index == 10:
            assert last.verdict == "scale_down_refused_consolidation"
            assert "1 were too few for" in last.reasons[-1]
    assert targets[:3] == [1, 2, 2]
    assert set(targets[2:40]) == {2}
    assert targets[-1] == 1  # few come now


def test_demand_is_the_least_that_load_goes_down_to() -> None:
    service = _service(replicas=4, enable_load_scaling=True)
    service.minute(2700)
    service.replicas = 4
    idle = [report(index, at_ms=service.at_ms + 60_000.0) for index in range(4)]
    targets, verdicts = [], []
    for _ in range(3):
        service.frontend.serve(0)
        for _ in range(6):
            service.at_ms += 10_000.0
            service.frontend.serve(450, isl=100, osl=20)
            service.scrapes.append(service.frontend.scrape(service.at_ms))
        idle = [report(index, at_ms=service.at_ms) for index in range(service.replicas)]
        decided = service.look(idle)
        targets.append(decided.target)
        verdicts.append(decided.verdict)
    assert targets == [3, 3, 3]
    assert verdicts == ["scale_down", *["scale_down_capped_by_throughput"] * 2]


def test_load_takes_nobody_away_before_demand_was_looked_at() -> None:
    """Begun amid a load that three engines share well, of which it has seen 5 s."""
    service = _service(replicas=3, enable_load_scaling=True)
    service.at_ms = 5_000.0
    service.frontend.serve(60, isl=100, osl=20)
    service.scrapes.append(service.frontend.scrape(5_000.0))
    at_ease = [report(index, at_ms=5_000.0, running=1, kv=100) for index in range(3)]
    decided = service.look(at_ease)
    assert (decided.target, decided.verdict) == (3, "scale_down_capped_by_throughput")
    assert "demand has not been looked at yet" in decided.reasons[-1]


@pytest.mark.parametrize(("queued", "stopped_ms"), [(0, 70e3), (8_000, None)])
def test_one_engine_at_ease_for_an_interval_has_those_still_starting_stopped(
    queued: int, stopped_ms: float | None
) -> None:
    """It is the only one that is ready, and busy: fewer cannot be asked for. Two start for ever."""
    spec = replace(DEMAND, enable_load_scaling=True, ttft_ms=1000.0)
    planner = Planner(spec, [card()], {"agg": linear()})
    frontend, wanted, stopped = CountingFrontend(), 3, None
    for index in range(1, 61):
        at_ms = 5_000.0 * index
        frontend.serve(10, isl=100, osl=20)
        busy = report(0, at_ms=at_ms, running=2, kv=200, queued=queued if index < 60 else 0)
        state = pool_state("agg", 1, starting=wanted - 1)
        seen = observation(at_ms, [state], [frontend.scrape(at_ms)], [busy])
        decided = only(planner.look(seen))
        if decided.target < wanted and stopped is None:
            stopped = at_ms
            assert decided.target == 1
        wanted = decided.target
    assert stopped == stopped_ms


def test_demand_raises_what_load_had() -> None:
    service = _service(enable_load_scaling=True)
    service.minute(4200)
    decided = service.minute(4200)
    assert (decided.target, decided.figures["lower_bound"]) == (4, 4.0)


def test_load_scales_to_none_only_after_an_interval_without_anybody() -> None:
    spec = replace(LOAD, min_endpoint=0, throughput_adjustment_interval_ms=INTERVAL_MS)
    planner = Planner(spec, [card()])
    service = Service(planner, 1)
    service.frontend.serve(10)
    service.at_ms = 10_000.0
    service.scrapes.append(service.frontend.scrape(10_000.0))
    assert service.look([report(0, at_ms=10_000.0)]).target == 1
    targets = []
    for _ in range(7):
        service.at_ms += 10_000.0
        service.scrapes.append(service.frontend.scrape(service.at_ms))
        targets.append(service.look([report(0, at_ms=service.at_ms)]).target)
    assert targets[0] == 1
    assert targets[-1] == 0


def test_idle_engines_shrink_to_the_minimum_before_anything_is_known_of_requests() -> None:
    spec = replace(DEMAND, enable_load_scaling=True, enable_throughput_scaling=False)
    planner = Planner(spec, [card()], {"agg": linear()})
    silent = [CountingFrontend().scrape(0.0), CountingFrontend().scrape(5_000.0)]
    idle = [report(index, at_ms=5_000.0) for index in range(3)]
    seen = observation(5_000.0, [pool_state("agg", 3)], silent, idle)
    assert only(planner.look(seen)).target == 2


# ---- a spec that cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"min_endpoint": 3, "max_endpoint": 2},
            "max_endpoint: 2, expected at least 1 and min_endpoint, which is 3",
        ),
        (
            {"min_endpoint": 9, "max_gpu_budget": 8},
            "max_gpu_budget: 8, but the fewest workers have 9 GPUs",
        ),
        ({"min_gpu_budget": 9, "max_gpu_budget": 8}, "min_gpu_budget: 9 is more"),
        ({"mode": "disagg"}, "mode disagg scales one prefill pool, there are 0"),
        ({"enable_throughput_scaling": False}, "neither throughput nor load scaling"),
        (
            {"enable_load_scaling": True, "load_adjustment_interval_ms": INTERVAL_MS},
            "expected less than throughput_adjustment_interval_ms",
        ),
        ({"ttft_ms": 0.0}, "ttft_ms: expected more than 0, got 0"),
        ({"fpm_sample_bucket_size": 15}, "expected a square number"),
        ({"optimization_target": "load"}, "decode_scale_up_kv_rate and"),
        ({"load_predictor": ForecastSpec(season_points=1)}, "load_predictor.season_points"),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Planner(replace(DEMAND, **changes), [card()], {"agg": linear()})  # type: ignore[arg-type]


def test_thresholds_need_the_size_they_are_a_share_of() -> None:
    with pytest.raises(ValueError, match="target throughput needs its max_kv_tokens"):
        Planner(LOAD, [replace(card(), max_kv_tokens=None)])


def test_observations_carry_all_that_decides() -> None:
    """A planner is a function of what it is shown: an equal one decides the same."""
    seen: list[Observation] = [
        observation(5_000.0, [pool_state("agg", 2)], [], _kv(10_001, 0)),
        observation(10_000.0, [pool_state("agg", 3)], [], _kv(10, 0, 0, at_ms=10_000.0)),
    ]
    first, second = Planner(LOAD, [card()]), Planner(LOAD, [card()])
    assert [first.look(one) for one in seen] == [second.look(one) for one in seen]
