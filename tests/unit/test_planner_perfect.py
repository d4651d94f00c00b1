"""The bound of perfect foresight: by hand, and against every schedule there is."""

import itertools

import pytest

from dynosim.planner.perfect import (
    PerfectScaler,
    PerfectSchedule,
    WorkerSpan,
    perfect_schedule,
)
from dynosim.planner.rehearsal import Rehearsal, targets

S = 1000.0


def spans(schedule: PerfectSchedule) -> list[tuple[float, float, float]]:
    return [(one.launch_ms / S, one.ready_ms / S, one.end_ms / S) for one in schedule.spans]


def test_worker_is_launched_so_that_it_is_ready_in_time() -> None:
    assert spans(perfect_schedule([0, 0, 1, 1, 0], 60 * S, 45 * S)) == [(75, 120, 240)]


def test_trough_shorter_than_a_start_is_idled_through_and_a_longer_one_is_not() -> None:
    for gap, num_spans in ((1, 1), (2, 1), (3, 2)):
        found = perfect_schedule([1, *[0] * gap, 1], 10 * S, 20 * S)
        assert len(found.spans) == num_spans, gap
        assert found.held_ms == 40 * S + 10 * S * min(gap, 2)


def test_each_level_decides_for_itself() -> None:
    found = perfect_schedule([1, 3, 1, 3, 1, 1, 1, 2, 0], 10 * S, 15 * S)
    assert spans(found) == [(-15, 0, 80), (-5, 10, 40), (-5, 10, 40), (55, 70, 80)]
    assert found.gpu_hours(8) == pytest.approx((95 + 45 + 45 + 25) * 8 / 3600)


def test_warm_workers_cost_no_start() -> None:
    assert spans(perfect_schedule([2, 1], 10 * S, 30 * S, num_warm=1)) == [(-30, 0, 10), (0, 0, 20)]
    # kept from 0 to its first need if that is cheaper
    assert spans(perfect_schedule([0, 1], 10 * S, 30 * S, num_warm=1)) == [(0, 0, 20)]
    assert spans(perfect_schedule([0, 1], 40 * S, 30 * S, num_warm=1)) == [(10, 40, 80)]


def test_nothing_needed_costs_nothing() -> None:
    for fewest in ([], [0, 0]):
        assert perfect_schedule(fewest, 10 * S, 30 * S, num_warm=2).held_ms == 0


def test_start_without_cost_follows_the_need() -> None:
    found = perfect_schedule([2, 0, 1], 10 * S, 0.0)
    assert found.held_ms == 30 * S
    assert [found.ready_at(at * S) for at in (0, 9, 10, 19, 20, 29, 30)] == [2, 2, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("start_bins", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("num_warm", [0, 1, 2])
def test_no_schedule_is_cheaper(start_bins: float, num_warm: int) -> None:
    """Every number of ready workers in every bin; a worker more than before costs a start."""
    for fewest in itertools.product(range(3), repeat=5):
        found = perfect_schedule(fewest, 1.0, start_bins, num_warm)
        cheapest = min(
            sum(ready)
            + start_bins
            * sum(max(now - before, 0) for before, now in itertools.pairwise((num_warm, *ready)))
            for ready in itertools.product(*(range(need, 3) for need in fewest))
        )
        assert found.held_ms == pytest.approx(cheapest), fewest
        enough = [found.ready_at(i + at) for i in range(5) for at in (0.0, 0.99)]
        assert all(
            n >= need for n, need in zip(enough, [n for n in fewest for _ in "ab"], strict=True)
        )


@pytest.mark.parametrize(
    ("fewest", "bin_ms", "start_ms"), [([-1], 1, 1), ([1], 0, 1), ([1], 1, -1)]
)
def test_what_cannot_be_is_refused(fewest: list[int], bin_ms: float, start_ms: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        perfect_schedule(fewest, bin_ms, start_ms)


def test_scaler_has_enough_ready_at_each_moment() -> None:
    fewest = [1, 1, 3, 1, 1, 2, 1, 0, 0, 0, 2]
    schedule = perfect_schedule(fewest, 60 * S, 90 * S, num_warm=1)
    ready: dict[float, int] = {}

    def note(now_ms: float, num_ready: int) -> dict[str, float]:
        ready[now_ms] = num_ready
        return {}

    scaler = PerfectScaler({"pool": schedule})
    rehearsal = Rehearsal(
        metrics=note, until_ms=659 * S, num_workers=1, scrape_ms=30 * S, start_ms=90 * S
    )
    decisions = rehearsal.decisions(scaler)
    # a scrape at the very moment of a drain still counts who is drained
    assert all(ready[at_s * S] >= fewest[at_s // 60] for at_s in range(0, 660, 30))
    assert ready[210 * S] == 1
    assert [(at / S, n) for at, n in targets(decisions)] == [
        (0, 1), (30, 3), (180, 1), (210, 2), (360, 1), (420, 0), (510, 2)
    ]  # fmt: skip
    assert scaler.name == "perfect"


def test_spans_say_how_long_they_hold() -> None:
    assert WorkerSpan(1.0, 3.0, 7.0).held_ms == 6.0
