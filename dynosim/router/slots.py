"""Sets of slots (bit i: slot i) as lists."""

_MAX_REMEMBERED = 4096


class SlotLists:
    """Turns sets of slots into lists, a byte at a time; remembers sets asked for lately."""

    __slots__ = ("_by_byte", "_known")

    def __init__(self) -> None:
        self._by_byte: list[list[tuple[int, ...]]] = []
        self._known: dict[int, list[int]] = {}

    def of(self, slots: int) -> list[int]:
        """The members of a set, ascending; the list is not to be changed."""
        known = self._known.get(slots)
        if known is not None:
            return known
        table = self._by_byte
        found: list[int] = []
        for position, byte in enumerate(slots.to_bytes((slots.bit_length() + 7) // 8, "little")):
            if byte:
                if position >= len(table):
                    self._extend(position)
                found += table[position][byte]
        if len(self._known) >= _MAX_REMEMBERED:
            self._known.clear()
        self._known[slots] = found
        return found

    def _extend(self, position: int) -> None:
        for known in range(len(self._by_byte), position + 1):
            first = 8 * known
            self._by_byte.append(
                [tuple(first + i for i in range(8) if byte >> i & 1) for byte in range(256)]
            )
