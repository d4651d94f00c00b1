"""What engines tell of their prefix caches."""

from dataclasses import dataclass

from dynosim.blocks.tier import Tier


@dataclass(slots=True, init=False)
class KvEvent:
    """Blocks that became hittable in a tier of an engine's prefix cache, or were evicted from it.

    A block is named by its extent's content id and its index inside the extent; content ids below
    zero (`-1 - request index`) are blocks that only one request can produce. `parent` is the
    content id of the extent before (None at the root); only stored events carry it. Blocks of one
    removed event were evicted the last one first. A device holds the leading blocks of an extent; a
    slower tier may hold any of them.
    """

    is_stored: bool
    content: int
    first_block: int
    num_blocks: int
    parent: int | None
    tier: Tier

    def __init__(
        self,
        is_stored: bool,
        content: int,
        first_block: int,
        num_blocks: int,
        parent: int | None,
        tier: Tier = Tier.DEVICE,
    ) -> None:
        self.is_stored = is_stored
        self.content = content
        self.first_block = first_block
        self.num_blocks = num_blocks
        self.parent = parent
        self.tier = tier
