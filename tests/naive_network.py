"""Transfers over shared links by exact fractions, all rates anew at every event; slow and plain."""

from dataclasses import dataclass, field
from fractions import Fraction

Path = tuple[int, ...]


@dataclass
class NaiveTransfer:
    path: Path
    num_bytes: int
    starts_ms: Fraction
    left: Fraction = field(default=Fraction(0))
    ended_ms: Fraction | None = None
    flowed: Fraction | None = None  # of a cancelled one

    def __post_init__(self) -> None:
        self.left = Fraction(self.num_bytes)


class NaiveNetwork:
    def __init__(self, gb_s: list[int]) -> None:
        self.bytes_per_ms = [Fraction(rate * 10**6) for rate in gb_s]
        self.transfers: list[NaiveTransfer] = []
        self.now_ms = Fraction(0)

    def begin(self, path: Path, num_bytes: int, starts_ms: int) -> NaiveTransfer:
        transfer = NaiveTransfer(path, num_bytes, Fraction(starts_ms))
        self.transfers.append(transfer)
        return transfer

    def cancel(self, transfer: NaiveTransfer) -> None:
        assert transfer.ended_ms is None
        transfer.ended_ms = self.now_ms
        transfer.flowed = transfer.num_bytes - transfer.left

    def advance(self, until_ms: Fraction | None) -> None:
        """To a time, or until nothing is left to do."""
        while True:
            flowing = [one for one in self._alive() if one.starts_ms <= self.now_ms]
            for done in [one for one in flowing if one.left == 0]:
                done.ended_ms = self.now_ms
                flowing.remove(done)
            rates = max_min_rates(self.bytes_per_ms, [one.path for one in flowing])
            times = [one.starts_ms for one in self._alive() if one.starts_ms > self.now_ms]
            times += [
                self.now_ms + one.left / rate for one, rate in zip(flowing, rates, strict=True)
            ]
            if until_ms is not None:
                times.append(until_ms)
            if not times:
                return
            next_ms = min(times)
            for one, rate in zip(flowing, rates, strict=True):
                one.left -= rate * (next_ms - self.now_ms)
            if next_ms == self.now_ms == until_ms:
                return
            self.now_ms = next_ms

    def _alive(self) -> list[NaiveTransfer]:
        return [one for one in self.transfers if one.ended_ms is None]


def max_min_rates(capacities: list[Fraction], paths: list[Path]) -> list[Fraction]:
    """All rates rise by the same steps; a full resource stops those that cross it."""
    rates = [Fraction(0)] * len(paths)
    rising = set(range(len(paths)))
    while rising:
        rooms = {}
        for resource, capacity in enumerate(capacities):
            crossing = [index for index, path in enumerate(paths) if resource in path]
            num_rising = len(rising.intersection(crossing))
            if num_rising:
                used = sum((rates[index] for index in crossing), Fraction(0))
                rooms[resource] = (capacity - used) / num_rising
        step = min(rooms.values())
        for index in rising:
            rates[index] += step
        full = {resource for resource, room in rooms.items() if room == step}
        rising = {index for index in rising if not full.intersection(paths[index])}
    _check(capacities, paths, rates)
    return rates


def _check(capacities: list[Fraction], paths: list[Path], rates: list[Fraction]) -> None:
    """What defines max-min fair: each crosses a full resource where nobody has more."""
    used = [
        sum(
            (rate for path, rate in zip(paths, rates, strict=True) if resource in path), Fraction(0)
        )
        for resource in range(len(capacities))
    ]
    assert all(sent <= capacity for sent, capacity in zip(used, capacities, strict=True))
    for path, rate in zip(paths, rates, strict=True):
        assert any(
            used[resource] == capacities[resource]
            and all(
                other <= rate
                for there, other in zip(paths, rates, strict=True)
                if resource in there
            )
            for resource in path
        )
