"""Event streams that may lose, repeat or reorder messages, and how both ends recover.

A worker numbers its events 0, 1, 2, ... and keeps the last of them, and what it holds now. A router
that misses a number asks for the events from there; if they are gone, it gets everything the worker
holds instead. Pure: sending, asking and waiting are the drivers' part.
"""

from collections import deque
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

from dynosim.blocks.tier import Tier
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored

MAX_EARLY = 4096
"""Events kept by a stream while it waits for a missing one."""
MIN_PLACES = 1024  # so many may be kept anyway
PRUNED_SHARE = 4  # places kept per one needed, before the others are forgotten


Event = TypeVar("Event")
"""What a stream numbers: block events, or an engine's messages with several of them."""


class Events(NamedTuple, Generic[Event]):
    """Answer of a worker: the events from the number asked for up to the newest."""

    first_id: int
    events: list[Event]


class Dump(NamedTuple, Generic[Event]):
    """Answer of a worker that no longer has the events: all it holds after event `last_id`.

    `events` lead from nothing to there: stored ones, parents before children, and the removal of
    blocks that were published only because others stand behind them.
    """

    last_id: int
    events: list[Event]


class TooNew(NamedTuple):
    """Answer of a worker that has not got so far; it must have started anew."""

    next_id: int


Answer = Events[BlockEvent] | Dump[BlockEvent] | TooNew


class EventBuffer:
    """The worker's end: numbers events, keeps the last `capacity`, and knows what is held."""

    def __init__(self, capacity: int) -> None:
        self.next_id = 0
        self._events: deque[BlockEvent] = deque(maxlen=capacity)
        self._held = HeldBlocks()

    def append(self, event: BlockEvent) -> int:
        """Take an event in; returns its number."""
        self._events.append(event)
        self._held.apply(event)
        self.next_id += 1
        return self.next_id - 1

    def replay(self, first_id: int) -> Answer:
        """What a router needs that has everything before event `first_id`."""
        if first_id > self.next_id:
            return TooNew(self.next_id)
        first_kept = self.next_id - len(self._events)
        if first_id >= first_kept:
            kept = list(self._events)
            return Events(first_id, kept[first_id - first_kept :])
        return self.dump()

    def dump(self) -> Dump[BlockEvent]:
        """Everything held now, the fastest tier first."""
        return Dump(self.next_id - 1, self._held.dump())


class HeldBlocks:
    """What one worker holds, by tier, and where each block stands."""

    __slots__ = ("_max_places", "_places", "_tiers")

    def __init__(self) -> None:
        self._tiers: dict[Tier, set[int]] = {tier: set() for tier in Tier}
        # Block -> (block before, local hash). A block evicted before those behind it keeps its
        # place, which a dump must tell; places that nobody needs are forgotten now and then.
        self._places: dict[int, tuple[int | None, int]] = {}
        self._max_places = MIN_PLACES

    def apply(self, event: BlockEvent) -> None:
        """Take an event into account; a stored one whose parent is in no tier changes nothing.

        But a slower tier may follow an eviction, the last block first: its parent's name will do.
        """
        if isinstance(event, Stored):
            self._store(event)
        elif isinstance(event, Removed):
            self._tiers[event.tier].difference_update(event.block_hashes)
        else:
            for tier in Tier if event.tier is None else (event.tier,):
                self._tiers[tier].clear()
            if event.tier is None:
                self._places.clear()

    def dump(self) -> list[BlockEvent]:
        """Events that lead an empty index to the same blocks, the fastest tier first."""
        events: list[BlockEvent] = []
        faster: set[int] = set()
        for tier, held in self._tiers.items():
            needed = self._with_ancestors(held, faster)
            events += self._chains(needed, tier)
            evicted = [block for block in needed if block not in held]
            if evicted:
                events.append(Removed(evicted, tier))
            faster |= held
        return events

    def _store(self, event: Stored) -> None:
        parent, names = event.parent, event.block_hashes
        if parent is not None and not any(parent in held for held in self._tiers.values()):
            if event.tier is Tier.DEVICE or parent not in self._places:
                return
        before = chain((parent,), names)
        places = zip(before, event.local_hashes, strict=False)  # the last one is before nothing
        self._places.update(zip(names, places, strict=True))
        self._tiers[event.tier].update(names)
        if len(self._places) > self._max_places:
            self._prune()

    def _prune(self) -> None:
        """Forget places that no held block stands behind."""
        needed = self._with_ancestors(set().union(*self._tiers.values()), set())
        self._places = {block: self._places[block] for block in needed}
        self._max_places = max(MIN_PLACES, PRUNED_SHARE * len(needed))

    def _with_ancestors(self, held: set[int], known: set[int]) -> set[int]:
        """Blocks and those before them, as far back as the first that is known."""
        places = self._places
        needed = set(held)
        newest = held
        while newest:  # twice or so, because blocks before held ones are nearly always held
            before = {places[block][0] for block in newest} - needed - known
            newest = {block for block in before if block is not None}
            needed |= newest
        return needed

    def _chains(self, blocks: set[int], tier: Tier) -> list[Stored]:
        """Stored events of blocks, parents before children, as few as forks allow."""
        places = self._places
        followers: dict[int | None, list[int]] = {}
        pending: list[int] = []
        for block in blocks:
            parent = places[block][0]
            if parent in blocks:
                followers.setdefault(parent, []).append(block)
            else:
                pending.append(block)
        events: list[Stored] = []
        while pending:
            names = [pending.pop()]
            after = followers.get(names[-1], [])
            while len(after) == 1:
                names += after
                after = followers.get(names[-1], [])
            local = [places[block][1] for block in names]
            events.append(Stored(places[names[0]][0], names, local, tier))
            pending += after
        return events


