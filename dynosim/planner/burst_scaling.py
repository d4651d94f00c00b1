"""Replicas for bursts: how many get a pool out of an overload, and how many are kept for the next.

Workers take a while to start. What comes meanwhile waits, so an overload takes more of them than
its requests alone; and who takes a worker away may need it again before another could have started.
"""

from collections.abc import Sequence
from math import ceil

from dynosim.planner.engine_model import RequestMix
from dynosim.planner.frontend_view import FrontendView
from dynosim.planner.observation import Observation
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.scaled_pool import Ask, ScaledPool
from dynosim.workers.lifecycle import Phase

_QUIET_FACTOR = 1.5
"""How much longer than the longest quiet time between two bursts the next one is waited for."""


class BurstScaling:
    """Sizes a pool by single requests' arrivals; with latency targets, where step times are known.

    Nothing is asked for with `max_load_scaling_replicas` 1, nothing kept with `burst_memory_ms` 0.
    """

    def __init__(self, spec: PlannerSpec, frontend: FrontendView) -> None:
        self._spec = spec
        self._frontend = frontend
        self._is_sla = spec.optimization_target == "sla"

    def needed(
        self, seen: Observation, pool: ScaledPool, ask: Ask, mix: RequestMix | None
    ) -> int | None:
        """Replicas that serve who comes and, within a start's time, who waits; None: not known."""
        usable_rps = self._usable_rps(pool, mix, is_on=self._spec.max_load_scaling_replicas > 1)
        if usable_rps is None:
            return None
        rps = self._frontend.arrivals.sure_rps()
        waiting = float(sum(report.num_waiting for report in pool.fresh_reports(seen)))
        if pool.is_first:
            waiting += self._frontend.num_routing(seen.now_ms)
        start_ms = pool.starts.start_ms(seen.now_ms)
        replicas = ceil(
            engines_for(
                rps,
                waiting,
                usable_rps,
                num_ready=seen.pool(pool.card.name).count(Phase.READY),
                ready_in_ms=pool.starts.ready_in_ms(seen.now_ms),
                start_ms=start_ms,
            )
            - 1e-9
        )
        ask.figures |= {"arriving_rps": rps, "num_waiting": waiting, "start_ms": start_ms}
        ask.reasons.append(
            f"{rps:.4g}/s come and {waiting:g} wait; a start takes {start_ms / 1e3:.4g} s, and by "
            f"{usable_rps:.4g}/s of an engine {replicas} catch up in as long again"
        )
        return replicas

    def risen(
        self, seen: Observation, pool: ScaledPool, ask: Ask, mix: RequestMix | None
    ) -> int | None:
        """Replicas that what came for as long as a start takes needs, where that is more than there
        are told to be: who waits until requests queue is late. None: those will do."""
        usable_rps = self._usable_rps(pool, mix, is_on=self._spec.max_load_scaling_replicas > 1)
        if usable_rps is None:
            return None
        start_ms = pool.starts.start_ms(seen.now_ms)
        rps = self._frontend.arrivals.sure_rps(start_ms)
        replicas = ceil(rps / usable_rps - 1e-9)
        if replicas <= ask.wanted:
            return None
        ask.reasons.append(
            f"{rps:.4g}/s have come for at least {start_ms / 1e3:.4g} s, which takes {replicas} by "
            f"{usable_rps:.4g}/s of an engine"
        )
        return replicas

    def kept(self, seen: Observation, pool: ScaledPool, ask: Ask, mix: RequestMix | None) -> int:
        """Replicas that are not given up, since so many came lately; the ask is told.

        Lately is as long ago as a start takes: who goes could not be back sooner. Where too many
        were late in the last `attainment_window_ms` it is `burst_memory_ms`, and longer where
        bursts have come farther apart.
        """
        spec, arrivals = self._spec, self._frontend.arrivals
        usable_rps = self._usable_rps(pool, mix, is_on=spec.burst_memory_ms > 0)
        if usable_rps is None:
            return 0
        memory_ms = min(pool.starts.start_ms(seen.now_ms), spec.burst_memory_ms)
        if self.is_late():
            memory_ms = max(spec.burst_memory_ms, _QUIET_FACTOR * arrivals.longest_quiet_ms())
        rps = arrivals.burst_rps(seen.now_ms, memory_ms)
        replicas = pool.within(ceil(rps / usable_rps - 1e-9))
        ask.figures |= {"burst_rps": rps, "late_share": arrivals.late_share()}
        ask.reasons.append(
            f"{replicas} are kept for {rps:.4g}/s of the last {memory_ms / 1e3:.4g} s"
            + (f", {arrivals.late_share():.1%} were late" if self.is_late() else "")
        )
        return replicas

    def _usable_rps(self, pool: ScaledPool, mix: RequestMix | None, *, is_on: bool) -> float | None:
        """What one engine may take a second; None: not known, or nobody asks for it."""
        if not self._is_sla or not is_on or mix is None:
            return None
        return pool.usable_rps(mix)

    def is_late(self) -> bool:
        """Whether more first tokens were late than may be."""
        allowed = 1 - self._spec.attainment
        return self._is_sla and self._frontend.arrivals.late_share() > allowed


def engines_for(
    rps: float,
    waiting: float,
    usable_rps: float,
    *,
    num_ready: int,
    ready_in_ms: Sequence[float],
    start_ms: float,
) -> float:
    """Engines that serve `rps` and, within the time of a start, who waits when one launched now is
    ready.

    Until then who waits grows by what those ready, and those that get ready meanwhile, do not
    serve. `usable_rps`: of one engine. `ready_in_ms`: of those that start already.
    """
    start_s = start_ms / 1e3
    served_s = num_ready * start_s + sum((start_ms - max(0.0, ms)) / 1e3 for ms in ready_in_ms)
    left = max(0.0, waiting + rps * start_s - usable_rps * served_s)
    return (rps + left / start_s) / usable_rps
