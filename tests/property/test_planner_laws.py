"""Laws of the planner, on any load: limits, budgets, no swinging, the same again from a log."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from planner_support import CountingFrontend, card, linear, observation, only, pool_state, report

from dynosim.planner.budget import Share, grant
from dynosim.planner.capacity import best_point
from dynosim.planner.engine_model import EngineModel, RequestMix
from dynosim.planner.forecast import FORECASTERS, ForecastSpec, forecaster
from dynosim.planner.load import EASY, Vote, by_itl, by_thresholds, by_ttft
from dynosim.planner.log_values import look_of, plain_look, replay
from dynosim.planner.look import Look
from dynosim.planner.observation import Observation, PoolCard
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.throughput import Foreseen, needed

shares = st.builds(
    lambda wanted, asked, gpus, least, more: Share(wanted, asked, gpus, least, more),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(1, 8),
    st.integers(0, 2),
    st.none() | st.integers(2, 12),
)


@given(st.lists(shares, min_size=1, max_size=2), st.none() | st.integers(32, 64), st.data())
def test_what_is_granted_is_within_limits_and_budget_and_turns_nothing(
    pools: list[Share], most: int | None, data: st.DataObject
) -> None:
    fewest = data.draw(st.none() | st.integers(1, 32))
    granted = grant(pools, most, fewest).replicas
    total = sum(number * pool.gpus for number, pool in zip(granted, pools, strict=True))
    assert most is None or total <= most
    now = sum(pool.clip(pool.wanted) * pool.gpus for pool in pools)
    slack = max(pool.gpus for pool in pools)
    top = sum(inf if pool.most is None else pool.most * pool.gpus for pool in pools)
    lowest = min(top, fewest or 0) - (0 if most is None else slack)
    assert total >= lowest - (0 if now >= lowest else slack)
    for number, pool in zip(granted, pools, strict=True):
        assert number == pool.clip(number)
        if (most is None or now <= most) and now >= (fewest or 0):
            ends = sorted((pool.clip(pool.wanted), pool.clip(pool.asked)))
            assert ends[0] <= number <= ends[1]


@given(
    st.sampled_from(sorted(FORECASTERS)),
    st.booleans(),
    st.lists(st.floats(0, 1e9), min_size=1, max_size=80),
)
@settings(max_examples=60)
def test_a_forecast_is_finite_and_not_negative(
    method: str, log1p: bool, values: list[float]
) -> None:
    spec = ForecastSpec(method=method, log1p=log1p, season_points=6)  # type: ignore[arg-type]
    first, second = forecaster(spec), forecaster(spec)
    for value in values:
        first.add(value)
        second.add(value)
    found = first.forecast()
    assert found == second.forecast()
    assert found is None or 0 <= found.value < inf


mixes = st.builds(
    RequestMix, st.floats(1, 5000), st.floats(1, 2000), st.floats(0, 1), st.floats(1, 4)
)


@given(
    st.sampled_from(["prefill", "decode", "agg"]),
    mixes,
    st.floats(1, 5000),
    st.floats(1, 100),
    st.floats(0.01, 50),
    st.floats(0.01, 50),
)
@settings(max_examples=60)
def test_more_demand_never_takes_fewer_engines(
    role: str, mix: RequestMix, ttft_ms: float, itl_ms: float, rps: float, more: float
) -> None:
    engine = EngineModel.of(card(role, max_num_seqs=64, max_kv_tokens=100_000), linear())
    few, many = (
        needed(role, engine, Foreseen(demand, mix, ()), (ttft_ms, itl_ms), 1.0)
        for demand in (rps, rps + more)
    )
    assert 1 <= few.replicas <= many.replicas
    assert few.replicas * best_point(role, engine, mix, ttft_ms, itl_ms).rps >= rps * (1 - 1e-8)


@given(st.sampled_from(sorted(EASY)), st.floats(0, 5), st.integers(1, 12), st.integers(1, 12))
def test_a_constant_load_is_answered_by_a_number_that_stays(
    rule: tuple[str, str], load: float, start: int, least: int
) -> None:
    """Spread evenly over the engines there are; once it turns, it stays (no 2-1-2)."""
    num, steps = max(start, least), []
    for _ in range(80):
        step = by_thresholds([load / num] * num, EASY[rule]).step
        step = step if num + step >= least else 0
        num += step
        steps.append(step)
    assert steps[-20:] == [0] * 20
    assert not {1, -1} <= set(steps)


@given(
    st.sampled_from([by_ttft, by_itl]),
    st.integers(0, 30_000),
    st.integers(1, 12),
    mixes,
    st.floats(0.5, 1.0),
)
def test_an_engine_given_up_is_not_asked_back_by_the_same_load(
    rule: Callable[..., Vote], load: int, start: int, mix: RequestMix, sensitivity: float
) -> None:
    """So many queued tokens, or sequences of 100 tokens of KV each, spread evenly."""
    engine = EngineModel.of(card(max_kv_tokens=100_000), linear())
    targets = {by_ttft: 500.0, by_itl: 30.0}
    num, steps = start, []
    for _ in range(30):
        part = load // num
        seen = [report(i, queued=part, running=part // 100, kv=part) for i in range(num)]
        steps.append(rule(seen, engine, mix, targets[rule], sensitivity).step)
        num += steps[-1]
    assert -1 not in steps or 1 not in steps[steps.index(-1) :]


# ---- a planner on whatever comes -----------------------------------------------------------------

SPECS = (
    PlannerSpec(mode="agg", optimization_target="throughput"),
    PlannerSpec(mode="agg", optimization_target="latency", min_endpoint=0, max_endpoint=4),
    PlannerSpec(max_gpu_budget=7, min_gpu_budget=4),
    PlannerSpec(
        optimization_target="load",
        prefill_scale_up_queue_tokens=2000.0,
        prefill_scale_down_queue_tokens=200.0,
        decode_scale_up_kv_rate=80.0,
        decode_scale_down_kv_rate=30.0,
        decode_min_endpoint=2,
        prefill_max_endpoint=2,
    ),
    PlannerSpec(
        mode="disagg",
        optimization_target="sla",
        enable_load_scaling=True,
        throughput_adjustment_interval_ms=20_000.0,
        scale_down_stabilization_ms=15_000.0,
        min_endpoint=0,
        max_gpu_budget=6,
        min_gpu_budget=2,
        latency_correction=True,
    ),
    PlannerSpec(
        mode="agg",
        optimization_target="sla",
        throughput_adjustment_interval_ms=10_000.0,
        load_predictor=ForecastSpec(method="kalman"),
        max_gpu_budget=5,
    ),
)
CARDS = {
    "agg": [card()],
    "disagg": [card("prefill", gpus_per_worker=1), card("decode", gpus_per_worker=2)],
}


def _planner(spec: PlannerSpec, *, knows_times: bool) -> Planner:
    cards = CARDS[spec.mode]
    return Planner(spec, cards, {one.name: linear() for one in cards} if knows_times else {})


def _story(draw: st.DrawFn, cards: list[PoolCard]) -> list[Observation]:
    """Looks every 5 s at a service that comes and goes as nobody told it to."""
    frontend, seen = CountingFrontend(), []
    for index in range(1, draw(st.integers(2, 14))):
        now_ms = index * 5_000.0
        frontend.serve(draw(st.integers(0, 400)), isl=100, osl=20)
        frontend.active = draw(st.integers(0, 3))
        scrapes = [frontend.scrape(now_ms)] if draw(st.integers(0, 4)) else []
        pools, reports = [], []
        for number, one in enumerate(cards):
            ready, starting = draw(st.integers(0, 3)), draw(st.integers(0, 1))
            wanted = draw(st.sampled_from([None, ready, ready + 1]))
            pools.append(pool_state(one.name, ready, starting, wanted=wanted))
            reports += [
                report(
                    worker,
                    one.name,
                    now_ms - draw(st.sampled_from([0.0, 0.0, 70_000.0])),
                    running=draw(st.integers(0, 8)),
                    queued=draw(st.integers(0, 3_000)),
                    kv=draw(st.integers(0, 12_000)),
                )
                for worker in range(ready)
                if number == 0 or draw(st.booleans())
            ]
        seen.append(observation(now_ms, pools, scrapes, reports))
    return seen


@given(st.data(), st.sampled_from(SPECS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_story_keeps_limits_and_is_decided_the_same_from_its_log(
    data: st.DataObject, spec: PlannerSpec, knows_times: bool
) -> None:
    cards = CARDS[spec.mode]
    planner = _planner(spec, knows_times=knows_times)
    looks = []
    for seen in data.draw(st.composite(_story)(cards)):
        decision = planner.look(seen)
        looks.append(Look(seen, decision))
        for pool in decision.pools if decision else ():
            if pool.verdict == "metrics_stale":
                assert pool.target == seen.pool(pool.pool).wanted
            assert pool.reasons or pool.verdict == "no_change"
        if decision and all(pool.verdict != "metrics_stale" for pool in decision.pools):
            gpus = [one.gpus_per_worker for one in cards]
            total = sum(p.target * g for p, g in zip(decision.pools, gpus, strict=True))
            assert total <= (spec.max_gpu_budget or inf)
            for pool, one in zip(decision.pools, cards, strict=True):
                top = spec.max_replicas(one.role)
                assert spec.min_replicas(one.role) <= pool.target <= (top or inf)
    text = json.dumps([plain_look(look) for look in looks], allow_nan=False)
    again = [look_of(plain) for plain in json.loads(text)]
    assert again == looks
    assert replay(again, _planner(spec, knows_times=knows_times)) == []


@given(st.integers(0, 1500), st.integers(1, 8), st.sampled_from(["constant", "kalman", "arima"]))
@settings(max_examples=30, deadline=None)
def test_a_constant_demand_is_served_by_a_constant_number(
    requests: int, start: int, method: str
) -> None:
    spec = replace(
        SPECS[-1],
        load_predictor=ForecastSpec(method=method),  # type: ignore[arg-type]
        max_utilization=1.0,  # no number of requests takes a whole number of engines
        max_gpu_budget=None,
        min_endpoint=1,
    )
    planner, replicas = _planner(spec, knows_times=True), start
    frontend, targets = CountingFrontend(), []
    scrapes = [frontend.scrape(0.0)]
    for index in range(1, 13):
        frontend.serve(requests, isl=100, osl=20)
        scrapes.append(frontend.scrape(index * 5_000.0))
        if index % 2 == 0:
            seen = observation(index * 5_000.0, [pool_state("agg", replicas)], scrapes)
            replicas = only(planner.look(seen)).target
            targets.append(replicas)
            scrapes = []
    assert len(set(targets[3:])) == 1
