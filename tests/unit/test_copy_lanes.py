"""A lane carries out one copy after another; whoever needs the end of a store waits for it."""

import pytest

from dynosim.engine.host_cache import Span
from dynosim.engine.lanes import CopyLanes, LaneSpec
from dynosim.engine.pace import NEVER
from dynosim.engine.plan import CopyJob, HostWork
from dynosim.engine.sequence import Sequence

SPEC = LaneSpec(store_setup_ms=1.0, store_block_ms=2.0, load_setup_ms=0.5, load_block_ms=4.0)


def job(number: int, num_blocks: int, *, is_load: bool) -> CopyJob:
    sequence = Sequence(number, 8, 1, [], 0)
    return CopyJob(number, sequence, [Span(number, 0, num_blocks)], num_blocks, is_load=is_load)


def work(*, loads: int = 0, stores: int = 0, flushed: tuple[int, ...] = ()) -> HostWork:
    """So many copies of two blocks each, numbered from 0."""
    made = HostWork()
    made.loads = tuple([job(number, 2, is_load=True) for number in range(loads)])
    made.stores = tuple([job(number, 2, is_load=False) for number in range(stores)])
    made.flushed = flushed
    return made


def test_loads_go_one_after_another_and_beside_stores() -> None:
    lanes = CopyLanes(SPEC)
    lanes.begin_stores(work(stores=2), 10.0)
    assert lanes.begin(work(loads=2), 10.0) == 10.0
    assert lanes.next_load_ms == 10 + 8.5 and lanes.next_store_ms == 10 + 5
    assert lanes.take_loaded(18.4) == []
    assert [one.number for one in lanes.take_loaded(18.5)] == [0]
    assert lanes.next_load_ms == 10 + 2 * 8.5
    assert [one.number for one in lanes.take_loaded(30.0)] == [1] and lanes.next_load_ms == NEVER
    assert lanes.take_stored(15.0) == [0] and lanes.next_store_ms == 10 + 2 * 5
    assert lanes.take_stored(20.0) == [1] and lanes.next_store_ms == NEVER


def test_a_lane_that_was_idle_begins_at_once() -> None:
    lanes = CopyLanes(SPEC)
    lanes.begin(work(loads=1), 0.0)
    lanes.take_loaded(8.5)
    lanes.begin(work(loads=1), 100.0)
    assert lanes.next_load_ms == 108.5


@pytest.mark.parametrize(("flushed", "begins_ms"), [((), 11.0), ((0,), 15.0), ((1, 0), 20.0)])
def test_a_step_waits_for_the_stores_whose_blocks_it_needs(
    flushed: tuple[int, ...], begins_ms: float
) -> None:
    lanes = CopyLanes(SPEC)
    lanes.begin_stores(work(stores=3), 10.0)
    asked = work(loads=1, flushed=flushed)
    assert lanes.begin(asked, 11.0) == begins_ms
    assert asked.loads[0].starts_ms == begins_ms  # its loads begin with it
