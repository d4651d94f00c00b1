"""Event streams that may lose, repeat or reorder messages, and how both ends recover.

A worker numbers its events 0, 1, 2, ... and keeps the last of them, and what it holds now. A router
that misses a number asks for the events from there; if they are gone, it gets everything the worker
holds instead. Pure: sending, asking and waiting are the drivers' part.
"""

from collections import deque
from typing import NamedTuple

from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored, Tier
from dynosim.indexer.compressed import CompressedRadixIndex

MAX_EARLY = 4096
"""Events kept by a stream while it waits for a missing one."""


class Events(NamedTuple):
    """Answer of a worker: the events from the number asked for up to the newest."""

    first_id: int
    events: list[BlockEvent]


class Dump(NamedTuple):
    """Answer of a worker that no longer has the events: all it holds after event `last_id`."""

    last_id: int
    events: list[Stored]


class TooNew(NamedTuple):
    """Answer of a worker that has not got so far; it must have started anew."""

    next_id: int


Answer = Events | Dump | TooNew


class EventBuffer:
    """The worker's end: numbers events, keeps the last `capacity`, and knows what is held."""

    def __init__(self, capacity: int) -> None:
        self.next_id = 0
        self._events: deque[BlockEvent] = deque(maxlen=capacity)
        self._held = {tier: CompressedRadixIndex() for tier in Tier}

    def append(self, event: BlockEvent) -> int:
        """Take an event in; returns its number."""
        self._events.append(event)
        for tier in Tier if event.tier is None else (event.tier,):
            self._held[tier].apply(0, _on_device(event))
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

    def dump(self) -> Dump:
        """Everything held now, parents before children, the fastest tier first."""
        events = [
            stored._replace(tier=tier) for tier in Tier for stored in self._held[tier].dump(0)
        ]
        return Dump(self.next_id - 1, events)


class EventStream:
    """A router's end of one worker's stream: hands events on in order, once, without gaps.

    `missing` is the number to ask the worker for, None while all is well. A router that joins late
    starts with a gap.
    """

    def __init__(self, max_early: int = MAX_EARLY) -> None:
        self.next_id = 0
        self.num_gaps = 0
        self.num_repeats = 0
        self.num_replays = 0
        self.num_dumps = 0
        self._early: dict[int, BlockEvent] = {}
        self._max_early = max_early

    @property
    def missing(self) -> int | None:
        """The first event not there yet, if later ones are."""
        return self.next_id if self._early else None

    def receive(self, event_id: int, event: BlockEvent) -> list[BlockEvent]:
        """Take a message; returns the events to apply now."""
        if event_id < self.next_id or event_id in self._early:
            self.num_repeats += 1
            return []
        if event_id > self.next_id:
            self.num_gaps += not self._early
            if len(self._early) < self._max_early:  # the answer will bring the others
                self._early[event_id] = event
            return []
        self.next_id += 1
        return [event, *self._take_early()]

    def resync(self, answer: Answer) -> list[BlockEvent]:
        """Take a worker's answer; returns the events to apply now."""
        if isinstance(answer, TooNew):  # another life of the worker: what was known is void
            self.num_dumps += 1
            self.next_id = 0
            self._early.clear()
            return [Cleared()]
        ready: list[BlockEvent] = []
        if isinstance(answer, Dump):
            self.num_dumps += 1
            if answer.last_id >= self.next_id:
                ready = [Cleared(), *answer.events]
                self.next_id = answer.last_id + 1
        else:
            self.num_replays += 1
            skipped = self.next_id - answer.first_id
            ready = answer.events[max(skipped, 0) :]
            self.next_id += len(ready)
        for event_id in [event_id for event_id in self._early if event_id < self.next_id]:
            del self._early[event_id]
        return ready + self._take_early()

    def _take_early(self) -> list[BlockEvent]:
        ready: list[BlockEvent] = []
        while self.next_id in self._early:
            ready.append(self._early.pop(self.next_id))
            self.next_id += 1
        return ready


def _on_device(event: BlockEvent) -> BlockEvent:
    """The event as an index of a single tier takes it."""
    if isinstance(event, Cleared):
        return Cleared()
    if isinstance(event, Removed):
        return Removed(event.block_hashes)
    return event._replace(tier=Tier.DEVICE)
