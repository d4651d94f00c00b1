"""Finds the cheapest candidates without looking at each one's cost.

With the plain cost function (no temperature, no credit decay, nothing that multiplies) a
candidate's cost is its own part, which only bookings change, less what it would save on this very
request. The savings are the same for whole groups of candidates: those that hold the same leading
blocks and have the same ones active. So it is enough to find the least loaded of each group, unless
not even the least loaded candidate of all would be cheap enough there.
"""

from collections.abc import Mapping
from math import inf

Groups = list[tuple[int, int]]  # (slots, blocks), disjoint


def group_by_savings(
    eligible: int, overlaps: Groups, active: Groups, block_price: float
) -> list[tuple[float, int]]:
    """Groups of eligible slots with what they save.

    An overlapping block saves `block_price`, an active one 1.
    """
    groups: list[tuple[float, int]] = []
    rest = eligible
    for slots, depth in overlaps:
        inside = slots & rest
        if inside:
            rest ^= inside
            groups.append((depth * block_price, inside))
    if rest:
        groups.append((0.0, rest))
    for holders, blocks in active:
        parts: list[tuple[float, int]] = []
        for saving, slots in groups:
            both = slots & holders
            if both:
                parts.append((saving + blocks, both))
            if both != slots:
                parts.append((saving, slots ^ both))
        groups = parts
    return groups


def cheapest(groups: list[tuple[float, int]], own_costs: Mapping[float, int]) -> tuple[int, float]:
    """The slots with the lowest own cost less savings, and that difference.

    `own_costs` tells the slots with a certain own cost.
    """
    levels = sorted(own_costs)
    floor = levels[0]
    lowest = inf
    best = 0
    for saving, group in groups:
        if floor - saving > lowest:
            continue
        for own_cost in levels:
            slots = own_costs[own_cost] & group
            if slots:
                price = own_cost - saving
                if price < lowest:
                    lowest, best = price, slots
                elif price == lowest:
                    best |= slots
                break
    return best, lowest
