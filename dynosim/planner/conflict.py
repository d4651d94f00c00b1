"""Two controllers of one pool: seen by a number of workers that nobody here asked for."""

from msgspec.structs import replace

from dynosim.planner.controller import Controller
from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.observation import Observation, PoolState

ANOTHER_CONTROLLER = "another_controller"


class Guarded:
    """A controller that stands back where somebody else changes what it controls.

    When a pool is told to have a number that this controller did not ask for since it looked last,
    its decisions for that pool are to leave it as it is, with the verdict `another_controller`,
    until `hold_ms` have passed without another such change. Who asks for the very same number
    cannot be told from it. What was asked for may still be on its way at the next look. The
    controller itself knows of none of this: to its windows and rates it is as if it were obeyed.
    """

    def __init__(self, controller: Controller, hold_ms: float = 300_000.0) -> None:
        self._controller = controller
        self._hold_ms = hold_ms
        self._known: dict[str, list[int]] = {}  # by pool: as seen last, and asked for since
        self._foreign: dict[str, tuple[float, str]] = {}  # by pool: when, and what happened

    @property
    def name(self) -> str:
        """See `Controller`."""
        return self._controller.name

    @property
    def next_ms(self) -> float:
        """See `Controller`."""
        return self._controller.next_ms

    def look(self, seen: Observation) -> ScalingDecision | None:
        """See `Controller`."""
        decision = self._controller.look(seen)
        if decision is None:
            return None
        pools = tuple(self._judged(found, seen, decision) for found in decision.pools)
        return replace(decision, pools=pools)

    def _judged(
        self, found: PoolDecision, seen: Observation, decision: ScalingDecision
    ) -> PoolDecision:
        pool, now_ms = seen.pool(found.pool), seen.now_ms
        self._notice(pool, now_ms)
        at_ms, what = self._foreign.get(pool.name, (-self._hold_ms, ""))
        if what and now_ms - at_ms < self._hold_ms:
            reason = f"{what}, {(now_ms - at_ms) / 1e3:g} s ago; {self.name} wants {found.target}"
            found = replace(
                found,
                target=pool.wanted,
                verdict=ANOTHER_CONTROLLER,
                reasons=(reason, *found.reasons),
                figures=found.figures | {"own_target": float(found.target)},
            )
        if not decision.is_advisory:
            first, *asked = self._known[pool.name]
            asked = [other for other in asked if other != found.target]
            self._known[pool.name] = [first, *asked, found.target]
        return found

    def _notice(self, pool: PoolState, now_ms: float) -> None:
        """Note a number of workers that is neither the one seen last nor asked for since."""
        known = self._known.setdefault(pool.name, [pool.wanted])
        if pool.wanted not in known:
            what = f"{known[0]} workers became {pool.wanted} and {self.name} asked for {known[-1]}"
            self._foreign[pool.name] = (now_ms, what)
            self._known[pool.name] = [pool.wanted]
            return
        while pool.wanted in known[1:]:  # as it was before that is no longer on its way
            known.pop(0)
