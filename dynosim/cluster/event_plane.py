"""How engines' KV events reach the routers' indexes: at once, or late, or not at all.

Engines tell at the end of each step what became cached and what was evicted in it. On the direct
plane everybody knows at that moment. On the delayed plane events travel: each frontend gets each
event after a delay of its own, or never; then the gap in the event ids is noticed and the worker's
buffer asked for what is missing, as a live router does.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any, NamedTuple, Protocol

import numpy as np

from dynosim.cluster.block_names import HashNames
from dynosim.cluster.instant import instant_end
from dynosim.cluster.worker import Worker
from dynosim.indexer.base import BlockEvent
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.stream import EventBuffer, EventStream
from dynosim.records import KvEvent, KvEventLog
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.entries import LoggedRouter

BUFFERED_EVENTS = 4096  # per worker, for replay


class EventPlane(Protocol):
    """Carries events from workers to indexes.

    `is_late`: events take time, so that `refresh` has something to do. `busy` is the set of workers
    with requests in hand, to be kept by whoever places them: others cannot have any news.
    """

    is_late: bool
    busy: int

    def collect(self, worker: Worker, now_ms: float) -> None:
        """Take up what a worker tells at the end of a step or run."""
        ...

    def refresh(self, now_ms: float) -> None:
        """Let the indexes know all that has arrived by now; called before a placement."""
        ...

    def confirm(self, slots: int, now_ms: float) -> bool:
        """Bring what the indexes know of some workers up to date; False if that changed anything.

        `slots` is a set; slot and worker id are the same number in the twin.
        """
        ...

    def finish(self) -> None:
        """Deliver whatever is still to be told or on its way, at the end of a run."""
        ...

    def counters(self) -> dict[str, int]:
        """What happened to events on their way."""
        ...

    def recorded(self) -> KvEventLog | None:
        """All events, if they are recorded."""
        ...


class EventRecorder:
    """Keeps the size of every event, for density plots and conservation checks."""

    def __init__(self) -> None:
        self._times_ms = array("d")
        self._worker_ids = array("q")
        self._num_blocks = array("q")

    def note(self, time_ms: float, worker_id: int, event: KvEvent) -> None:
        """Keep an event."""
        self._times_ms.append(time_ms)
        self._worker_ids.append(worker_id)
        self._num_blocks.append(event.num_blocks if event.is_stored else -event.num_blocks)

    def log(self) -> KvEventLog:
        """All events so far."""
        return KvEventLog(
            np.array(self._times_ms), np.array(self._worker_ids), np.array(self._num_blocks)
        )


class SilentPlane:
    """No index hears of events: they learn from routing decisions, or the mode needs none."""

    is_late = False

    def __init__(self, workers: list[Worker], recorder: EventRecorder | None = None) -> None:
        self.busy = 0
        self._workers = workers
        self._recorder = recorder

    def collect(self, worker: Worker, now_ms: float) -> None:
        """Events are kept if that was asked for."""
        if self._recorder is not None:
            for time_ms, event in worker.take_stamped():
                self._recorder.note(time_ms, worker.worker_id, event)

    def refresh(self, now_ms: float) -> None:
        """Nothing to know."""

    def confirm(self, slots: int, now_ms: float) -> bool:
        """Nothing can change."""
        return True

    def finish(self) -> None:
        """Keep what runs that were cut off have done."""
        for worker in self._workers:
            self.collect(worker, 0.0)

    def counters(self) -> dict[str, int]:
        """Nothing travels."""
        return {}

    def recorded(self) -> KvEventLog | None:
        """All events, if they are recorded."""
        return None if self._recorder is None else self._recorder.log()


Feed = Callable[[int, Sequence[KvEvent]], None]
"""Applies a worker's events to one index, in order."""


def feed_of(router: KvRouter, names: HashNames | None) -> Feed:
    """What hands engine events to a router's index, by extents or block by block."""
    if isinstance(router.index, ExtentIndex) and not isinstance(router, LoggedRouter):
        return router.index.apply_all  # worker ids are slots here

    def apply_all(worker_id: int, events: Sequence[KvEvent]) -> None:
        if names is None:
            router.apply_events(worker_id, 0, events)
        else:
            router.apply_events(worker_id, 0, [names.event(event) for event in events])

    return apply_all


class DirectPlane:
    """Every index hears at once; evictions in the middle of a run are looked up if they matter."""

    is_late = False

    def __init__(self, workers: list[Worker], feeds: list[Feed]) -> None:
        self.busy = 0
        self._workers = workers
        self._feeds = feeds
        # The pools' own lists: they are emptied, never replaced. None without prefix caching.
        self._events = [worker.scheduler.pool.events for worker in workers]

    def collect(self, worker: Worker, now_ms: float) -> None:
        """Tell all indexes."""
        worker_id = worker.worker_id
        events = self._events[worker_id]
        if events:
            for feed in self._feeds:
                feed(worker_id, events)
            events.clear()

    def refresh(self, now_ms: float) -> None:
        """Everything has arrived."""

    def confirm(self, slots: int, now_ms: float) -> bool:
        """Settle the runs of some workers."""
        is_unchanged = True
        slots &= self.busy
        while slots:
            lowest = slots & -slots
            slots ^= lowest
            worker = self._workers[lowest.bit_length() - 1]
            if worker.run_steps > 1 and worker.settle(now_ms) and worker.untold:
                is_unchanged = False
                self.collect(worker, now_ms)
        return is_unchanged

    def finish(self) -> None:
        """Tell what the last steps did."""
        for worker in self._workers:
            self.collect(worker, 0.0)

    def counters(self) -> dict[str, int]:
        """Nothing travels."""
        return {}

    def recorded(self) -> None:
        """Times are not known here."""


