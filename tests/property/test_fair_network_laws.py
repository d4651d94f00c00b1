"""A fair network does what exact fractions say, whatever begins, is cancelled or waits."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_network import NaiveNetwork, NaiveTransfer

from dynosim.engine.pace import NEVER
from dynosim.memory.network import FairNetwork, Transfer

MB = 10**6

rates = st.lists(st.integers(1, 7), min_size=1, max_size=6)
sizes = st.one_of(st.just(0), st.integers(1, 12).map(lambda n: n * MB), st.integers(1, 12 * MB))
begins = st.tuples(
    st.just("begin"),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    sizes,
    st.integers(0, 3),
)
cancels = st.tuples(st.just("cancel"), st.integers(0, 30))
waits = st.tuples(st.just("wait"), st.integers(0, 6))
commands = st.lists(st.one_of(begins, begins, cancels, waits), max_size=30)


class Both:
    """The network under test and the plain one, told the same."""

    def __init__(self, gb_s: list[int]) -> None:
        self.network = FairNetwork()
        for rate in gb_s:
            self.network.add_resource(rate)
        self.naive = NaiveNetwork(gb_s)
        self.pairs: list[tuple[Transfer, NaiveTransfer]] = []
        self.open: dict[int, Transfer] = {}
        self.lost = 0
        self.received = 0
        self.now_ms = 0

    def begin(self, path: tuple[int, ...], num_bytes: int, delay_ms: int) -> None:
        starts_ms = self.now_ms + delay_ms
        transfer = self.network.begin(path, num_bytes, float(starts_ms), float(self.now_ms))
        assert (transfer.number, transfer.path) == (len(self.pairs), path)
        self.pairs.append((transfer, self.naive.begin(path, num_bytes, starts_ms)))
        self.open[transfer.number] = transfer

    def cancel(self, number: int) -> None:
        transfer, naive = self.pairs[number]
        self.complete_until(float(self.now_ms))
        self.naive.advance(Fraction(self.now_ms))
        assert (transfer.number in self.open) == (naive.ended_ms is None)
        if transfer.number not in self.open:
            return
        del self.open[transfer.number]
        flowed = self.network.cancel(transfer, float(self.now_ms))
        self.naive.cancel(naive)
        assert naive.flowed is not None and abs(flowed - naive.flowed) <= 0.51
        self.lost += flowed

    def wait(self, duration_ms: int) -> None:
        self.now_ms += duration_ms
        self.complete_until(float(self.now_ms))
        self.naive.advance(Fraction(self.now_ms))

    def complete_until(self, until_ms: float) -> None:
        last_ms = -NEVER
        while self.network.next_ms <= until_ms:
            next_ms = self.network.next_ms
            assert next_ms >= last_ms
            last_ms = next_ms
            arrived = self.network.complete(next_ms)
            numbers = [transfer.number for transfer in arrived]
            assert numbers == sorted(numbers)
            for transfer in arrived:
                assert self.open.pop(transfer.number) is transfer
                assert transfer.started_ms <= transfer.ended_ms
                self.received += transfer.num_bytes
            self.check_conservation()

    def check_conservation(self) -> None:
        network = self.network
        in_flight = sum(transfer.num_bytes for transfer in self.open.values())
        assert (network.bytes_received, network.bytes_lost) == (self.received, self.lost)
        assert network.bytes_in_flight == in_flight
        assert network.bytes_sent == self.received + self.lost + in_flight


@given(rates, commands)
def test_every_transfer_ends_when_exact_fractions_say(gb_s: list[int], script: list[tuple]) -> None:
    both = Both(gb_s)
    for command, *arguments in script:
        if command == "begin":
            links, num_bytes, delay_ms = arguments
            path = tuple(dict.fromkeys(link % len(gb_s) for link in links))
            both.begin(path, num_bytes, delay_ms)
        elif command == "wait":
            both.wait(*arguments)
        elif both.pairs:
            both.cancel(arguments[0] % len(both.pairs))
        both.check_conservation()
    both.complete_until(1e9)
    both.naive.advance(None)
    assert both.open == {} and both.network.next_ms == NEVER
    for transfer, naive in both.pairs:
        assert naive.ended_ms is not None
        assert transfer.ended_ms == pytest.approx(float(naive.ended_ms), rel=1e-9, abs=1e-8)


crossings = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=4, max_size=12)


@given(st.lists(st.integers(1, 40), min_size=6, max_size=6), crossings, st.data())
def test_rates_of_all_who_flow_at_once_are_max_min_fair(
    gb_s: list[int], crossed: list[list[int]], data: st.DataObject
) -> None:
    both = Both(gb_s)
    for links in crossed:
        num_bytes = data.draw(st.integers(MB, 50 * MB))
        both.begin(tuple(dict.fromkeys(links)), num_bytes, delay_ms=1)
    both.complete_until(1e9)
    both.naive.advance(None)
    for transfer, naive in both.pairs:
        assert transfer.ended_ms == pytest.approx(float(naive.ended_ms or 0), rel=1e-9)


@given(rates, commands)
def test_who_looks_late_sees_the_same_times(gb_s: list[int], script: list[tuple]) -> None:
    """Arrivals are at the time that is due, not at that of whoever asks."""
    ended = []
    for is_late in (False, True):
        both = Both(gb_s)
        for command, *arguments in script:
            if command == "begin":
                links, num_bytes, delay_ms = arguments
                path = tuple(dict.fromkeys(link % len(gb_s) for link in links))
                both.begin(path, num_bytes, delay_ms)
            elif command == "wait":
                both.now_ms += arguments[0]
                if not is_late:
                    both.complete_until(float(both.now_ms))
        if is_late:
            both.network.complete(1e9)
        both.complete_until(1e9)
        ended.append([transfer.ended_ms for transfer, _ in both.pairs])
    assert ended[0] == ended[1]
