"""The planner: replicas by foreseen demand, by engines' load, or by both, within budgets.

Two things are decided, each at an interval of its own: by demand (`throughput.py`), and by load
(`load.py`). Where both act, demand gives the least number and load moves one at a time above it.
What is old, missing or contradictory decides nothing: the pool keeps what it was told to have, and
the verdict says why. Replicas are told in absolute numbers, so a decision may be carried out twice.
"""

from collections.abc import Mapping, Sequence
from math import floor, inf

from dynosim.planner.budget import GUARD_HOLD, Share, grant
from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.demand_scaling import DemandScaling
from dynosim.planner.engine_model import PassTimes
from dynosim.planner.frontend_view import FrontendView
from dynosim.planner.load import SCALE_DOWN
from dynosim.planner.load_scaling import LoadScaling
from dynosim.planner.observation import Observation, PoolCard
from dynosim.planner.planner_checks import check_spec
from dynosim.planner.planner_spec import ROLES, PlannerSpec
from dynosim.planner.pool_scaler import direction
from dynosim.planner.scaled_pool import METRICS_STALE, Ask, ScaledPool

STABILIZING = "scale_down_stabilizing"


class Planner:
    """A `Controller` of one pool, or of a prefill and a decode pool.

    `cards`: of all pools; those of the mode's roles are scaled. `times`: step times by pool;
    without, they are learned from engines' steps.
    Raises: ValueError if spec and cards do not go together, see `check_spec`.
    """

    def __init__(
        self,
        spec: PlannerSpec,
        cards: Sequence[PoolCard],
        times: Mapping[str, PassTimes] | None = None,
    ) -> None:
        mine = [card for role in ROLES[spec.mode] for card in cards if card.role == role]
        check_spec(spec, mine)
        self._spec = spec
        self._pools = [ScaledPool(card, spec, (times or {}).get(card.name)) for card in mine]
        self._frontend = FrontendView(spec)
        self._by_demand = DemandScaling(spec, self._frontend, self._pools)
        self._by_load = LoadScaling(spec, self._frontend)
        window_ms = spec.throughput_adjustment_interval_ms
        self._next_demand_ms = spec.start_ms + window_ms if spec.scales_by_demand else inf
        self._next_load_ms = inf
        if spec.scales_by_load:
            self._next_load_ms = spec.start_ms + spec.load_adjustment_interval_ms
        self._next_wake_ms = inf

    @property
    def name(self) -> str:
        """See `Controller`."""
        return self._spec.name

    @property
    def next_ms(self) -> float:
        """See `Controller`. While a pool has no replicas it looks whether anybody waits."""
        return min(self._next_demand_ms, self._next_load_ms, self._next_wake_ms)

    def look(self, seen: Observation) -> ScalingDecision | None:
        """See `Controller`. None before it is due: what was seen is taken in all the same."""
        self._frontend.take(seen)
        for pool in self._pools:
            pool.learn(seen)
        now_ms = seen.now_ms
        if now_ms < self.next_ms:
            return None
        asks = [self._begin(pool, seen) for pool in self._pools]
        self._ask(seen, asks)
        return self._decide(now_ms, asks)

    def _begin(self, pool: ScaledPool, seen: Observation) -> Ask:
        ask = Ask.of(seen.pool(pool.card.name))
        pool.note_others(ask)
        age_ms = self._frontend.age_ms(seen.now_ms)
        if age_ms < inf:
            ask.figures["metrics_age_ms"] = age_ms
        return ask

    def _ask(self, seen: Observation, asks: Sequence[Ask]) -> None:
        """By demand, then by load, whichever is due; and wake who sleeps."""
        now_ms = seen.now_ms
        if now_ms >= self._next_demand_ms:
            self._by_demand.ask(seen, asks)
        elif self._spec.optimization_target == "sla":
            self._by_demand.note_mix(now_ms)
        mix = self._by_demand.last_mix
        for pool, ask in zip(self._pools, asks, strict=True):
            if ask.wanted == ask.target == 0 and ask.verdict == "no_change":
                self._wake(seen, ask)
            elif now_ms >= self._next_load_ms:
                self._by_load.ask(seen, pool, ask, mix)

    def _wake(self, seen: Observation, ask: Ask) -> None:
        """A pool without replicas gets one as soon as somebody waits."""
        if self._frontend.is_stale(seen.now_ms, ask):
            return
        num_active = self._frontend.num_active(seen.now_ms)
        ask.figures["num_active"] = num_active
        if num_active > 0:
            ask.want(1, f"{num_active:g} requests wait, and there are no replicas")
        else:
            ask.reasons.append("nobody waits")

    def _decide(self, now_ms: float, asks: Sequence[Ask]) -> ScalingDecision:
        spec = self._spec
        for pool, ask in zip(self._pools, asks, strict=True):
            settled = pool.stabilizer.settle(now_ms, ask.wanted, ask.target)
            if settled != ask.target:
                window_s = spec.scale_down_stabilization_ms / 1e3
                ask.reasons.append(f"{settled} were wanted within the last {window_s:g} s")
                ask.target = settled
                ask.verdict = STABILIZING if settled == ask.wanted else SCALE_DOWN
        self._keep_budget(asks)
        for pool, ask in zip(self._pools, asks, strict=True):
            pool.last_target = None if spec.advisory else ask.target
        self._advance(now_ms, is_any_asleep=any(not ask.target for ask in asks))
        pools = tuple(
            PoolDecision(
                ask.pool, ask.current, ask.target, ask.verdict, tuple(ask.reasons), ask.figures
            )
            for ask in asks
        )
        return ScalingDecision(now_ms, self.name, pools, spec.advisory)

    def _advance(self, now_ms: float, *, is_any_asleep: bool) -> None:
        spec = self._spec
        if now_ms >= self._next_demand_ms:
            self._next_demand_ms = _after(
                now_ms, spec.start_ms, spec.throughput_adjustment_interval_ms
            )
        soon_ms = _after(now_ms, spec.start_ms, spec.load_adjustment_interval_ms)
        if now_ms >= self._next_load_ms:
            self._next_load_ms = soon_ms
        self._next_wake_ms = soon_ms if is_any_asleep else inf

    def _keep_budget(self, asks: Sequence[Ask]) -> None:
        """Bring all within limits and budget; what is old moves no pool, not even for that."""
        spec = self._spec
        shares = [
            Share(ask.wanted, ask.target, pool.card.gpus_per_worker, pool.least, pool.most)
            for pool, ask in zip(self._pools, asks, strict=True)
        ]
        granted = grant(shares, spec.max_gpu_budget, spec.min_gpu_budget)
        changed = [
            (ask, share, replicas)
            for ask, share, replicas in zip(asks, shares, granted.replicas, strict=True)
            if replicas != ask.target
        ]
        if any(ask.verdict == METRICS_STALE for ask, _, _ in changed):
            for ask in asks:
                ask.hold(METRICS_STALE, "limits and budget would move a pool whose metrics are old")
            return
        for ask, share, replicas in changed:
            if replicas == share.clip(ask.target):
                ask.want(replicas, f"its limits allow {replicas}, not {ask.target}")
                continue
            ask.reasons.append(_budget_sentence(spec, ask.target, replicas))
            verdict = granted.verdict or GUARD_HOLD
            moves = verdict == GUARD_HOLD and replicas != ask.wanted
            ask.target = replicas
            ask.verdict = direction(ask.wanted, replicas) if moves else verdict


def _after(now_ms: float, start_ms: float, interval_ms: float) -> float:
    """The first end of an interval later than now."""
    return start_ms + interval_ms * (floor((now_ms - start_ms) / interval_ms + 1e-9) + 1)


def _budget_sentence(spec: PlannerSpec, asked: int, replicas: int) -> str:
    bounds = [
        f"{word} {gpus} GPUs"
        for word, gpus in (("at most", spec.max_gpu_budget), ("at least", spec.min_gpu_budget))
        if gpus is not None
    ]
    return f"the budget of {' and '.join(bounds)} gives {replicas}, {asked} were asked for"
