"""Who arrives when: by timestamp, after an earlier turn, or in a closed loop; all by hand."""

from dataclasses import replace

import numpy as np
import pytest

from dynosim.records import NO_REQUEST, Trace
from dynosim.workload.load import NEVER, LoadDriver


def trace_of(
    arrivals_ms: list[float],
    previous: list[int] | None = None,
    delays_ms: list[float] | None = None,
) -> Trace:
    count = len(arrivals_ms)
    return Trace(
        arrival_ms=np.array(arrivals_ms),
        input_tokens=np.ones(count, np.int64),
        output_tokens=np.ones(count, np.int64),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
        previous_turn=None if previous is None else np.array(previous, np.int64),
        delay_ms=None if delays_ms is None else np.array(delays_ms),
    )


def arrivals(driver: LoadDriver, until_ms: float = 1e9) -> list[tuple[float, int]]:
    """(time, request) of all that arrives up to a time."""
    found = []
    while driver.next_ms <= until_ms:
        time_ms = driver.next_ms
        found.append((time_ms, driver.pop()))
    return found


def test_timestamps_are_kept_in_the_order_of_the_file() -> None:
    driver = LoadDriver(trace_of([0.0, 5.0, 5.0, 9.0]))
    assert not driver.reacts
    assert driver.next_ms == 0.0
    assert arrivals(driver, 4.999) == [(0.0, 0)]
    assert arrivals(driver, 9.0) == [(5.0, 1), (5.0, 2), (9.0, 3)]
    assert driver.next_ms == NEVER


def test_an_end_that_nothing_follows_changes_nothing() -> None:
    driver = LoadDriver(trace_of([0.0, 5.0]))
    assert driver.pop() == 0
    driver.on_end(0, 1.0)
    assert arrivals(driver) == [(5.0, 1)]


def test_an_empty_trace_never_arrives() -> None:
    assert LoadDriver(trace_of([])).next_ms == NEVER
    assert LoadDriver(trace_of([]), concurrency=3).next_ms == NEVER


def test_a_later_turn_comes_when_the_one_before_has_ended_and_its_own_pause_is_over() -> None:
    trace = trace_of([0.0, 1.0, 2.0, 3.0], [NO_REQUEST, 0, NO_REQUEST, 1], [99.0, 7.5, 99.0, 0.25])
    driver = LoadDriver(trace)
    assert driver.reacts
    assert arrivals(driver) == [(0.0, 0), (2.0, 2)]
    driver.on_end(2, 4.0)
    assert driver.next_ms == NEVER
    driver.on_end(0, 10.0)
    assert arrivals(driver, 17.499) == []
    assert arrivals(driver, 17.5) == [(17.5, 1)]
    driver.on_end(1, 20.0)
    assert arrivals(driver) == [(20.25, 3)]


def test_turns_without_stated_pauses_come_at_once() -> None:
    driver = LoadDriver(trace_of([0.0, 1.0], [NO_REQUEST, 0]))
    assert driver.pop() == 0
    driver.on_end(0, 6.0)
    assert arrivals(driver) == [(6.0, 1)]


def test_timestamps_go_before_what_ends_bring_about_at_the_same_time() -> None:
    trace = trace_of([0.0, 1.0, 8.0], [NO_REQUEST, 0, NO_REQUEST], [0.0, 3.0, 0.0])
    driver = LoadDriver(trace)
    assert driver.pop() == 0
    driver.on_end(0, 5.0)
    assert arrivals(driver) == [(8.0, 2), (8.0, 1)]


def test_what_ends_bring_about_comes_by_time_then_by_row() -> None:
    trace = trace_of([0.0] * 6, [NO_REQUEST] * 3 + [2, 0, 1], [0.0, 0.0, 0.0, 1.0, 2.0, 2.0])
    driver = LoadDriver(trace)
    assert [request for _, request in arrivals(driver, 0.0)] == [0, 1, 2]
    for request in (1, 0, 2):
        driver.on_end(request, 10.0)
    assert arrivals(driver) == [(11.0, 3), (12.0, 4), (12.0, 5)]


@pytest.mark.parametrize("concurrency", [1, 2, 3, 4, 9])
def test_a_closed_loop_starts_so_many_at_once_and_one_more_with_each_end(concurrency: int) -> None:
    trace = trace_of([0.0, 100.0, 200.0, 300.0])  # the timestamps do not matter
    driver = LoadDriver(trace, concurrency)
    assert driver.reacts
    first = arrivals(driver)
    assert first == [(0.0, request) for request in range(min(concurrency, 4))]
    order = [request for _, request in first]
    for ended in range(4):
        driver.on_end(order[ended], 10.0 * (ended + 1))
        more = arrivals(driver)
        waiting = [request for request in range(4) if request not in order]
        assert more == [(10.0 * (ended + 1), request) for request in waiting[:1]]
        order += [request for _, request in more]
    assert order == [0, 1, 2, 3]


def test_in_a_closed_loop_a_session_goes_on_before_another_one_starts() -> None:
    """Sessions of rows 0-2, 1 alone, 3 alone; two at a time."""
    trace = trace_of([0.0] * 4, [NO_REQUEST, NO_REQUEST, 0, NO_REQUEST], [0.0, 0.0, 4.0, 0.0])
    driver = LoadDriver(trace, concurrency=2)
    assert arrivals(driver) == [(0.0, 0), (0.0, 1)]
    driver.on_end(0, 10.0)  # goes on with its second turn, so nobody new
    assert arrivals(driver) == [(14.0, 2)]
    driver.on_end(2, 20.0)
    assert arrivals(driver) == [(20.0, 3)]
    driver.on_end(1, 30.0)
    assert driver.next_ms == NEVER


def test_in_a_closed_loop_first_turns_wait_in_the_order_of_the_file() -> None:
    trace = trace_of([0.0] * 5, [NO_REQUEST, 0, NO_REQUEST, 2, NO_REQUEST], [0.0] * 5)
    driver = LoadDriver(replace(trace, arrival_ms=np.array([9.0, 9, 5, 5, 1])), concurrency=1)
    order = []
    now_ms = 0.0
    while driver.next_ms < NEVER:
        assert driver.next_ms == now_ms
        order.append(driver.pop())
        assert driver.next_ms == NEVER
        now_ms += 2.0
        driver.on_end(order[-1], now_ms)
    assert order == [0, 1, 2, 3, 4]
