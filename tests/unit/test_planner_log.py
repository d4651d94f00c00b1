"""A decision log's values: plain, equal when read again, and replayed to the same decisions."""

from dataclasses import replace

import pytest
from planner_support import CountingFrontend, card, observation, pool_state, report

from dynosim.planner.log_values import ReplayDifference, look_of, plain_look, replay
from dynosim.planner.look import Look
from dynosim.planner.observation import Pass
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec

SPEC = PlannerSpec(mode="agg")


def _look() -> Look:
    frontend = CountingFrontend()
    frontend.serve(3, ttft_ms=1e3 / 3)
    passes = [Pass(10.1, 1, 100, 2, 300)]
    reports = [report(i, at_ms=4_999.9, kv=12_000, passes=passes) for i in range(2)]
    seen = observation(
        5_000.0, [pool_state("agg", 2, draining=1)], [frontend.scrape(4_000.0)], reports
    )
    return Look(seen, Planner(SPEC, [card()]).look(seen))


def test_an_entry_is_plain_and_reads_equal() -> None:
    look = _look()
    plain = plain_look(look)
    assert plain["seen"]["pools"][0]["workers"][2]["phase"] == "draining"
    assert plain["decision"]["pools"][0]["target"] == 3
    assert look_of(plain) == look
    assert look_of(plain_look(Look(look.seen, None))).decision is None


def test_what_is_no_entry_is_named_by_its_place() -> None:
    plain = plain_look(_look())
    plain["seen"]["pools"][0]["wanted"] = "two"
    with pytest.raises(ValueError, match=r"Expected `int`, got `str`.*seen\.pools\[0\]"):
        look_of(plain)


def test_a_replay_finds_where_another_planner_decides_otherwise() -> None:
    look = _look()
    assert replay([look], Planner(SPEC, [card()])) == []
    other = Planner(replace(SPEC, max_gpu_budget=2), [card()])
    (difference,) = replay([look], other)
    assert isinstance(difference, ReplayDifference)
    assert (difference.index, difference.logged) == (0, look.decision)
    assert difference.replayed is not None
    assert difference.replayed.pools[0].verdict == "gpu_budget_guard_hold"