@dataclass(frozen=True, slots=True)
class DelaySettings:
    """Delay, loss and disorder of events on their way to a frontend."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # further delay of each event, uniform: events overtake each other
    loss: float = 0.0  # chance that an event is lost
    recovery_ms: float = 10.0  # from noticing a gap to having what was missing


class Message(NamedTuple):
    """Something that reaches a frontend: an event, or the answer to a question about a gap."""

    due_ms: float
    number: int  # in order of sending
    frontend: int
    worker_id: int
    event_id: int  # -1: an answer is due
    payload: Any


class DelayedPlane:
    """Events travel; with loss or jitter they are numbered, and gaps are repaired."""

    is_late = True

    def __init__(
        self,
        workers: list[Worker],
        feeds: list[Feed],
        settings: DelaySettings,
        *,
        routers: list[KvRouter] | None,
        names: HashNames | None,
        seed: int,
        recorder: EventRecorder | None = None,
    ) -> None:
        self.busy = 0
        self.num_lost = 0
        self._recorder = recorder
        self._workers = workers
        self._feeds = feeds
        self._settings = settings
        self._routers = routers
        self._names = names
        self._generator = Random(f"{seed}/events")
        self._messages: list[Message] = []
        self._num_sent = 0
        is_numbered = settings.loss > 0 or settings.jitter_ms > 0
        self._buffers = [EventBuffer(BUFFERED_EVENTS) for _ in workers] if is_numbered else None
        self.streams: list[list[EventStream[BlockEvent]]] = (
            [[EventStream() for _ in workers] for _ in feeds] if is_numbered else []
        )

    def collect(self, worker: Worker, now_ms: float) -> None:
        """Send what a worker tells on its way to every frontend."""
        for time_ms, event in worker.take_stamped():
            if self._recorder is not None:
                self._recorder.note(time_ms, worker.worker_id, event)
            if self._buffers is None:
                for frontend in range(len(self._feeds)):
                    self._send(time_ms + self._settings.delay_ms, frontend, worker, 0, event)
            else:
                self._send_numbered(time_ms, worker, event)

    def refresh(self, now_ms: float) -> None:
        """Let every worker tell what it has done by now, and deliver what is due."""
        for worker in self._workers:
            if worker.settle(now_ms):
                self.collect(worker, now_ms)
        self._deliver(now_ms)

    def _deliver(self, now_ms: float) -> None:
        messages = self._messages
        until_ms = instant_end(now_ms)
        while messages and messages[0].due_ms <= until_ms:
            message = heappop(messages)
            if self._buffers is None:
                self._feeds[message.frontend](message.worker_id, (message.payload,))
            else:
                self._receive(message)

    def confirm(self, slots: int, now_ms: float) -> bool:
        """`refresh` has done all there is to do."""
        return True

    def finish(self) -> None:
        """Let everything arrive, however long it takes."""
        for worker in self._workers:
            self.collect(worker, 0.0)
        self._deliver(float("inf"))

    def counters(self) -> dict[str, int]:
        """Losses and repairs, all frontends together."""
        streams = [stream for streams in self.streams for stream in streams]
        return {
            "events_lost": self.num_lost,
            "event_gaps": sum(stream.num_gaps for stream in streams),
            "event_replays": sum(stream.num_replays for stream in streams),
            "event_dumps": sum(stream.num_dumps for stream in streams),
        }

    def recorded(self) -> KvEventLog | None:
        """All events, if they are recorded."""
        return None if self._recorder is None else self._recorder.log()

    def _send(
        self, due_ms: float, frontend: int, worker: Worker, event_id: int, payload: Any
    ) -> None:
        self._num_sent += 1
        message = Message(due_ms, self._num_sent, frontend, worker.worker_id, event_id, payload)
        heappush(self._messages, message)

    def _send_numbered(self, time_ms: float, worker: Worker, event: KvEvent) -> None:
        assert self._buffers is not None and self._names is not None
        settings, draw = self._settings, self._generator.random
        block_event = self._names.event(event)
        event_id = self._buffers[worker.worker_id].append(block_event)
        for frontend in range(len(self._feeds)):
            if settings.loss and draw() < settings.loss:
                self.num_lost += 1
                continue
            due_ms = time_ms + settings.delay_ms
            if settings.jitter_ms:
                due_ms += draw() * settings.jitter_ms
            self._send(due_ms, frontend, worker, event_id, block_event)

    def _receive(self, message: Message) -> None:
        """Take a message into account; a new gap is asked about."""
        assert self._buffers is not None
        worker_id = message.worker_id
        stream = self.streams[message.frontend][worker_id]
        had_gap = stream.missing is not None
        if message.event_id >= 0:
            events = stream.receive(message.event_id, message.payload)
        elif stream.missing is None:
            return  # what was missing has come by itself
        else:
            events = stream.resync(self._buffers[worker_id].replay(stream.missing))
            had_gap = False
        self._apply(message.frontend, worker_id, events)
        if stream.missing is not None and not had_gap:
            due_ms = message.due_ms + self._settings.recovery_ms
            self._send(due_ms, message.frontend, self._workers[worker_id], -1, None)

    def _apply(self, frontend: int, worker_id: int, events: Sequence[BlockEvent]) -> None:
        assert self._routers is not None
        self._routers[frontend].apply_events(worker_id, 0, events)
