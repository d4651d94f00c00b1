"""The search for a capacity: which loads it asks for, and what it makes of the answers."""

from collections.abc import Callable
from math import exp, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.sweep.capacity import (
    CapacitySearch,
    LoadCapacity,
    LoadOutcome,
    LoadRange,
    capacity_of,
)

RANGE = LoadRange(0.02, 8.0)


def asked(search: CapacitySearch, layout: Callable[[float], LoadOutcome]) -> list[float]:
    """The loads that a search asks for, in their order."""
    loads: list[float] = []
    while (load := search.next_load()) is not None:
        assert load not in loads, "the same load is asked for twice"
        assert len(loads) < 60
        loads.append(load)
        search.told(load, layout(load))
    return loads


def logistic(capacity: float, slope: float, target: float = 0.95) -> Callable[[float], LoadOutcome]:
    """A layout whose attainment falls in line with the load's logarithm, in log odds."""

    def at(load: float) -> LoadOutcome:
        odds = log(target / (1 - target)) - slope * log(load / capacity)
        attainment = 1 / (1 + exp(min(-odds, 700.0)))
        return LoadOutcome(load <= capacity, attainment)

    return at


def test_a_layout_as_the_secant_has_it_needs_few_loads() -> None:
    search = CapacitySearch(RANGE, 0.95, start=0.7)
    loads = asked(search, logistic(1.37, 6.0))
    capacity = search.capacity
    assert capacity.low is not None and capacity.high is not None
    assert capacity.low <= 1.37 < capacity.high <= capacity.low * 1.03
    assert loads[:3] == pytest.approx([0.7, 1.12, 1.792])
    assert len(loads) <= 7


@given(
    capacity=st.floats(0.03, 7.9),
    start=st.floats(0.001, 100.0),
    slope=st.floats(0.5, 200.0),
    tells=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_capacity_lies_in_the_bracket(
    capacity: float, start: float, slope: float, tells: bool
) -> None:
    layout = logistic(capacity, slope)
    search = CapacitySearch(RANGE, 0.95, start)
    loads = asked(
        search,
        lambda load: LoadOutcome(
            layout(load).is_carried, layout(load).attainment if tells else None
        ),
    )
    found = search.capacity
    assert found.low is not None and found.high is not None
    assert found.low <= capacity <= found.high <= found.low * 1.03 + 1e-12
    assert len(loads) <= 22
    assert all(RANGE.low <= load <= RANGE.high for load in loads)


@given(capacity=st.integers(1, 4999), start=st.floats(1, 5000))
@settings(max_examples=200, deadline=None)
def test_whole_loads_end_at_neighbours(capacity: int, start: float) -> None:
    whole = LoadRange(1, 5000, tolerance=0.0, is_whole=True)
    search = CapacitySearch(whole, 0.95, start)
    loads = asked(search, lambda load: LoadOutcome(load <= capacity))
    assert search.capacity == LoadCapacity(capacity, capacity + 1)
    assert all(load == int(load) for load in loads)


def test_no_load_is_carried() -> None:
    search = CapacitySearch(RANGE, 0.95, start=0.7)
    loads = asked(search, lambda load: LoadOutcome(False, 0.5))
    assert search.capacity == LoadCapacity(None, RANGE.low)
    assert loads[-1] == RANGE.low and len(loads) <= 10


def test_all_loads_are_carried() -> None:
    search = CapacitySearch(RANGE, 0.95, start=0.7)
    assert asked(search, lambda load: LoadOutcome(True, 1.0))[-1] == RANGE.high
    assert search.capacity == LoadCapacity(RANGE.high, None)


@pytest.mark.parametrize(("first", "is_carried"), [(249.0, True), (0.001, False)])
def test_a_first_load_beyond_the_range_ends_the_search(first: float, is_carried: bool) -> None:
    search = CapacitySearch(LoadRange(0.02, 8.0), 0.95, first)
    search.told(first, LoadOutcome(is_carried, 1.0 if is_carried else 0.5))
    assert search.next_load() is None


def test_far_from_its_start_it_goes_to_the_end_at_once() -> None:
    search = CapacitySearch(LoadRange(1e-6, 1e6), 0.95, start=1.0)
    loads = asked(search, lambda load: LoadOutcome(True))
    assert len(loads) == 10 and loads[-1] == 1e6


def test_where_answers_contradict_the_smaller_load_counts() -> None:
    outcomes = {
        1.0: LoadOutcome(True),
        2.0: LoadOutcome(False),
        3.0: LoadOutcome(True),
        0.5: LoadOutcome(True),
    }
    assert capacity_of(outcomes) == LoadCapacity(1.0, 2.0, is_monotone=False)


def test_what_is_known_is_not_asked_again() -> None:
    layout = logistic(1.37, 6.0)
    first = CapacitySearch(RANGE, 0.95, start=0.7)
    loads = asked(first, layout)
    resumed = CapacitySearch(RANGE, 0.95, start=0.7)
    for load in loads[:4]:
        assert resumed.next_load() == load
        resumed.told(load, layout(load))
    assert asked(resumed, layout) == loads[4:]


def test_a_curve_that_the_secant_misjudges_is_halved() -> None:
    """A cliff: the attainment stays near 1, then falls to nothing."""
    search = CapacitySearch(RANGE, 0.95, start=0.7)
    loads = asked(search, lambda load: LoadOutcome(load <= 1.0, 0.999 if load <= 1.0 else 0.0001))
    assert search.capacity.low is not None and search.capacity.low <= 1.0
    assert len(loads) <= 12


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="empty range of loads: 2 to 1"):
        LoadRange(2.0, 1.0)


