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
            rest ^= inside
            if active:
                _split(inside, depth * block_price, active, groups)
            else:
                groups.append((depth * block_price, inside))
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
) -> tuple[Sequence[int], float]:
    """The slots with the lowest own cost less savings, ascending, and that difference."""
    floor = min(own_cost)
    lowest = float("inf")
    best: list[tuple[Sequence[int], float]] = []  # groups that hold the cheapest, with the own cost
    for saving, slots in groups:
        if floor - saving > lowest:
            break
        inside = lists.of(slots)
        least = min([own_cost[slot] for slot in inside])
        if least - saving < lowest:
            lowest = least - saving
            best = [(inside, least)]
        elif least - saving == lowest:
            best.append((inside, least))
    if len(best) == 1:
        members, least = best[0]
        if len(members) > 1:
            members = [slot for slot in members if own_cost[slot] == least]
        return members, lowest
    return sorted(
        slot for inside, least in best for slot in inside if own_cost[slot] == least
    ), lowest
