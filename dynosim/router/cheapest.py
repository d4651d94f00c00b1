"""Finds the cheapest candidates without looking at each one's cost.

With the plain cost function (no temperature, no credit decay, nothing that multiplies) a
candidate's cost is its own part, which only bookings change, less what it would save on this very
request. The savings are the same for whole groups of candidates: those that hold the same leading
blocks and have the same ones active. So it is enough to take groups by falling savings, and stop
when not even the least loaded candidate of all could be cheap enough.
"""

from collections.abc import Sequence
from math import inf

from dynosim.router.slots import SlotLists

Groups = list[tuple[int, int]]  # (slots, blocks), disjoint


def group_by_savings(
    eligible: int, overlaps: Groups, active: Groups, block_price: float
) -> list[tuple[float, int]]:
    """Groups of eligible slots with what they save, the largest saving first.

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
    if len(groups) > 1:
        groups.sort(reverse=True)
    return groups


def cheapest(
    groups: list[tuple[float, int]], own_cost: Sequence[float], lists: SlotLists
) -> tuple[list[int], float]:
    """The slots with the lowest own cost less savings, ascending, and that difference."""
    floor = min(own_cost)
    floor_slot = own_cost.index(floor)
    lowest = inf
    best: list[tuple[int, float]] = []  # groups that hold the cheapest, with the own cost
    for saving, group in groups:
        if floor - saving > lowest:
            break
        least = floor if group >> floor_slot & 1 else min([own_cost[s] for s in lists.of(group)])
        price = least - saving
        if price < lowest:
            lowest = price
            best = [(group, least)]
        elif price == lowest:
            best.append((group, least))
    members = [slot for group, least in best for slot in lists.of(group) if own_cost[slot] == least]
    if len(best) > 1:
        members.sort()
    return members, lowest
