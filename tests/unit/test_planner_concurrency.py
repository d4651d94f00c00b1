"""The concurrency autoscaler: Knative's rule by hand."""

from dataclasses import replace
from typing import Any

import pytest

from dynosim.planner.concurrency import IN_FLIGHT, ConcurrencyScaler, ConcurrencySpec
from dynosim.planner.decision import ScalingDecision
from dynosim.planner.rehearsal import Rehearsal, targets

S = 1000.0
SPEC = ConcurrencySpec(pool="pool", max_replicas=100, target=10.0)  # 7 in flight a worker


def rehearsed(in_flight: Any, *, until_s: float, workers: int = 1, scrape_s: float = 1,
              start_s: float = 0, **changes: Any) -> list[ScalingDecision]:  # fmt: skip
    def metrics(now_ms: float, ready: int) -> dict[str, float] | None:
        value = in_flight(now_ms / S)
        return None if value is None else {IN_FLIGHT: float(value)}

    rehearsal = Rehearsal(
        metrics=metrics,
        until_ms=until_s * S,
        num_workers=workers,
        scrape_ms=scrape_s * S,
        start_ms=start_s * S,
    )
    return rehearsal.decisions(ConcurrencyScaler(replace(SPEC, **changes)))


def steps(decisions: list[ScalingDecision]) -> list[tuple[float, int]]:
    return [(at_ms / S, target) for at_ms, target in targets(decisions)]


def test_workers_are_what_is_in_flight_by_the_target() -> None:
    decisions = rehearsed(lambda _: 20, until_s=120)
    assert steps(decisions) == [(0, 3)]  # 20 / 7, rounded up
    found = decisions[-1].pools[0]
    assert found.figures["stable_in_flight"] == found.figures["panic_in_flight"] == 20
    assert "asks for 3" in found.reasons[0]


def test_slow_growth_follows_the_mean_of_the_stable_window() -> None:
    decisions = rehearsed(lambda s: 20 if s < 100 else 22, until_s=200, workers=3)
    # 60 scrapes of 20 or 22: above 21, which three workers can have, once 31 of them are of 22
    assert steps(decisions) == [(0, 3), (130, 4)]
    assert not any(d.pools[0].figures["is_panic"] for d in decisions[31:])


def test_burst_panics_and_is_followed_at_once() -> None:
    decisions = rehearsed(lambda s: 6 if s < 60 else 60, until_s=70)
    # 60 s: (5 x 6 + 60) / 6 = 15 asks for 3, which is at least twice the one that is ready
    assert steps(decisions)[:2] == [(0, 1), (60, 3)]
    assert steps(decisions)[-1] == (66, 9)
    assert decisions[-1].pools[0].figures["is_panic"] == 1


def test_no_shrinking_while_in_panic_and_then_by_half_each_time() -> None:
    decisions = rehearsed(lambda s: 60 if 60 <= s < 64 else 2, until_s=200)
    (_, before), (first_s, peak), *_ = steps(decisions)
    assert (before, first_s) == (1, 60)
    begun = [d for d in decisions if d.pools[0].figures["is_panic"]]
    last_s = begun[-1].now_ms / S
    assert max(target for _, target in steps(decisions)) == begun[-1].pools[0].target > peak
    down = [step for step in steps(decisions) if step[0] > last_s]
    assert down[0][0] == last_s + 2
    top = begun[-1].pools[0].target
    assert [target for _, target in down][:2] == [max(top // 2, 1), max(top // 4, 1)]
    # panic lasts for a stable window after the last look that was over its threshold
    over = [d for d in begun if d.pools[0].reasons[-1].endswith(f"no fewer than {top}")]
    since_s = float(over[-1].pools[0].reasons[-1].split("since ")[1].split(" s")[0])
    assert last_s == since_s + 60


def test_more_than_one_ready_at_the_start_begins_in_panic() -> None:
    decisions = rehearsed(lambda _: 1, until_s=80, workers=5)
    assert steps(decisions) == [(0, 5), (62, 2), (64, 1)]


def test_to_zero_after_a_window_of_nothing_and_the_grace() -> None:
    decisions = rehearsed(lambda s: 5 if s < 20 else 0, until_s=200)
    # the last of 5 was scraped at 19 s; nothing is in flight over 60 s at 79 s, seen at 80 s
    assert steps(decisions) == [(0, 1), (110, 0)]
    assert "stays for 30 s" in decisions[45].pools[0].reasons[-1]


def test_grace_begins_again_after_a_request() -> None:
    decisions = rehearsed(lambda s: 5 if s < 20 or s == 100 else 0, until_s=250)
    assert steps(decisions) == [(0, 1), (190, 0)]


def test_first_request_wakes_from_zero_by_what_waits_in_the_frontend() -> None:
    decisions = rehearsed(lambda s: 0 if s < 30 else 1, until_s=60, workers=0)
    assert [target for _, target in steps(decisions)][-1] == 1
    assert (30, 1) in steps(decisions)


def test_growth_and_limits_are_kept() -> None:
    found = steps(rehearsed(lambda _: 1000, until_s=20, max_growth=2.0, max_replicas=6))
    assert found == [(0, 2), (2, 4), (4, 6)]
    assert steps(rehearsed(lambda _: 0, until_s=200, min_replicas=1)) == [(0, 1)]


def test_scrapes_rarer_than_the_panic_window_leave_the_latest() -> None:
    found = steps(rehearsed(lambda s: 6 if s < 60 else 60, until_s=90, scrape_s=15))
    assert found == [(0, 1), (60, 9)]


def test_outage_keeps_what_there_is() -> None:
    decisions = rehearsed(lambda s: 20 if s < 30 else None, until_s=200)
    assert steps(decisions) == [(0, 3)]
    assert decisions[-1].pools[0].verdict == "metrics_missing"


@pytest.mark.parametrize("changes", [{"min_replicas": 5, "max_replicas": 4}, {"target": 0.0}])
def test_what_could_never_decide_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        replace(SPEC, **changes)
