"""A decision log's values: plain, equal when read again, and replayed to the same decisions."""

from dataclasses import replace

import pytest
from planner_support import CountingFrontend, card, observation, pool_state, report

from dynosim.planner.log_values import LookEntry, ReplayDifference, entry_of, plain_entry, replay
from dynosim.planner.observation import Pass
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec

SPEC = PlannerSpec(mode="agg")


def _entry() -> LookEntry:
    frontend = CountingFrontend()
    frontend.serve(3, ttft_ms=1e3 / 3)
    passes = [Pass(10.1, 1, 100, 2, 300)]
    reports = [report(i, at_ms=4_999.9, kv=12_000, passes=passes) for i in range(2)]
    seen = observation(
        5_000.0, [pool_state("agg", 2, draining=1)], [frontend.scrape(4_000.0)], reports
    )
    return LookEntry(seen, Planner(SPEC, [card()]).look(seen))


def test_an_entry_is_plain_and_reads_equal() -> None:
    entry = _entry()
    plain = plain_entry(entry)
    assert plain["observation"]["pools"][0]["workers"][2]["phase"] == "draining"
    assert plain["decision"]["pools"][0]["target"] == 3
    assert entry_of(plain) == entry
    assert entry_of(plain_entry(LookEntry(entry.observation, None))).decision is None


def test_what_is_no_entry_is_named_by_its_place() -> None:
    plain = plain_entry(_entry())
    plain["observation"]["pools"][0]["wanted"] = "two"
    with pytest.raises(ValueError, match=r"Expected `int`, got `str`.*observation\.pools\[0\]"):
        entry_of(plain)


def test_a_replay_finds_where_another_planner_decides_otherwise() -> None:
    entry = _entry()
    assert replay([entry], Planner(SPEC, [card()])) == []
    other = Planner(replace(SPEC, max_gpu_budget=2), [card()])
    (difference,) = replay([entry], other)
    assert isinstance(difference, ReplayDifference)
    assert (difference.index, difference.logged) == (0, entry.decision)
    assert difference.replayed is not None
    assert difference.replayed.pools[0].verdict == "gpu_budget_guard_hold"
