"""The fewest workers that hold a load: how many are tried, and what is found."""

from collections.abc import Callable
from math import ceil, exp

from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.sweep.capacity import LoadOutcome
from dynosim.sweep.fewest import FewestWorkers

Layout = Callable[[int], LoadOutcome]


def enough(threshold: float, *, tells: bool = True, target: float = 0.95) -> Layout:
    """A layout that holds the load with so many workers and more."""

    def at(workers: int) -> LoadOutcome:
        odds = 3.0 + 4.0 * (workers / threshold - 1.0) if threshold else 3.0
        share = 1 / (1 + exp(-max(min(odds, 30.0), -30.0)))
        is_held = workers >= threshold
        share = max(share, target) if is_held else min(share, target - 0.001)
        return LoadOutcome(is_held, share if tells else None)

    return at


def asked(search: FewestWorkers, layout: Layout, first: int) -> list[int]:
    """The numbers of workers that a search asks for, in their order."""
    tried: list[int] = []
    workers: int | None = first
    while workers is not None:
        assert workers not in tried and search.low <= workers <= search.high
        tried.append(workers)
        search.told(workers, layout(workers))
        workers = search.next_workers()
        assert workers == search.next_workers(), "asking changes nothing"
    return tried


@given(
    low=st.integers(1, 9),
    width=st.integers(0, 500),
    share=st.floats(0.0, 1.0),
    threshold=st.floats(0.5, 600.0),
    tells=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_it_finds_what_trying_every_number_finds(
    low: int, width: int, share: float, threshold: float, tells: bool
) -> None:
    high = low + width
    search = FewestWorkers(low, high, 0.95)
    tried = asked(search, enough(threshold, tells=tells), low + round(share * width))
    found = max(low, ceil(threshold))
    assert search.found == (found if found <= high else None)
    too_few = None if found <= low else min(found - 1, high)
    assert search.too_few == too_few
    assert len(tried) <= 24


@given(need=st.floats(0.1, 400.0), each=st.floats(0.5, 50.0))
@settings(max_examples=100, deadline=None)
def test_twice_the_need_never_needs_fewer(need: float, each: float) -> None:
    found = []
    for load in (need, 2 * need):
        search = FewestWorkers(1, 2000, 0.95)
        asked(search, enough(load / each), 1)
        assert search.found is not None
        found.append(search.found)
    assert found[0] <= found[1] <= 2 * found[0]


def test_it_begins_anywhere_and_needs_few_tries() -> None:
    search = FewestWorkers(1, 64, 0.95)
    assert len(asked(search, enough(17.0), 16)) <= 4
    assert (search.found, search.too_few) == (17, 16)


def test_one_that_is_enough_is_tried_once() -> None:
    search = FewestWorkers(1, 64, 0.95)
    assert asked(search, enough(0.4), 1) == [1]
    assert (search.found, search.too_few) == (1, None)


def test_no_number_is_enough() -> None:
    search = FewestWorkers(2, 8, 0.95)
    tried = asked(search, lambda _: LoadOutcome(False, 0.2), 4)
    assert search.found is None and search.too_few == 8 and tried[-1] == 8
