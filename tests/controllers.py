"""Controllers that decide by a script, and what two runs under one showed them."""

from collections.abc import Sequence

import pytest
from msgspec.structs import fields, replace

from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.look import Look
from dynosim.planner.observation import EngineReport, Observation, Pass

NEVER = float("inf")


class Script:
    """A controller: looks at given times, and gives the pools what its turn says, pool by pool."""

    name = "script"

    def __init__(
        self, times_ms: Sequence[float], targets: Sequence[int], *, is_advisory: bool = False
    ) -> None:
        self._times_ms = sorted(set(times_ms), reverse=True)
        self._targets = targets
        self._turn = 0
        self._is_advisory = is_advisory

    @property
    def next_ms(self) -> float:
        """See `Controller`."""
        return self._times_ms[-1] if self._times_ms else NEVER

    def look(self, seen: Observation) -> ScalingDecision | None:
        """See `Controller`."""
        self._times_ms.pop()
        if not self._targets:
            return None
        decisions = []
        for pool in seen.pools:
            target = self._targets[self._turn % len(self._targets)]
            self._turn += 1
            decisions.append(PoolDecision(pool.name, pool.wanted, target, "as_scripted"))
        return ScalingDecision(seen.now_ms, self.name, tuple(decisions), self._is_advisory)


def assert_same_looks(ours: Sequence[Look], theirs: Sequence[Look]) -> None:
    """Equal in all that was seen; times and sums of times up to rounding."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.decision == other.decision
        assert one.seen.now_ms == other.seen.now_ms
        assert_same_pools(one.seen, other.seen)
        assert len(one.seen.scrapes) == len(other.seen.scrapes)
        for scrape, twin in zip(one.seen.scrapes, other.seen.scrapes, strict=True):
            assert scrape.at_ms == twin.at_ms
            assert_same_values(scrape.values, twin.values)
        assert_same_reports(one.seen.reports, other.seen.reports)


def assert_same_pools(ours: Observation, theirs: Observation) -> None:
    for pool, twin in zip(ours.pools, theirs.pools, strict=True):
        assert replace(pool, workers=()) == replace(twin, workers=())
        for worker, same in zip(pool.workers, twin.workers, strict=True):
            assert worker.since_ms == pytest.approx(same.since_ms, abs=1e-6)
            assert replace(worker, since_ms=0.0) == replace(same, since_ms=0.0)


def assert_same_values(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Counts and gauges exactly, sums to their last digit."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if "_seconds_sum" in name:
            assert value == pytest.approx(theirs[name], abs=1.1e-6), name
        else:
            assert value == theirs[name], name


def assert_same_reports(ours: Sequence[EngineReport], theirs: Sequence[EngineReport]) -> None:
    for report, twin in zip(ours, theirs, strict=True):
        for one in fields(EngineReport):
            if one.name != "passes":
                assert getattr(report, one.name) == getattr(twin, one.name), one.name
        for step, same in zip(report.passes, twin.passes, strict=True):
            assert_same_pass(step, same)


def assert_same_pass(ours: Pass, theirs: Pass) -> None:
    assert ours.wall_ms == pytest.approx(theirs.wall_ms, abs=1e-6)
    assert replace(ours, wall_ms=0.0) == replace(theirs, wall_ms=0.0)
