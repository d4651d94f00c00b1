"""What indexers answer, and what they count.

Workers are small integers, used as bit positions: a set of workers is one Python int, so that
intersecting the holders of two blocks is a single operation for a thousand workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from dynosim.workers.ids import Slot


def members(workers: int) -> Iterator[Slot]:
    """The workers in a set, ascending."""
    while workers:
        lowest = workers & -workers
        yield Slot(lowest.bit_length() - 1)
        workers ^= lowest


class Overlaps:
    """How many leading blocks of a query each worker holds.

    `classes` lists (workers, depth): disjoint sets of workers, depths at least 1 and increasing.
    Workers in no class hold not even the first block.
    """

    __slots__ = ("classes",)

    def __init__(self, classes: list[tuple[int, int]]) -> None:
        self.classes = classes

    def depth_of(self, worker: int) -> int:
        """Leading blocks that `worker` holds."""
        for workers, depth in self.classes:
            if workers >> worker & 1:
                return depth
        return 0

    def by_worker(self) -> dict[Slot, int]:
        """Depth of every worker that holds something."""
        return {worker: depth for mask, depth in self.classes for worker in members(mask)}

    @property
    def best_depth(self) -> int:
        """The deepest match of any worker."""
        return self.classes[-1][1] if self.classes else 0


@dataclass(slots=True)
class IndexCounters:
    """What an indexer has seen and done."""

    stored_blocks: int = 0
    duplicate_blocks: int = 0
    removed_blocks: int = 0
    unknown_parents: int = 0  # stored events dropped, because the block before them is unknown
    unknown_blocks: int = 0  # removals of blocks that were not there
    queries: int = 0
    query_blocks: int = 0
    lookups: int = 0  # table look-ups made by queries

    def by_name(self) -> dict[str, int]:
        """All of them, by their names in reports."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}
