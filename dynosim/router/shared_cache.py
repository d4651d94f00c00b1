"""What a store that all workers share holds of a prompt, beyond what each candidate has itself.

A request brings what the store held of it when it came: ranges of blocks, `(first, end)` each,
ascending and apart. Who has more of the prompt itself needs less of that.
"""

from collections.abc import Sequence

from dynosim.indexer.tiers import TierOverlaps
from dynosim.router.cheapest import Groups, group_by_savings, with_savings

Ranges = Sequence[tuple[int, int]]


def blocks_beyond(ranges: Ranges, depth: int) -> int:
    """How many blocks of a prompt the ranges hold from block `depth` on without a gap."""
    for first, end in ranges:
        if first <= depth < end:
            return end - depth
    return 0


def shared_overlaps(ranges: Ranges, own: TierOverlaps, eligible: int) -> Groups:
    """Eligible slots by how many blocks each would load from the store behind its own."""
    depths = group_by_savings(eligible, own.device.classes, [], 1.0)
    for overlaps in own[1:]:
        depths = with_savings(depths, overlaps.classes, 1.0)
    found = [(slots, blocks_beyond(ranges, int(depth))) for depth, slots in depths]
    return [(slots, blocks) for slots, blocks in found if blocks]
