"""Transfers share links fairly, at exact times, and no byte is lost but those of the cancelled."""

from fractions import Fraction

import pytest

from dynosim.engine.instant import instant_end
from dynosim.engine.pace import NEVER
from dynosim.errors import InvariantError
from dynosim.memory.network import FairNetwork, Transfer

MB = 10**6  # at 1 GB/s a millisecond


def network_of(*gb_s: float) -> FairNetwork:
    network = FairNetwork()
    assert [network.add_resource(rate) for rate in gb_s] == list(range(len(gb_s)))
    return network


def arrivals(network: FairNetwork) -> list[tuple[int, float]]:
    """Who arrives when, until nothing is due."""
    found = []
    while network.next_ms < NEVER:
        now_ms = network.next_ms
        for transfer in network.complete(now_ms):
            assert transfer.ended_ms == now_ms
            found.append((transfer.number, transfer.ended_ms))
    return found


def balance(network: FairNetwork) -> tuple[int, int, int, int]:
    return (
        network.bytes_sent,
        network.bytes_received,
        network.bytes_lost,
        network.bytes_in_flight,
    )


# ---- one transfer --------------------------------------------------------------------------------


def test_a_lone_transfer_flows_at_the_rate_of_its_narrowest_resource() -> None:
    network = network_of(4, 2, 8)
    transfer = network.begin((0, 1, 2), 6 * MB, 10.0, 10.0)
    assert (transfer.number, transfer.path, transfer.num_bytes) == (0, (0, 1, 2), 6 * MB)
    assert transfer.started_ms == 10.0 and transfer.ended_ms != transfer.ended_ms
    assert network.next_ms == 13.0
    assert network.complete(12.9) == []
    assert network.complete(13.0) == [transfer]
    assert transfer.ended_ms == 13.0 and network.next_ms == NEVER
    assert network.complete(14.0) == []


def test_a_gb_is_a_billion_bytes() -> None:
    network = network_of(9.6)
    network.begin((0,), 1_048_576_000, 0.0, 0.0)
    assert network.next_ms == pytest.approx(109.2266667)


def test_bytes_flow_from_the_start_that_was_stated_on() -> None:
    network = network_of(1)
    transfer = network.begin((0,), 3 * MB, 5.0, 1.0)
    assert network.next_ms == 5.0
    assert network.complete(5.0) == []
    assert network.next_ms == 8.0
    assert network.complete(8.0) == [transfer]


def test_no_bytes_arrive_at_once_when_they_start_and_take_no_share() -> None:
    network = network_of(1)
    first = network.begin((0,), 2 * MB, 0.0, 0.0)
    later = network.begin((0,), 0, 1.0, 0.0)
    at_once = network.begin((), 0, 0.0, 0.0)
    assert network.next_ms == 0.0
    assert network.complete(0.0) == [at_once]
    assert network.next_ms == 1.0 and network.complete(1.0) == [later]
    assert network.next_ms == 2.0 and network.complete(2.0) == [first]
    assert [later.ended_ms, at_once.ended_ms] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("path", "num_bytes", "starts_ms"),
    [((0,), -1, 1.0), ((), 1, 1.0), ((0, 0), 1, 1.0), ((0,), 1, 0.5), ((0,), 1, NEVER)],
)
def test_what_is_no_transfer_is_refused_and_changes_nothing(
    path: tuple[int, ...], num_bytes: int, starts_ms: float
) -> None:
    network = network_of(1)
    with pytest.raises(InvariantError, match="a transfer"):
        network.begin(path, num_bytes, starts_ms, 1.0)
    assert network.next_ms == NEVER and balance(network) == (0, 0, 0, 0)
    assert network.begin((0,), 1, 1.0, 1.0).number == 0


@pytest.mark.parametrize("gb_s", [0.0, -1.0, NEVER, float("nan")])
def test_what_is_no_capacity_is_refused(gb_s: float) -> None:
    with pytest.raises(InvariantError, match="GB/s"):
        FairNetwork().add_resource(gb_s)


def test_time_does_not_go_back() -> None:
    network = network_of(1)
    network.begin((0,), MB, 5.0, 5.0)
    network.complete(6.0)
    with pytest.raises(InvariantError, match="comes after"):
        network.begin((0,), MB, 5.9, 5.9)
    network.begin((0,), MB, 6.0, 6.0 - 1e-10)  # the same instant


# ---- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gb_s", [0.1, 1.0, 9.6])
@pytest.mark.parametrize("count", [1, 3, 10, 64])
def test_equal_transfers_begun_together_end_together(gb_s: float, count: int) -> None:
    num_bytes = 1_048_576_000
    network = network_of(gb_s)
    for _ in range(count):
        network.begin((0,), num_bytes, 7.0, 7.0)
    ends = arrivals(network)
    assert [number for number, _ in ends] == list(range(count))
    exact_ms = 7.0 + count * num_bytes / (gb_s * 1e6)
    (end_ms,) = {ended_ms for _, ended_ms in ends}
    assert end_ms == pytest.approx(exact_ms, rel=1e-9)