class EventStream(Generic[Event]):
    """A router's end of one worker's stream: hands events on in order, once, without gaps.

    `missing` is the number to ask the worker for, None while all is well. A router that joins late
    starts with a gap. A worker that starts anew needs a new stream: its numbers alone cannot tell
    its events from repeated ones, unless its answer is `TooNew`.
    """

    def __init__(self, max_early: int = MAX_EARLY) -> None:
        self.next_id = 0
        self.num_gaps = 0
        self.num_repeats = 0
        self.num_replays = 0
        self.num_dumps = 0
        self.num_lost = 0  # events that had not come by themselves when an answer made up for them
        self._newest_id = -1  # the highest number seen
        self._early: dict[int, Event] = {}
        self._max_early = max_early

    @property
    def missing(self) -> int | None:
        """The first event not there yet, if later ones are."""
        return self.next_id if self._newest_id >= self.next_id else None

    def receive(self, event_id: int, event: Event) -> list[Event]:
        """Take a message; returns the events to apply now."""
        if event_id < self.next_id or event_id in self._early:
            self.num_repeats += 1
            return []
        if event_id > self.next_id:
            self.num_gaps += self.missing is None
            self._newest_id = max(self._newest_id, event_id)
            if len(self._early) < self._max_early:  # the answer will bring the others
                self._early[event_id] = event
            return []
        self.next_id += 1
        return [event, *self._take_early()]

    def resync(self, answer: Events[Event] | Dump[Event] | TooNew) -> list[Event | Cleared]:
        """Take a worker's answer; returns the events to apply now.

        An answer to an older question does no harm; `missing` tells whether to ask again.
        """
        if isinstance(answer, TooNew):  # another life of the worker: what was known is void
            self.num_dumps += 1
            self.next_id = 0
            self._newest_id = answer.next_id - 1
            self._early.clear()
            return [Cleared()]
        ready: list[Event | Cleared] = []
        if isinstance(answer, Dump):
            self.num_dumps += 1
            if answer.last_id >= self.next_id:
                ready = [Cleared(), *answer.events]
                self._skip_to(answer.last_id + 1)
        else:
            self.num_replays += 1
            num_known = self.next_id - answer.first_id
            if 0 <= num_known < len(answer.events):
                ready = [*answer.events[num_known:]]
                self._skip_to(self.next_id + len(ready))
        return [*ready, *self._take_early()]

    def give_up(self) -> list[Event | Cleared]:
        """What is missing will never come: go on without it, with nothing known of the worker."""
        first_there = min(self._early, default=self._newest_id + 1)
        nothing: Dump[Event] = Dump(first_there - 1, [])
        return self.resync(nothing)

    def _skip_to(self, next_id: int) -> None:
        """An answer stands for all events before `next_id`."""
        covered = [event_id for event_id in self._early if event_id < next_id]
        self.num_lost += next_id - self.next_id - len(covered)
        for event_id in covered:
            del self._early[event_id]
        self.next_id = next_id

    def _take_early(self) -> list[Event]:
        ready: list[Event] = []
        while self.next_id in self._early:
            ready.append(self._early.pop(self.next_id))
            self.next_id += 1
        return ready
