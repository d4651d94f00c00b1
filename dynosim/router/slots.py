"""Sets of slots: bit i of an integer stands for slot i."""

from dynosim.workers.ids import Slot


def nth_slot(slots: int, number: int) -> Slot:
    """The member before which, in ascending order, come `number` others; found by halving."""
    if number == 0:
        return Slot((slots & -slots).bit_length() - 1)
    first = 0
    width = slots.bit_length()
    while width > 1:
        half = width >> 1
        low = slots & ((1 << half) - 1)
        num_low = low.bit_count()
        if number < num_low:
            slots, width = low, half
        else:
            slots >>= half
            number -= num_low
            first += half
            width -= half
    return Slot(first)
