"""Finds the cheapest candidates without looking at each one's cost.

With the plain cost function (no temperature, no credit decay, nothing that multiplies) a
candidate's cost is its own part, which only bookings change, less what it would save on this very
request. The savings are the same for whole groups of candidates: those that hold the same leading
blocks and have the same ones active. So it is enough to take groups by falling savings, and stop
when not even the least loaded candidate of all could be cheap enough.
"""

from collections.abc import Sequence

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
        inside = slots & eligible
        if inside:
            rest &= ~inside
            _split(inside, depth * block_price, active, groups)
    if rest:
        _split(rest, 0.0, active, groups)
    groups.sort(reverse=True)
    return groups


def _split(slots: int, saving: float, active: Groups, groups: list[tuple[float, int]]) -> None:
    for holders, blocks in active:
        both = slots & holders
        if both:
            groups.append((saving + blocks, both))
            slots ^= both
    if slots:
        groups.append((saving, slots))


def cheapest(
    groups: list[tuple[float, int]], own_cost: Sequence[float], lists: SlotLists
) -> tuple[list[int], float]:
    """The slots with the lowest own cost less savings, ascending, and that difference."""
    floor = min(own_cost)
    lowest = float("inf")
    best: list[int] = []
    for saving, slots in groups:
        if floor - saving > lowest:
            break
        if slots & (slots - 1):
            inside = lists.of(slots)
            costs = [own_cost[slot] for slot in inside]
            least = min(costs)
            cost = least - saving
            if cost > lowest:
                continue
            if costs.count(least) == 1:
                found = [inside[costs.index(least)]]
            else:
                found = [slot for slot in inside if own_cost[slot] == least]
        else:
            found = [slots.bit_length() - 1]
            cost = own_cost[found[0]] - saving
        if cost < lowest:
            lowest, best = cost, found
        elif cost == lowest:
            best = sorted(best + found)
    return best, lowest
