"""Laws of autoscalers: limits, rates, windows and determinism, on any metrics."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dynosim.planner.concurrency import IN_FLIGHT, ConcurrencyScaler, ConcurrencySpec
from dynosim.planner.controller import Controller
from dynosim.planner.decision import ScalingDecision
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.keda import Keda, KedaSpec, KedaTrigger
from dynosim.planner.observation import Scrape
from dynosim.planner.perfect import perfect_schedule
from dynosim.planner.queries import ServiceMetric, SumQuery
from dynosim.planner.rehearsal import Rehearsal
from dynosim.planner.scaling_rules import Restraint, ScalingPolicy, ScalingRules
from dynosim.planner.series import ScrapeStore

S = 1000.0
LOAD = ServiceMetric(name="load", query=SumQuery("load"), target=10.0)

loads = st.lists(st.none() | st.integers(0, 60), min_size=1, max_size=60)
policies = st.builds(
    ScalingPolicy,
    st.sampled_from(["pods", "percent"]),
    st.integers(1, 150),
    st.sampled_from([15 * S, 30 * S, 45 * S, 100 * S]),
)
small = st.builds(
    ScalingPolicy, st.just("pods"), st.integers(1, 4), st.sampled_from([15 * S, 50 * S])
)
rules = st.builds(
    ScalingRules,
    window_ms=st.sampled_from([0.0, 30 * S, 60 * S, 300 * S]),
    policies=st.lists(policies | small, min_size=1, max_size=3).map(tuple),
    select=st.sampled_from(["max", "min", "disabled"]),
)
hpas = st.builds(
    lambda low, more, up, down, average: HpaSpec(
        pool="pool",
        metrics=(replace(LOAD, is_average=average),),
        min_replicas=low,
        max_replicas=max(low + more, 1),
        up=up,
        down=down,
    ),
    st.integers(0, 4),
    st.integers(0, 20),
    rules,
    rules,
    st.booleans(),
)


def decisions(make: Callable[[], Controller], values: list[int | None], workers: int,
              start_s: float = 0.0, name: str = "load") -> list[ScalingDecision]:  # fmt: skip
    """One value every 15 s; None: the scrape fails."""

    def metrics(now_ms: float, ready: int) -> dict[str, float] | None:
        value = values[int(now_ms // (15 * S))]
        return None if value is None else {name: float(value)}

    rehearsal = Rehearsal(
        metrics=metrics,
        until_ms=15 * S * len(values) - 1,
        num_workers=workers,
        scrape_ms=15 * S,
        start_ms=start_s * S,
    )
    return rehearsal.decisions(make())


@given(hpas, loads, st.integers(0, 10), st.sampled_from([0.0, 40.0, 200.0]))
def test_targets_of_an_hpa_are_within_its_limits_and_the_same_again(
    spec: HpaSpec, values: list[int | None], workers: int, start_s: float
) -> None:
    found = decisions(lambda: Hpa(spec), values, workers, start_s)
    assert len(found) == len(values)
    for decision in found:
        pool = decision.pools[0]
        is_off = pool.verdict == "scaling_disabled"
        # an outage from the start leaves even what is outside
        assert is_off or spec.min_replicas <= pool.target <= spec.max_replicas
        assert pool.reasons
        assert all(math.isfinite(value) for value in pool.figures.values())
    assert decisions(lambda: Hpa(spec), values, workers, start_s) == found


@given(hpas, loads, st.data())
def test_no_window_has_more_change_than_its_policies_allow(
    spec: HpaSpec, values: list[int | None], data: st.DataObject
) -> None:
    workers = data.draw(st.integers(max(spec.min_replicas, 1), spec.max_replicas))
    found = decisions(lambda: Hpa(spec), values, workers)
    history = [(-math.inf, workers), *((d.now_ms, d.pools[0].target) for d in found)]
    for index, (now_ms, after) in enumerate(history[1:], 1):
        before = history[index - 1][1]
        rule = spec.up if after > before else spec.down
        if after == before:
            continue
        assert rule.select != "disabled"
        allowed = []
        for policy in rule.policies:
            since_ms = now_ms - policy.period_ms
            began = [count for at_ms, count in history if at_ms <= since_ms][-1]
            change = policy.value if policy.kind == "pods" else began * policy.value / 100
            allowed.append(
                math.ceil(began + change) if after > before else math.floor(max(began - change, 0))
            )
        if after > before:
            assert after <= (max if rule.select == "max" else min)(allowed)
        else:
            assert after >= (min if rule.select == "max" else max)(allowed)


@given(st.booleans(), loads, st.integers(0, 5), st.integers(0, 2), st.sampled_from([15, 30, 50]))
def test_keda_is_at_zero_only_where_it_may_be_and_never_in_between_limits(
    average: bool, values: list[int | None], workers: int, low: int, poll_s: int
) -> None:
    trigger = KedaTrigger(metric=replace(LOAD, is_average=average), activation=3.0)
    spec = KedaSpec(pool="pool", triggers=(trigger,), min_replicas=low, max_replicas=8,
                    poll_ms=poll_s * S, cooldown_ms=60 * S)  # fmt: skip
    found = decisions(lambda: Keda(spec), values, workers)
    for decision in found[1:]:
        assert low <= decision.pools[0].target <= 8
    for decision in found:
        pool = decision.pools[0]
        if pool.verdict == "wake_up":
            assert pool.figures["load"] > 3 and pool.target == max(low, 1)
        if pool.verdict == "scale_to_zero":
            assert pool.figures["load"] <= 3 and low == 0
    assert decisions(lambda: Keda(spec), values, workers) == found


@given(loads, st.integers(0, 5), st.integers(0, 2), st.sampled_from([0.0, 40.0]))
def test_concurrency_is_within_its_limits_and_grows_only_by_what_is_in_flight(
    values: list[int | None], workers: int, low: int, start_s: float
) -> None:
    spec = ConcurrencySpec(pool="pool", target=10.0, min_replicas=low, max_replicas=7)
    found = decisions(lambda: ConcurrencyScaler(spec), values, workers, start_s, name=IN_FLIGHT)
    most = math.ceil(max((v for v in values if v is not None), default=0) / 7)
    for decision in found:
        pool = decision.pools[0]
        if pool.verdict != "metrics_missing":
            assert low <= pool.target <= max(7, low)
            assert pool.target <= max(most, workers, low, 1)
    again = decisions(lambda: ConcurrencyScaler(spec), values, workers, start_s, name=IN_FLIGHT)
    assert again == found


# ---- restraint against a memory that forgets nothing ---------------------------------------------


@dataclass
class PlainRestraint:
    """The same by its definition: everything kept, everything looked through each time."""

    up: ScalingRules
    down: ScalingRules
    proposals: list[tuple[float, int]]
    replicas: list[tuple[float, int]]

    def settle(self, proposed: int, low: int, high: int, now_ms: float) -> int:
        current = self.replicas[-1][1]
        self.proposals.append((now_ms, proposed))
        ups = [n for at, n in self.proposals if now_ms - at < self.up.window_ms] + [proposed]
        downs = [n for at, n in self.proposals if now_ms - at < self.down.window_ms] + [proposed]
        stable = min(max(current, min(ups)), max(downs))
        if stable > current:
            stable = min(stable, high, max(self._limit(self.up, current, 1, now_ms), current))
        elif stable < current:
            stable = max(stable, low, min(self._limit(self.down, current, -1, now_ms), current))
        self.replicas.append((now_ms, stable))
        return stable

    def _limit(self, rule: ScalingRules, current: int, sign: int, now_ms: float) -> int:
        if rule.select == "disabled":
            return current
        limits: list[int] = []
        for policy in rule.policies:
            began = [n for at, n in self.replicas if at <= now_ms - policy.period_ms][-1]
            if policy.kind == "pods":
                limits.append(began + sign * policy.value)
            elif sign > 0:
                limits.append(math.ceil(began * (1 + policy.value / 100)))
            else:
                limits.append(int(began * (1 - policy.value / 100)))
        pick: Any = max if (rule.select == "max") == (sign > 0) else min
        return int(pick(limits))


@given(rules, rules, st.lists(st.tuples(st.integers(1, 40), st.integers(0, 25)), max_size=40))
def test_restraint_equals_its_definition(
    up: ScalingRules, down: ScalingRules, wishes: list[tuple[int, int]]
) -> None:
    restraint = Restraint(up, down)
    restraint.begin(5, 0.0)
    plain = PlainRestraint(up, down, [(0.0, 5)], [(-math.inf, 5)])
    now_ms, current = 0.0, 5
    for gap_s, proposed in wishes:
        now_ms += gap_s * S
        after = restraint.settle(current, proposed, 1, 20, now_ms).replicas
        restraint.note(current, after, now_ms)
        assert after == plain.settle(proposed, 1, 20, now_ms)
        current = after


# ---- series, the bound ---------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), min_size=2, max_size=20),
    st.integers(10, 300),
)
def test_plain_increase_is_what_was_counted_whatever_resets_there_are(
    steps: list[tuple[int, int]], window_s: int
) -> None:
    """A counter that restarts before some scrapes loses nothing but what it had by then."""
    store, at_s, value = ScrapeStore(), 0, 100
    grown: list[tuple[int, int]] = []
    for gap_s, growth in steps:
        at_s += gap_s
        restarts = growth == 9 and value > 3
        value = 3 if restarts else value + growth
        grown.append((at_s, 3 if restarts else growth))
        store.add(Scrape(at_s * S, {"c": float(value)}))
    inside = [more for when, more in grown if at_s - window_s < when <= at_s]
    found = store.increase("c", window_s * S, at_s * S, extrapolate=False)
    assert found == (sum(inside[1:]) if len(inside) > 1 else None)
    whole = store.increase("c", window_s * S, at_s * S)
    if found is not None and whole is not None:
        assert found <= whole + 1e-9
        rate = store.rate("c", window_s * S, at_s * S)
        assert rate is not None and math.isclose(rate * window_s, whole)


@given(
    st.lists(st.integers(0, 6), max_size=30), st.floats(0, 5), st.integers(0, 4), st.integers(1, 9)
)
def test_bound_is_enough_everywhere_and_no_dearer_than_constant_or_following(
    fewest: list[int], start_bins: float, num_warm: int, bin_s: int
) -> None:
    bin_ms, start_ms = bin_s * S, start_bins * bin_s * S
    found = perfect_schedule(fewest, bin_ms, start_ms, num_warm)
    for index, need in enumerate(fewest):
        assert found.ready_at((index + 0.5) * bin_ms) >= need
    starts = [max(b - a, 0) for a, b in zip([num_warm, *fewest], fewest, strict=False)]
    following = sum(fewest) * bin_ms + sum(starts) * start_ms
    peak = max(fewest, default=0)
    constant = peak * len(fewest) * bin_ms + max(peak - num_warm, 0) * start_ms
    assert found.held_ms <= min(following, constant) * (1 + 1e-9)
    assert found.held_ms >= sum(fewest) * bin_ms * (1 - 1e-9)
