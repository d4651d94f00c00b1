"""What all indexers share: the events they take and the answers they give.

Workers are small integers, used as bit positions: a set of workers is one Python int, so that
intersecting the holders of two blocks is a single operation for a thousand workers.
"""

from collections.abc import Container, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import NamedTuple, Protocol, runtime_checkable


class Tier(IntEnum):
    """Where a worker keeps a block, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class Stored(NamedTuple):
    """Consecutive blocks became available; `parent` is the block before the first (None: root).

    `block_hashes` are the engine's own names, opaque and different for equal blocks after different
    prefixes; `local_hashes` name the content of each block alone. Both have the same length.
    """

    parent: int | None
    block_hashes: Sequence[int]
    local_hashes: Sequence[int]
    tier: Tier = Tier.DEVICE


class Removed(NamedTuple):
    """Blocks were evicted."""

    block_hashes: Sequence[int]
    tier: Tier = Tier.DEVICE


class Cleared(NamedTuple):
    """A whole tier of the worker was emptied; None: all tiers."""

    tier: Tier | None = None


BlockEvent = Stored | Removed | Cleared


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

    def by_worker(self) -> dict[int, int]:
        """Depth of every worker that holds something."""
        return {worker: depth for mask, depth in self.classes for worker in members(mask)}

    @property
    def best_depth(self) -> int:
        """The deepest match of any worker."""
        return self.classes[-1][1] if self.classes else 0


def spare_names(taken: Container[int]) -> Iterator[int]:
    """Block hashes that are not in use, for blocks that must be told of but are not held."""
    return (name for name in count(1) if name not in taken)


def members(workers: int) -> Iterator[int]:
    """The workers in a set, ascending."""
    while workers:
        lowest = workers & -workers
        yield lowest.bit_length() - 1
        workers ^= lowest


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


class OverlapSource(Protocol):
    """Anything that tells who holds how much of a prompt."""

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks; `blocks` name them from position 0 on."""
        ...

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        ...


@runtime_checkable
class RoutingFollower(Protocol):
    """An index that learns from routing decisions instead of, or besides, from events."""

    def expire(self, now_ms: float) -> None:
        """Forget what is too old; called before each question."""
        ...

    def note_routed(
        self, worker: int, request_id: Hashable, blocks: Sequence[int], now_ms: float
    ) -> None:
        """A prompt was sent to a worker, which will hold its blocks."""
        ...

    def note_end(self, request_id: Hashable, now_ms: float) -> None:
        """A request ended: its blocks are in use no longer."""
        ...


class Indexer(OverlapSource, Protocol):
    """Follows the block events of all workers and answers who holds how much of a prompt.

    Events of one worker must come in order; those of different workers are independent. A stored
    event whose parent is unknown is counted and dropped; so is the removal of an unknown block.
    Storing a block again changes nothing.
    """

    counters: IndexCounters

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account."""
        ...

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        ...
