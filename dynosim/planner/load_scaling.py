"""Replicas by load: at the ends of short intervals, from what engines report.

Fewer go one at a time; more come one at a time, or with latency targets as many as an overload
takes.
"""

from dynosim.planner.burst_scaling import BurstScaling
from dynosim.planner.engine_model import RequestMix
from dynosim.planner.frontend_view import FrontendView
from dynosim.planner.load import REFUSED, SCALE_DOWN
from dynosim.planner.observation import Observation, PoolState
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.scaled_pool import METRICS_STALE, Ask, Regret, ScaledPool, is_idle
from dynosim.planner.vote import Vote
from dynosim.workers.lifecycle import Phase

SCALING_IN_PROGRESS = "scaling_in_progress"
CAPPED = "scale_down_capped_by_throughput"
KEPT = "kept_for_bursts"

_SAME_LOAD = 0.8
"""From this share of a request rate on it counts as the same: a window's count is noisy."""

_LOOKS_TO_CANCEL = 3
"""Looks in a row that must find that even fewer than those ready would do, before those still
starting are stopped; that those ready do takes a whole interval of demand."""

_NOT_ASKED_YET = "demand has not been looked at yet, which may take as many"


class LoadScaling:
    """Asks for more or one fewer; while replicas start, for those that they will not be enough."""

    def __init__(self, spec: PlannerSpec, frontend: FrontendView) -> None:
        self._spec = spec
        self._frontend = frontend
        self._bursts = BurstScaling(spec, frontend)

    def ask(self, seen: Observation, pool: ScaledPool, ask: Ask, mix: RequestMix | None) -> None:
        """After demand has been asked: it may have raised the target, and is not undercut."""
        if ask.verdict == METRICS_STALE or ask.target > ask.wanted:
            return
        state = seen.pool(pool.card.name)
        num_ready, least = state.count(Phase.READY), pool.lower_bound
        if least is not None and least > ask.wanted:
            if not self._frontend.is_stale(seen.now_ms, ask):
                ask.want(least, f"load does not go below {least}, which demand takes")
            return
        is_pending = num_ready != ask.wanted
        if is_pending and not _may_cancel(state, num_ready):
            pool.looks_to_cancel, pool.at_ease_ms = 0, None
            ask.hold(SCALING_IN_PROGRESS, f"{num_ready} are ready of {ask.wanted}")
            return
        reports = pool.all_reports(seen, ask)
        if reports is None:
            return
        if self._spec.optimization_target == "sla" and self._frontend.is_stale(seen.now_ms, ask):
            return
        vote = pool.vote(reports, mix)
        ask.figures |= vote.figures
        ask.reasons.extend(vote.reasons)
        all_idle = all(is_idle(report) for report in reports)
        self._follow(seen, pool, ask, vote, mix, is_pending=is_pending, all_idle=all_idle)

    def _follow(
        self,
        seen: Observation,
        pool: ScaledPool,
        ask: Ask,
        vote: Vote,
        mix: RequestMix | None,
        *,
        is_pending: bool,
        all_idle: bool,
    ) -> None:
        """Ask for what the engines' vote comes to, or for what it does not see: a rate that is more
        than they can serve."""
        risen = self._bursts.risen(seen, pool, ask, mix) if vote.step <= 0 else None
        if risen is not None:
            most = ask.wanted + self._spec.max_load_scaling_replicas
            ask.want(pool.within(min(risen, most)), "more come than those there are can serve")
        elif is_pending:
            if vote.step <= 0 or not self._ask_more(seen, pool, ask, mix, least=ask.wanted):
                self._cancel(seen, pool, ask, vote, mix)
        elif vote.step > 0:
            pool.at_ease_ms = None
            self._regret(seen, pool, ask)
            if not self._ask_more(seen, pool, ask, mix, least=ask.wanted + 1):
                ask.hold("no_change", f"its maximum is {pool.most}")
        else:
            pool.at_ease_ms, ask.verdict = None, vote.verdict
            self._keep_or_ask_fewer(seen, pool, ask, vote, mix, all_idle=all_idle)

    def _keep_or_ask_fewer(
        self,
        seen: Observation,
        pool: ScaledPool,
        ask: Ask,
        vote: Vote,
        mix: RequestMix | None,
        *,
        all_idle: bool,
    ) -> None:
        """One fewer if the vote says so and bursts did not take them; if too many were late, as
        many as they took."""
        is_late = self._bursts.is_late()
        if vote.step == 0 and not is_late:
            return
        kept = self._bursts.kept(seen, pool, ask, mix)
        if is_late and kept > ask.wanted:
            ask.want(kept, "as many as bursts took")
        elif vote.step < 0 and kept >= ask.wanted:
            ask.verdict = KEPT
        elif vote.step < 0:
            self._ask_fewer(seen, pool, ask, all_idle=all_idle)

    def _ask_more(
        self, seen: Observation, pool: ScaledPool, ask: Ask, mix: RequestMix | None, *, least: int
    ) -> bool:
        """As many as get the pool out of its overload, at least `least`; whether that is more."""
        target = least
        need = self._bursts.needed(seen, pool, ask, mix)
        if need is not None and need > least:
            target = min(need, ask.wanted + self._spec.max_load_scaling_replicas)
        target = pool.within(target)
        more = target - ask.wanted
        if more > 0:
            ask.want(target, "one more" if more == 1 else f"{more} more")
        return more > 0

    def _ask_fewer(self, seen: Observation, pool: ScaledPool, ask: Ask, *, all_idle: bool) -> None:
        fewer = ask.wanted - 1
        if fewer < pool.least:
            ask.hold("no_change", f"its minimum is {pool.least}")
        elif pool.lower_bound is not None and fewer < pool.lower_bound:
            ask.hold(CAPPED, f"demand takes {pool.lower_bound}")
        elif self._is_demand_unknown(pool):
            ask.hold(CAPPED, _NOT_ASKED_YET)
        elif self._is_regretted(seen, pool, ask, fewer):
            ask.hold(REFUSED, ask.reasons.pop())
        elif fewer > 0:
            ask.want(fewer, "one fewer")
            pool.came_down = fewer, seen.now_ms
        elif not self._frontend.is_stale(seen.now_ms, ask):
            lately = self._frontend.lately(seen.now_ms)
            nobody = lately is not None and not lately.num_requests and not lately.num_active
            if nobody and all_idle and self._frontend.is_interval_seen():
                ask.want(0, "nobody came in the last interval, and nobody is served")
            else:
                ask.hold(
                    "no_change",
                    "the last one stays: no whole interval without anybody was seen",
                )

    def _cancel(
        self,
        seen: Observation,
        pool: ScaledPool,
        ask: Ask,
        vote: Vote,
        mix: RequestMix | None,
    ) -> None:
        """Stop those still starting, once they have been superfluous for a while."""
        num_ready = seen.pool(pool.card.name).count(Phase.READY)
        least = max(num_ready, pool.least, pool.lower_bound or 0)
        if vote.is_at_ease:
            least = max(least, self._bursts.kept(seen, pool, ask, mix))
        is_over = self._is_superfluous(pool, vote, seen.now_ms)
        told = f"{num_ready} are ready of {ask.wanted}"
        if not is_over or least >= ask.wanted or self._is_demand_unknown(pool):
            ask.hold(SCALING_IN_PROGRESS, told)
        elif self._is_regretted(seen, pool, ask, least):
            ask.hold(SCALING_IN_PROGRESS, told)
        else:
            pool.looks_to_cancel, pool.at_ease_ms = 0, None
            pool.came_down = least, seen.now_ms
            ask.target, ask.verdict = least, SCALE_DOWN
            ask.reasons.append(f"{told}; those still starting are not needed")

    def _is_superfluous(self, pool: ScaledPool, vote: Vote, now_ms: float) -> bool:
        """Whether those who are ready have done without the others for long enough."""
        pool.looks_to_cancel = pool.looks_to_cancel + 1 if vote.step < 0 else 0
        if not vote.is_at_ease:
            pool.at_ease_ms = None
        elif pool.at_ease_ms is None:
            pool.at_ease_ms = now_ms
        interval_ms = self._spec.throughput_adjustment_interval_ms
        return pool.looks_to_cancel >= _LOOKS_TO_CANCEL or (
            pool.at_ease_ms is not None and now_ms - pool.at_ease_ms >= interval_ms
        )

    def _is_demand_unknown(self, pool: ScaledPool) -> bool:
        """Whether demand has a say, and has not been able to say anything."""
        return self._spec.scales_by_demand and pool.lower_bound is None

    def _regret(self, seen: Observation, pool: ScaledPool, ask: Ask) -> None:
        """Remember at which rate of requests those that load has just come down to are too few.

        The load of an engine says little of what two would carry on one: near its limit its queue
        and its sequences grow without end. So what was tried counts, while as many come.
        """
        interval_ms = self._spec.throughput_adjustment_interval_ms
        to, at_ms = pool.came_down or (None, 0.0)
        if to == ask.wanted and seen.now_ms - at_ms <= interval_ms:
            lately = self._frontend.lately(seen.now_ms)
            pool.regret = None if lately is None else Regret(ask.wanted, lately.rps)
        pool.came_down = None

    def _is_regretted(self, seen: Observation, pool: ScaledPool, ask: Ask, replicas: int) -> bool:
        """Whether so few, or more, were too few for what comes now; the ask is told."""
        if pool.regret is None or replicas > pool.regret.replicas:
            return False
        lately, then = self._frontend.lately(seen.now_ms), pool.regret
        if lately is None or lately.rps < _SAME_LOAD * then.rps:
            pool.regret = None
            return False
        ask.reasons.append(
            f"{then.replicas} were too few for {then.rps:.4g} requests a second, "
            f"{lately.rps:.4g} come now"
        )
        return True


def _may_cancel(state: PoolState, num_ready: int) -> bool:
    """Whether all that is in progress are starts: then those who are ready can tell."""
    return 0 < num_ready < state.wanted == num_ready + state.count(Phase.STARTING)