def test_where_smaller_loads_do_not_help_the_smallest_is_tried_at_once() -> None:
    """Long prompts that miss their bound on an idle cluster, too."""
    search = CapacitySearch(RANGE, 0.95, start=1.0)
    loads = asked(
        search, lambda load: LoadOutcome(False, None if load > 0.5 else 0.88 - 0.1 * load)
    )
    assert loads == pytest.approx([1.0, 0.625, 0.390625, 0.244140625, 0.02])
    assert search.capacity == LoadCapacity(None, 0.02)


def test_a_rise_that_comes_late_is_still_found() -> None:
    layout = logistic(0.05, 8.0)
    search = CapacitySearch(RANGE, 0.95, start=1.0)
    asked(
        search,
        lambda load: LoadOutcome(load <= 0.05, 0.9 if load > 0.06 else layout(load).attainment),
    )
    assert search.capacity.low is not None and 0.05 / 1.03 < search.capacity.low <= 0.05


def test_guesses_of_stopped_probes_tell_whether_smaller_loads_help() -> None:
    search = CapacitySearch(RANGE, 0.95, start=1.0)
    loads = asked(search, lambda load: LoadOutcome(False, guess=0.88 - 0.01 * load))
    assert loads == pytest.approx([1.0, 0.625, 0.02])


def test_a_target_that_is_far_away_is_gone_to_at_once() -> None:
    for capacity, start in ((0.1, 1.0), (7.0, 0.7)):
        search = CapacitySearch(RANGE, 0.95, start)
        loads = asked(search, logistic(capacity, 1.0))
        assert search.capacity.low is not None
        assert search.capacity.low <= capacity <= search.capacity.low * 1.03
        assert len(loads) <= 7
        assert loads[2] == pytest.approx(capacity, rel=0.1)


def test_an_attainment_that_rises_with_the_load_is_not_followed_far() -> None:
    search = CapacitySearch(RANGE, 0.95, start=0.5)
    loads = asked(search, lambda load: LoadOutcome(load < 3, min(0.97 + load / 100, 0.99)))
    assert loads[:3] == pytest.approx([0.5, 0.8, 1.28])
