"""Replicas by foreseen demand: at the ends of long intervals, as far as it takes at once."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

from dynosim.planner.engine_model import RequestMix
from dynosim.planner.frontend_view import FrontendView
from dynosim.planner.observation import Observation
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.scaled_pool import Ask, ScaledPool
from dynosim.planner.throughput import NOTHING, DemandForecast, Foreseen, Needed, needed
from dynosim.planner.traffic import Traffic

NO_TRAFFIC_DATA = "no_traffic_data"
MODEL_NOT_READY = "model_not_ready"
PARTNER_NOT_READY = "partner_not_ready"

_NOISE = 2 * sqrt(2)
"""By how many roots of a number of requests another may be more that comes at the same rate: two
standard deviations of their difference, if they come independently."""


class DemandScaling:
    """Asks for what the next interval's requests take; one pool in doubt holds all."""

    def __init__(
        self, spec: PlannerSpec, frontend: FrontendView, pools: Sequence[ScaledPool]
    ) -> None:
        self._spec = spec
        self._frontend = frontend
        self._pools = pools
        window_ms = spec.throughput_adjustment_interval_ms
        self._demand = DemandForecast(spec.load_predictor, window_ms, spec.speculative_nextn + 1)

    @property
    def last_mix(self) -> RequestMix | None:
        """The requests of the last interval in which any came."""
        return self._demand.last_mix

    def note_mix(self, now_ms: float) -> None:
        """Between two looks at demand, what requests are like is followed all the same."""
        lately = self._frontend.lately(now_ms, mix_only=True)
        if lately is not None:
            self._demand.note(lately)

    def ask(self, seen: Observation, asks: Sequence[Ask]) -> None:
        """Set the ask of each pool, in their order; a hold says why."""
        stale = [self._frontend.is_stale(seen.now_ms, ask) for ask in asks]
        if any(stale):
            return
        lately = self._frontend.lately(seen.now_ms, self._spec.tail_quantile)
        if lately is None:
            for ask in asks:
                ask.hold(
                    NO_TRAFFIC_DATA,
                    "the frontend's counters were not scraped twice in the interval",
                )
            return
        self._demand.take(lately)
        mix = self._demand.last_mix
        for pool in self._pools:
            if self._spec.latency_correction and mix is not None:
                pool.correct(lately, mix, pool.fresh_reports(seen))
        foreseen = self._demand.foresee()
        found = []
        for pool, ask in zip(self._pools, asks, strict=True):
            ask.figures |= lately.figures()
            ask.reasons.extend(foreseen.reasons)
            found.append(self._needed(pool, ask, self._with_backlog(seen, pool, ask, foreseen)))
        if None in found:
            self._hold_without_model(asks, found)
            return
        for pool, ask, need in zip(self._pools, asks, found, strict=True):
            if need is not None:
                self._ask_for(pool, ask, need, lately)

    def _with_backlog(
        self, seen: Observation, pool: ScaledPool, ask: Ask, foreseen: Foreseen
    ) -> Foreseen:
        """Who waits already is to be served within the interval, beside who comes."""
        waiting = float(sum(report.num_waiting for report in pool.fresh_reports(seen)))
        if pool is self._pools[0]:
            waiting += self._frontend.num_routing(seen.now_ms)
        if not waiting:
            return foreseen
        more_rps = waiting / self._spec.throughput_adjustment_interval_ms * 1e3
        ask.figures["num_waiting"] = waiting
        ask.reasons.append(f"{waiting:g} wait already: {more_rps:.4g}/s more")
        return replace(foreseen, rps=foreseen.rps + more_rps)

    def _needed(self, pool: ScaledPool, ask: Ask, foreseen: Foreseen) -> Needed | None:
        """None: step times are not known. Fewer than there are leave room for demand to grow."""
        if foreseen.rps <= 0:
            return NOTHING
        engine = pool.engine()
        if engine is None:
            return None
        spec = self._spec
        targets = (spec.ttft_ms, spec.itl_ms)
        need = needed(pool.card.role, engine, foreseen, targets, spec.max_utilization)
        if need.replicas >= ask.wanted:
            return need
        requests = foreseen.rps * spec.throughput_adjustment_interval_ms / 1e3
        room = max(spec.scale_down_headroom, _NOISE / sqrt(requests))
        kept = min(ask.wanted, need.with_headroom(1 + room))
        if kept > need.replicas:
            told = f"{kept} with {room:.0%} of room to grow"
            return replace(need, replicas=kept, reasons=(*need.reasons, told))
        return need

    def _hold_without_model(self, asks: Sequence[Ask], found: Sequence[Needed | None]) -> None:
        for pool, ask, need in zip(self._pools, asks, found, strict=True):
            if need is None:
                ask.hold(MODEL_NOT_READY, pool.why_no_engine())
            else:
                ask.hold(PARTNER_NOT_READY, "the other pool's step times are not known")

    def _ask_for(self, pool: ScaledPool, ask: Ask, need: Needed, lately: Traffic) -> None:
        ask.figures |= need.figures | pool.correction_figures()
        ask.reasons.extend(need.reasons)
        target, far = need.replicas, self._spec.max_throughput_scaling_replicas
        if abs(target - ask.wanted) > far:
            target = ask.wanted + (far if target > ask.wanted else -far)
            ask.reasons.append(f"{far} at a time")
        if target == 0 and lately.num_active:
            target = 1
            ask.reasons.append(f"{lately.num_active:g} requests are under way")
        target = pool.within(target)
        if self._spec.scales_by_load:
            pool.lower_bound = target
            ask.figures["lower_bound"] = float(target)
            if target > ask.wanted:
                ask.want(target, f"at least {target} by demand")
        else:
            ask.want(target, f"{ask.wanted} are to become {target}")