def test_a_second_transfer_halves_the_rate_while_both_flow() -> None:
    network = network_of(1)
    network.begin((0,), 4 * MB, 0.0, 0.0)
    network.begin((0,), MB, 1.0, 0.0)
    assert arrivals(network) == [(1, 3.0), (0, 5.0)]


def test_what_one_cannot_use_the_others_get() -> None:
    """0 goes through both; its share of the narrow one is 1 of 2 GB/s, so 2 gets 9 of 10."""
    network = network_of(2, 10)
    network.begin((0, 1), 4 * MB, 0.0, 0.0)
    network.begin((0,), 4 * MB, 0.0, 0.0)
    network.begin((1,), 36 * MB, 0.0, 0.0)
    assert arrivals(network) == [(0, 4.0), (1, 4.0), (2, 4.0)]


def test_rates_rise_again_in_three_steps() -> None:
    """Resources of 3, 6 and 12 GB/s in a chain: 1.5 for those at the first, 4.5, then 7.5."""
    network = network_of(3, 6, 12)
    network.begin((0,), 3 * MB, 0.0, 0.0)
    network.begin((0, 1), 3 * MB, 0.0, 0.0)
    network.begin((1, 2), 9 * MB, 0.0, 0.0)
    network.begin((2,), 15 * MB, 0.0, 0.0)
    assert arrivals(network) == [(0, 2.0), (1, 2.0), (2, 2.0), (3, 2.0)]


def test_a_resource_that_others_leave_room_is_full_only_later() -> None:
    """Of 3 GB/s, 1 takes 0.5, so that 2 could have 2.5; but its other resource has 2."""
    network = network_of(1, 3, 2)
    network.begin((0,), 1 * MB, 0.0, 0.0)
    network.begin((0, 1), 1 * MB, 0.0, 0.0)
    network.begin((1, 2), 4 * MB, 0.0, 0.0)
    assert arrivals(network) == [(0, 2.0), (1, 2.0), (2, 2.0)]


def test_transfers_that_share_nothing_do_not_touch_each_other() -> None:
    network = network_of(1, 3)
    network.begin((0,), 7 * MB, 0.0, 0.0)
    network.begin((1,), 7 * MB, 0.1, 0.1)
    network.begin((1,), 7 * MB, 0.2, 0.2)
    alone = network_of(1)
    alone.begin((0,), 7 * MB, 0.0, 0.0)
    assert dict(arrivals(network))[0] == dict(arrivals(alone))[0] == 7.0


def test_a_group_that_falls_apart_goes_on_in_both_parts() -> None:
    network = network_of(2, 2)
    network.begin((0,), 3 * MB, 0.0, 0.0)
    network.begin((0, 1), 1 * MB, 0.0, 0.0)  # bridges both until 1 ms
    network.begin((1,), 5 * MB, 0.0, 0.0)
    assert arrivals(network) == [(1, 1.0), (0, 2.0), (2, 3.0)]


# ---- ties ----------------------------------------------------------------------------------------


def test_arrivals_of_one_instant_come_in_the_order_of_their_numbers() -> None:
    network = network_of(1, 1, 1)
    for resource in (2, 0, 1):
        network.begin((resource,), MB, 0.0, 0.0)
    assert [one.number for one in network.complete(1.0)] == [0, 1, 2]


def test_times_that_are_equal_on_paper_are_one_instant() -> None:
    network = network_of(1, 1)
    start_ms = 0.1 + 0.2  # 0.30000000000000004
    network.begin((0,), MB, start_ms, 0.0)
    network.begin((1,), MB, 0.3, 0.0)
    first_ms = network.next_ms
    assert network.complete(first_ms) == []
    assert [one.number for one in network.complete(network.next_ms)] == [0, 1]


def test_who_comes_a_bit_late_into_an_instant_changes_no_time() -> None:
    network = network_of(1)
    network.begin((0,), MB, 0.0, 0.0)
    late_ms = instant_end(1.0)
    (first,) = network.complete(late_ms)
    network.begin((0,), MB, late_ms, late_ms)
    assert first.ended_ms == 1.0 and network.next_ms == 2.0


def test_what_is_due_just_after_the_instant_waits() -> None:
    network = network_of(1)
    network.begin((0,), MB, 0.0, 0.0)
    assert network.complete(1.0 - 3e-9) == []
    assert len(network.complete(1.0 - 0.5e-9)) == 1


def test_who_begins_when_another_ends_has_the_link_alone() -> None:
    network = network_of(1)
    first = network.begin((0,), MB, 0.0, 0.0)
    second = network.begin((0,), MB, 1.0, 1.0)  # before the first was handed out
    assert network.next_ms == 1.0 and network.complete(1.0) == [first]
    assert network.next_ms == 2.0 and network.complete(2.0) == [second]


# ---- cancelling ----------------------------------------------------------------------------------


def test_what_had_flowed_of_a_cancelled_transfer_is_lost_and_the_others_speed_up() -> None:
    network = network_of(1)
    kept = network.begin((0,), 4 * MB, 0.0, 0.0)
    dropped = network.begin((0,), 4 * MB, 0.0, 0.0)
    assert balance(network) == (8 * MB, 0, 0, 8 * MB)
    assert network.cancel(dropped, 2.0) == MB
    assert dropped.ended_ms == 2.0
    assert balance(network) == (5 * MB, 0, MB, 4 * MB)
    assert network.next_ms == 5.0 and network.complete(5.0) == [kept]
    assert balance(network) == (5 * MB, 4 * MB, MB, 0)


