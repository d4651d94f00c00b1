"""Slots in the order of their own costs, kept in order while the costs change."""

from bisect import bisect_left
from math import inf

from dynosim.workers.ids import Slot


class CostLevels:
    """What each slot costs any request, and which slots have each of the costs, lowest first.

    A change of one slot takes a binary search and moves a few machine words: with a thousand slots
    it costs hardly more than with ten.
    """

    def __init__(self) -> None:
        self.cost_of: list[float] = []  # by slot
        self.costs: list[float] = []  # all different, ascending
        self.holders: list[int] = []  # the slots that have them
        self._bits: list[int] = []  # by slot: the set of it alone

    def add(self) -> None:
        """One more slot, of infinite cost."""
        slot = Slot(len(self.cost_of))
        self.cost_of.append(inf)
        self._bits.append(1 << slot)
        self._enter(slot, inf)

    def change(self, slot: Slot, cost: float) -> None:
        """Note what a slot costs from now on."""
        before = self.cost_of[slot]
        if cost == before:
            return
        self.cost_of[slot] = cost
        position = bisect_left(self.costs, before)
        left = self.holders[position] ^ self._bits[slot]
        if left:
            self.holders[position] = left
        else:
            del self.costs[position], self.holders[position]
        self._enter(slot, cost)

    def lowest_of(self, slots: int) -> tuple[float, int]:
        """The lowest cost in a set of slots, found by looking at each, and who has it."""
        lowest = inf
        cheapest = 0
        while slots:
            bit = slots & -slots
            slots ^= bit
            cost = self.cost_of[bit.bit_length() - 1]
            if cost < lowest:
                lowest, cheapest = cost, bit
            elif cost == lowest:
                cheapest |= bit
        return lowest, cheapest

    def by_cost(self) -> dict[float, int]:
        """Cost -> the slots that have it, ascending."""
        return dict(zip(self.costs, self.holders, strict=True))

    def _enter(self, slot: Slot, cost: float) -> None:
        costs = self.costs
        position = bisect_left(costs, cost)
        if position < len(costs) and costs[position] == cost:
            self.holders[position] |= self._bits[slot]
        else:
            costs.insert(position, cost)
            self.holders.insert(position, self._bits[slot])
