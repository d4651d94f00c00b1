"""Finds the cheapest candidates without looking at each one's cost.

With the plain cost function (no temperature, no credit decay, nothing that multiplies) a
candidate's cost is its own part, which only bookings change, less what it would save on this very
request. The savings are the same for whole groups of candidates: those that hold the same leading
blocks and have the same ones active. So it is enough to find the least loaded of each group, unless
not even the least loaded candidate of all would be cheap enough there.
"""

from math import inf

from dynosim.router.levels import CostLevels

LEVELS_IN_VAIN = 8
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
    return with_savings(groups, active, 1.0)


def with_savings(
    groups: list[tuple[float, int]], holders: Groups, block_price: float
) -> list[tuple[float, int]]:
    """The same slots, grouped by what they save if a block that they hold saves `block_price`."""
    for slots, blocks in holders:
        parts: list[tuple[float, int]] = []
        for saving, group in groups:
            both = group & slots
            if both:
                parts.append((saving + blocks * block_price, both))
            if both != group:
                parts.append((saving, group ^ both))
        groups = parts
    return groups


def cheapest(groups: list[tuple[float, int]], own: CostLevels) -> tuple[int, float]:
    """The slots with the lowest own cost less savings, and that difference.

    Of each group the lowest level is looked for from below; in a small one that sits high up it is
    quicker to look at every member, once about as many levels have been tried in vain.
    """
    costs, holders = own.costs, own.holders
    lowest = inf
    best = 0
    for saving, group in groups:
        own_cost, slots = inf, 0
        for level, own_cost in enumerate(costs):
            if own_cost - saving > lowest:
                break
            slots = holders[level] & group
            if slots:
                break
            if (level + 1) % LEVELS_IN_VAIN == 0 and group.bit_count() <= level:
                own_cost, slots = own.lowest_of(group)
                break
        price = own_cost - saving
        if slots and price < lowest:
            lowest, best = price, slots
        elif slots and price == lowest:
            best |= slots
    return best, lowest
