"""What all indexers share: the events they take and what they can be asked."""

from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from dynosim.blocks.hashing import extend_sequence_hashes
from dynosim.blocks.tier import Tier
from dynosim.indexer.answers import IndexCounters, Overlaps
from dynosim.workers.ids import Slot

DEFAULT_TTL_MS = 120_000.0
"""How long an index of guesses takes a block to stay cached."""


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


def is_elsewhere(event: BlockEvent) -> bool:
    """Whether an event is about a slower tier alone: nothing to an index of devices."""
    return event.tier is not None and event.tier is not Tier.DEVICE


def sequence_names(events: Iterable[BlockEvent]) -> dict[int, int]:
    """Engine's block hash -> our sequence hash, of what events leave of nothing."""
    own: dict[int, int] = {}
    for event in events:
        if isinstance(event, Stored):
            before = None if event.parent is None else own[event.parent]
            hashes = extend_sequence_hashes(before, event.local_hashes)
            own.update(zip(event.block_hashes, hashes, strict=True))
        elif isinstance(event, Removed):
            for name in event.block_hashes:
                del own[name]
    return own


def spare_names(taken: Container[int]) -> Iterator[int]:
    """Block hashes that are not in use, for blocks that must be published but are not held."""
    return (name for name in count(1) if name not in taken)


E_contra = TypeVar("E_contra", contravariant=True)


class Index(Protocol[E_contra]):
    """Follows the events of all workers and answers who holds how much of a prompt.

    Workers are slots of a router. Events of one worker must come in order; those of different
    workers are independent. A stored event whose parent is unknown is counted and dropped; so is
    the removal of an unknown block. Storing a block again changes nothing.
    """

    counters: IndexCounters

    def apply(self, worker: Slot, event: E_contra) -> None:
        """Take one event of a worker into account."""
        ...

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks; `blocks` name them from position 0 on."""
        ...

    def remove_worker(self, worker: Slot) -> None:
        """Forget everything about a worker."""
        ...

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        ...


@runtime_checkable
class LaggingIndex(Protocol[E_contra]):
    """An index that may lag behind what workers hold, and what brings it up to date.

    It must err on the side of too much overlap.
    """

    @property
    def index(self) -> Index[E_contra]:
        """What is known so far."""
        ...

    def confirm(self, slots: int, now_ms: float) -> bool:
        """Bring the part of a set of slots up to date; returns whether that changed nothing."""
        ...


class Guess(NamedTuple):
    """What a worker is taken to hold since requests were sent there.

    Forgotten by time: blocks that all expire at `expiry_ms`. By capacity (None): blocks of
    requests in flight, `leases`, and idle `blocks`.
    """

    worker: Slot
    expiry_ms: float | None
    leases: list[tuple[Hashable, list[int]]]
    blocks: list[int]


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

    def snapshot(self) -> list[Guess]:
        """What was learnt, in the order in which it will be forgotten; see `restore`."""
        ...

    def restore(self, snapshot: list[Guess]) -> None:
        """Let an index that has learnt nothing know what another one did."""
        ...


class DeviceIndex(Index[BlockEvent], Protocol):
    """An exact index of what is on devices, which can list what it holds."""

    def names(self, worker: Slot) -> dict[int, int]:
        """Engine's block hash -> our sequence hash, of all that a worker holds."""
        ...
