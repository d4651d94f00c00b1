"""What all autoscalers of one pool do alike: look on ticks, keep what is shown between."""

import pytest
from planner_support import observation, pool_state

from dynosim.planner.decision import PoolDecision
from dynosim.planner.observation import Observation, PoolState
from dynosim.planner.pool_scaler import PoolScaler, check_bounds, decided


class OneMore(PoolScaler):
    """Wants one worker more on each tick, from 5 ms on, every 10 ms."""

    def __init__(self) -> None:
        super().__init__("one more", "agg", 10.0, 5.0)
        self.shown_ms: list[float] = []

    def _take_in(self, seen: Observation) -> None:
        self.shown_ms.append(seen.now_ms)

    def _decide(self, pool: PoolState, seen: Observation) -> PoolDecision:
        return decided(pool, pool.wanted + 1, "scale_up", (f"it is {seen.now_ms:g} ms",), {})


def test_it_decides_on_ticks_and_takes_in_what_is_shown_between() -> None:
    scaler = OneMore()
    shown = [observation(now_ms, [pool_state("agg", 2)]) for now_ms in (1.0, 5.0, 14.0, 15.0)]
    found = [scaler.look(seen) for seen in shown]
    assert [decision is not None for decision in found] == [False, True, False, True]
    assert scaler.shown_ms == [1.0, 5.0, 14.0, 15.0]
    last = found[-1]
    assert last is not None and (last.now_ms, last.controller) == (15.0, "one more")
    assert [(one.pool, one.target) for one in last.pools] == [("agg", 3)]


def test_ticks_that_nobody_came_for_are_left_out() -> None:
    scaler = OneMore()
    scaler.look(observation(37.0, [pool_state("agg", 1)]))
    assert scaler.next_ms == 45.0
    scaler.look(observation(45.0, [pool_state("agg", 1)]))
    assert scaler.next_ms == 55.0


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (4, 3), (0, 0)])
def test_bounds_between_which_there_is_nobody_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= min_replicas"):
        check_bounds("some", low, high)
    check_bounds("some", 0, 1)
