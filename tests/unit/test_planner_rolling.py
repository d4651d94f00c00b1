"""Rolling updates: how many go and come at a time."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.errors import ConfigError
from dynosim.planner.rolling import (
    GenerationCounts,
    Moves,
    RollingLimits,
    UpdateStatus,
    next_moves,
    status_of,
)


@pytest.mark.parametrize(
    ("wanted", "limits", "expected"),
    [
        (1, RollingLimits(), (1, 0)),
        (10, RollingLimits(), (3, 2)),
        (4, RollingLimits(1, 0), (1, 0)),
        (8, RollingLimits(0, 2), (0, 2)),
        (20, RollingLimits(0.05, 0.05), (1, 1)),
        (100, RollingLimits(0.07, 0.29), (7, 29)),  # what binary shares would round to 8 and 28
        (3, RollingLimits(0, 0.25), (0, 1)),  # both come to nothing
    ],
)
def test_shares_round_up_for_surge_and_down_for_unavailable(
    wanted: int, limits: RollingLimits, expected: tuple[int, int]
) -> None:
    assert limits.workers(wanted) == expected


@pytest.mark.parametrize(
    ("surge", "unavailable", "named"),
    [(0, 0, "max_surge: 0"), (-1, 1, "max_surge: -1"), (1, 1.5, "max_unavailable: 1.5")],
)
def test_limits_under_which_nothing_could_happen_are_refused(
    surge: float, unavailable: float, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        RollingLimits(surge, unavailable)


def test_a_surge_of_one_launches_first_and_drains_one_when_the_new_one_is_ready() -> None:
    limits, old = RollingLimits(1, 0), GenerationCounts(ready=4)
    assert next_moves(old, GenerationCounts(), 4, limits) == Moves(1, 0, 0)
    assert next_moves(old, GenerationCounts(starting=1), 4, limits) == Moves()
    assert next_moves(old, GenerationCounts(ready=1), 4, limits) == Moves(0, 0, 1)
    draining = GenerationCounts(ready=3, draining=1)
    assert next_moves(draining, GenerationCounts(ready=1), 4, limits) == Moves()
    assert next_moves(replace(draining, draining=0), GenerationCounts(ready=1), 4, limits) == (
        Moves(1, 0, 0)
    )


def test_without_surge_two_go_before_two_come() -> None:
    limits = RollingLimits(0, 2)
    assert next_moves(GenerationCounts(ready=8), GenerationCounts(), 8, limits) == Moves(0, 0, 2)
    gone = GenerationCounts(ready=6)
    assert next_moves(gone, GenerationCounts(), 8, limits) == Moves(2, 0, 0)


@given(
    wanted=st.integers(1, 12),
    surge=st.one_of(st.integers(0, 4), st.floats(0, 1)),
    unavailable=st.one_of(st.integers(0, 4), st.floats(0, 1)),
    order=st.lists(st.sampled_from(["ready", "gone"]), min_size=60, max_size=60),
)
def test_every_update_completes_within_its_limits(
    wanted: int, surge: float, unavailable: float, order: list[str]
) -> None:
    if not surge and not unavailable:
        return
    limits = RollingLimits(surge, unavailable)
    most, fewest = limits.workers(wanted)
    old, new = GenerationCounts(ready=wanted), GenerationCounts()
    assert status_of(old, new, wanted) is UpdateStatus.PENDING
    for happens in [*order, *["ready", "gone"] * 2 * wanted]:
        moves = next_moves(old, new, wanted, limits)
        new = replace(new, starting=new.starting + moves.num_launched)
        drained = moves.num_drained_ready
        old = replace(old, ready=old.ready - drained, draining=old.draining + drained)
        assert old.present + new.present <= wanted + most
        assert old.ready + new.ready >= wanted - fewest
        if happens == "ready" and new.starting:
            new = replace(new, starting=new.starting - 1, ready=new.ready + 1)
        elif happens == "gone" and old.draining:
            old = replace(old, draining=old.draining - 1)
        if status_of(old, new, wanted) is UpdateStatus.COMPLETED:
            break
    assert (old.present, new) == (0, GenerationCounts(ready=wanted))