def test_bytes_that_had_flowed_are_rounded_to_the_nearest() -> None:
    network = network_of(1e-6)  # a byte per ms
    transfer = network.begin((0,), 10, 0.0, 0.0)
    assert network.cancel(transfer, 3.6) == 4


def test_of_a_transfer_that_waits_nothing_has_flowed() -> None:
    network = network_of(1)
    waiting = network.begin((0,), MB, 5.0, 0.0)
    assert network.cancel(waiting, 4.0) == 0
    assert network.next_ms == NEVER and balance(network) == (0, 0, 0, 0)
    assert network.complete(10.0) == []


def test_a_transfer_cancelled_when_it_arrives_is_lost_as_a_whole() -> None:
    network = network_of(1)
    transfer = network.begin((0,), MB, 0.0, 0.0)
    assert network.cancel(transfer, 1.0) == MB
    assert balance(network) == (MB, 0, MB, 0)
    assert network.complete(1.0) == [] and network.next_ms == NEVER


def test_no_transfer_is_cancelled_twice_or_after_it_was_handed_out() -> None:
    network = network_of(1)
    cancelled = network.begin((0,), MB, 0.0, 0.0)
    network.cancel(cancelled, 0.0)
    received = network.begin((0,), MB, 0.0, 0.0)
    network.complete(1.0)
    before = balance(network)
    for transfer in (cancelled, received):
        with pytest.raises(InvariantError, match="handed out or cancelled"):
            network.cancel(transfer, 1.0)
    assert balance(network) == before == (MB, MB, 0, 0)


def test_a_cancelled_bridge_parts_a_group() -> None:
    network = network_of(2, 2)
    network.begin((0,), 3 * MB, 0.0, 0.0)
    bridge = network.begin((0, 1), 8 * MB, 0.0, 0.0)
    network.begin((1,), 5 * MB, 0.0, 0.0)
    assert network.cancel(bridge, 1.0) == MB
    assert arrivals(network) == [(0, 2.0), (2, 3.0)]


def test_hidden_bytes_are_sent_and_received() -> None:
    network = network_of(1)
    network.add_hidden(5)
    assert balance(network) == (5, 5, 0, 0)
    with pytest.raises(InvariantError):
        network.add_hidden(-1)


# ---- long periods --------------------------------------------------------------------------------


def test_a_link_that_is_busy_for_long_does_not_drift() -> None:
    """A plain sum of the durations parts from the exact end a hundred times as far."""
    network, num_bytes, gb_s, count = network_of(3), 10_000_001, 3, 100_000
    summed_ms = now_ms = 0.0
    for _ in range(count):
        network.begin((0,), num_bytes, now_ms, now_ms)
        now_ms = network.next_ms
        network.complete(now_ms)
        summed_ms += num_bytes / (gb_s * 1e6)
    exact_ms = Fraction(count * num_bytes, gb_s * 10**6)
    assert abs(Fraction(now_ms) - exact_ms) < Fraction(1, 10**9)
    assert abs(Fraction(summed_ms) - exact_ms) > Fraction(1, 10**7)
    assert network.bytes_received == count * num_bytes


def test_a_shared_link_that_is_busy_for_long_does_not_drift() -> None:
    """Who arrives is followed by the next; sizes differ, so that ends mostly do not meet."""
    network, gb_s, count = network_of(3, 7), 3, 30_000
    sizes = [1_000_003 + index * 7919 % 500_000 for index in range(count)]
    for num_bytes in sizes[:3]:
        network.begin((0, 1), num_bytes, 0.0, 0.0)
    begun, now_ms = 3, 0.0
    while network.next_ms < NEVER:
        now_ms = network.next_ms
        for _ in network.complete(now_ms):
            if begun < count:
                network.begin((0, 1), sizes[begun], now_ms, now_ms)
                begun += 1
    assert abs(Fraction(now_ms) - Fraction(sum(sizes), gb_s * 10**6)) < Fraction(1, 10**7)
    assert balance(network) == (sum(sizes), sum(sizes), 0, 0)


def test_stale_events_do_not_pile_up() -> None:
    network = network_of(1, 1)
    kept = [network.begin((0,), MB, 0.0, 0.0) for _ in range(3)]
    for _ in range(1000):
        network.cancel(network.begin((0,), MB, 0.0, 0.0), 0.0)
        network.cancel(network.begin((1,), MB, 5.0, 0.0), 0.0)
    assert [one.number for one in network.complete(3.0)] == [one.number for one in kept]
    assert network._dues == [] and network._starts == []


def test_a_transfer_is_what_begin_returned() -> None:
    network = network_of(1)
    begun = network.begin((0,), 1, 0.0, 0.0)
    (arrived,) = network.complete(1.0)
    assert arrived is begun and isinstance(arrived, Transfer)
