"""Sets of slots (bit i: slot i) as sequences."""

from functools import cache

from dynosim.workers.ids import Slot

_MAX_REMEMBERED = 4096

Slots = tuple[Slot, ...]


@cache
def _members_by_byte(first: int) -> tuple[Slots, ...]:
    """For every value of a byte whose lowest bit is slot `first`: the slots in it."""
    return tuple(tuple(Slot(first + i) for i in range(8) if byte >> i & 1) for byte in range(256))


class SlotLists:
    """Turns sets of slots into tuples, a byte at a time; remembers large sets asked for lately."""

    __slots__ = ("_by_byte", "_high", "_known", "_low")

    def __init__(self) -> None:
        self._low, self._high = _members_by_byte(0), _members_by_byte(8)
        self._by_byte = [self._low, self._high]
        self._known: dict[int, Slots] = {}

    def of(self, slots: int) -> Slots:
        """The members of a set, ascending."""
        if slots < 65536:
            return self._low[slots & 255] + self._high[slots >> 8]
        known = self._known.get(slots)
        if known is not None:
            return known
        table = self._by_byte
        found: list[Slot] = []
        for position, byte in enumerate(slots.to_bytes((slots.bit_length() + 7) // 8, "little")):
            if position >= len(table):
                table.append(_members_by_byte(8 * position))
            if byte:
                found += table[position][byte]
        if len(self._known) >= _MAX_REMEMBERED:
            self._known.clear()
        self._known[slots] = tuple(found)
        return self._known[slots]
