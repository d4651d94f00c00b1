"""How engines' KV events reach the routers' indexes: at once, or late, or not at all.

Engines publish at the end of each step what became cached and what was evicted in it. On the direct
plane everybody knows at that moment. On the delayed plane events travel: each frontend gets what
was published in a step as one message, after a delay of its own, or never; then the gap in the
event ids is noticed and the worker's buffer asked for what is missing, as a live router does. What
becomes of a message depends on its worker, its number there and the frontend, not on when the twin
collects it.
"""

from array import array
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from random import Random
from typing import NamedTuple, Protocol

import numpy as np

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import Tier
from dynosim.cluster.block_names import HashNames
from dynosim.cluster.event_faults import EventFault, EventFaults
from dynosim.cluster.frontends import FrontendRouter
from dynosim.cluster.pool import Worker
from dynosim.engine.engine import StampedEvent
from dynosim.engine.instant import instant_end
from dynosim.errors import InvariantError
from dynosim.indexer.base import BlockEvent
from dynosim.indexer.stream import EventBuffer, EventStream
from dynosim.records import KvEventLog
from dynosim.router.spec import DelaySpec
from dynosim.workers.ids import Slot, WorkerId

BUFFERED_EVENTS = 4096  # per worker, for replay


class EventPlane(Protocol):
    """Carries events from workers to the routers of frontends.

    `is_late`: events take time, so that `refresh` has something to do. `busy` is the set of slots
    of workers with requests in flight, to be kept by the placer: others cannot have any
    news. Routers that receive the same workers in the same order give them the same slots.
    """

    is_late: bool
    busy: int

    def serve(self, frontends: Sequence[FrontendRouter]) -> None:
        """Carry events to these frontends from now on."""
        ...

    def join(self, worker: Worker, slot: Slot) -> None:
        """Carry a worker's events; it has this slot in all routers."""
        ...

    def leave(self, worker: Worker, slot: Slot, now_ms: float) -> None:
        """Let a worker publish what it has done by now; later events are recorded at most."""
        ...

    def collect(self, worker: Worker, now_ms: float) -> object:
        """Take up what a worker publishes at the end of a step or run."""
        ...

    def refresh(self, now_ms: float) -> None:
        """Let the indexes know all that has arrived by now; called before a placement."""
        ...

    def finish(self) -> None:
        """Deliver all that is still to be published or in flight, at the end of a run."""
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
        self._tiers = array("b")

    def note(self, time_ms: float, worker_id: int, event: KvEvent) -> None:
        """Keep an event."""
        self._times_ms.append(time_ms)
        self._worker_ids.append(worker_id)
        self._num_blocks.append(event.num_blocks if event.is_stored else -event.num_blocks)
        self._tiers.append(event.tier)

    def log(self) -> KvEventLog:
        """All events so far."""
        tiers = np.array(self._tiers, np.int64)
        return KvEventLog(
            np.array(self._times_ms),
            np.array(self._worker_ids),
            np.array(self._num_blocks),
            tiers if tiers.any() else None,
        )


class SilentPlane:
    """No index receives events: they learn from routing decisions, or the mode needs none."""

    is_late = False

    def __init__(self, recorder: EventRecorder | None = None) -> None:
        self.busy = 0
        self._workers: list[Worker] = []
        self._recorder = recorder

    def serve(self, frontends: Sequence[FrontendRouter]) -> None:
        """Nobody receives any."""

    def join(self, worker: Worker, slot: Slot) -> None:
        """Events of a worker may have to be kept."""
        self._workers.append(worker)

    def leave(self, worker: Worker, slot: Slot, now_ms: float) -> None:
        """Its events are kept all the same."""

    def collect(self, worker: Worker, now_ms: float) -> None:
        """Events are kept if that was asked for."""
        if self._recorder is not None:
            for time_ms, event in worker.engine.take_stamped():
                self._recorder.note(time_ms, worker.worker_id, event)

    def refresh(self, now_ms: float) -> None:
        """Nothing to know."""

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


class DirectPlane:
    """Every index receives at once; evictions amid a run are looked up if they matter."""

    is_late = False

    def __init__(self) -> None:
        self.busy = 0
        self._now_ms = 0.0
        self._frontends: Sequence[FrontendRouter] = ()
        self._workers: dict[Slot, Worker] = {}

    def serve(self, frontends: Sequence[FrontendRouter]) -> None:
        """Tell these frontends from now on."""
        self._frontends = frontends

    def join(self, worker: Worker, slot: Slot) -> None:
        """Tell of a worker's events."""
        self._workers[slot] = worker

    def leave(self, worker: Worker, slot: Slot, now_ms: float) -> None:
        """Nobody asks any more what its runs have done."""
        if worker.engine.settle(now_ms):
            self.collect(worker, now_ms)
        del self._workers[slot]

    def collect(self, worker: Worker, now_ms: float) -> bool:
        """Publish a worker's events to all routers; returns whether there were any."""
        events = worker.engine.core.take_events()
        if events:
            self._now_ms = now_ms
            for frontend in self._frontends:
                frontend.feed(worker.worker_id, events, now_ms)
        return bool(events)

    def refresh(self, now_ms: float) -> None:
        """Everything has arrived."""

    def settle(self, slots: int, now_ms: float) -> bool:
        """Let runs of the workers with these slots publish what they have done; False: any did."""
        is_unchanged = True
        slots &= self.busy
        while slots:
            lowest = slots & -slots
            slots ^= lowest
            worker = self._workers[Slot(lowest.bit_length() - 1)]
            engine = worker.engine
            if engine.run_steps > 1 and engine.settle(now_ms):
                is_unchanged &= not self.collect(worker, now_ms)
        return is_unchanged

    def finish(self) -> None:
        """Tell what the last steps did; then forget the routers, whose indexes know the plane."""
        for worker in self._workers.values():
            self.collect(worker, self._now_ms)
        self._frontends = ()

    def counters(self) -> dict[str, int]:
        """Nothing travels."""
        return {}

    def recorded(self) -> None:
        """Times are not known here."""


class Message(NamedTuple):
    """Something that reaches a frontend: events, or the answer to a question about a gap."""

    due_ms: float
    number: int  # in order of sending
    frontend: int
    worker_id: WorkerId
    first_id: int  # of its events, if they are numbered; -1: an answer is due
    events: KvEvent | list[BlockEvent]  # block by block, if they are numbered


class DelayedPlane:
    """Events travel; if some may be lost or overtaken they are numbered, and gaps are repaired."""

    is_late = True

    def __init__(
        self,
        settings: DelaySpec,
        *,
        names: HashNames | None,
        seed: int,
        recorder: EventRecorder | None = None,
    ) -> None:
        self.busy = 0
        self.num_lost = 0
        self._recorder = recorder
        self._workers: list[Worker] = []
        self._frontends: Sequence[FrontendRouter] = ()
        self._settings = settings
        self._names = names
        self._seed = seed
        self._draws: dict[WorkerId, list[Random]] = {}  # of each frontend
        self._messages: list[Message] = []
        self._num_sent = 0
        self.is_numbered = settings.is_numbered
        self._faults = EventFaults(seed)
        self._buffers: dict[WorkerId, EventBuffer] = {}
        self._streams: list[dict[WorkerId, EventStream[BlockEvent]]] = []  # by frontend

    def serve(self, frontends: Sequence[FrontendRouter]) -> None:
        """Carry events to these frontends from now on."""
        self._frontends = frontends
        self._streams = [{} for _ in frontends]

    def join(self, worker: Worker, slot: Slot) -> None:
        """Carry a worker's events; it numbers them if some may be lost or overtaken."""
        self._workers.append(worker)
        if self.is_numbered:
            self._buffers[worker.worker_id] = EventBuffer(BUFFERED_EVENTS)
            self._draws[worker.worker_id] = [
                Random(f"{self._seed}/events/{worker.worker_id}/{frontend}")
                for frontend in range(len(self._frontends))
            ]
            for streams in self._streams:
                streams[worker.worker_id] = EventStream()

    def leave(self, worker: Worker, slot: Slot, now_ms: float) -> None:
        """What is on its way by then reaches no router that knows its worker."""
        self.refresh(now_ms)

    def collect(self, worker: Worker, now_ms: float) -> None:
        """Send what a worker publishes on its way to every frontend."""
        stamped = worker.engine.take_stamped()
        if self._recorder is not None:
            for time_ms, event in stamped:
                self._recorder.note(time_ms, worker.worker_id, event)
        if self.is_numbered:
            for time_ms, events in _by_step(stamped):
                self._send_numbered(time_ms, worker.worker_id, events)
            return
        for time_ms, event in stamped:
            due_ms = time_ms + self._settings.delay_ms
            for frontend in range(len(self._frontends)):
                self._send(due_ms, frontend, worker.worker_id, 0, event)

    def refresh(self, now_ms: float) -> None:
        """Let every worker publish what it has done by now, and deliver what is due."""
        for worker in self._workers:
            if worker.engine.settle(now_ms):
                self.collect(worker, now_ms)
        self._deliver(now_ms)

    def _deliver(self, now_ms: float) -> None:
        messages = self._messages
        until_ms = instant_end(now_ms)
        while messages and messages[0].due_ms <= until_ms:
            message = heappop(messages)
            if isinstance(message.events, KvEvent):
                feed = self._frontends[message.frontend].feed
                feed(message.worker_id, (message.events,), message.due_ms)
            else:
                self._receive(message, message.events)

    def finish(self) -> None:
        """Let everything arrive, however long it takes."""
        for worker in self._workers:
            self.collect(worker, 0.0)
        self._deliver(float("inf"))

    def begin_fault(self, fault: EventFault, now_ms: float) -> int:
        """What is published from now on is lost or late; returns a number for `end_fault`."""
        self.refresh(now_ms)
        return self._faults.begin(fault)

    def end_fault(self, number: int, now_ms: float) -> None:
        """What is published from now on arrives as usual."""
        self.refresh(now_ms)
        self._faults.end(number)

    def counters(self) -> dict[str, int]:
        """Losses and repairs, all frontends together."""
        streams = [stream for streams in self._streams for stream in streams.values()]
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
        self,
        due_ms: float,
        frontend: int,
        worker_id: WorkerId,
        first_id: int,
        events: KvEvent | list[BlockEvent],
    ) -> None:
        self._num_sent += 1
        message = Message(due_ms, self._num_sent, frontend, worker_id, first_id, events)
        heappush(self._messages, message)

    def _send_numbered(self, time_ms: float, worker_id: WorkerId, events: list[KvEvent]) -> None:
        if self._names is None:
            raise InvariantError("events that may be lost are published block by block, by hashes")
        settings, buffer = self._settings, self._buffers[worker_id]
        events.sort(key=_is_beyond_device)
        block_events = [self._names.event(event) for event in events]
        first_id = buffer.next_id
        for event in block_events:
            buffer.append(event)
        for frontend, generator in enumerate(self._draws[worker_id]):
            is_lost = settings.loss > 0 and generator.random() < settings.loss
            late_ms = generator.random() * settings.jitter_ms if settings.jitter_ms else 0.0
            fault_ms = self._faults.delay_ms(worker_id, frontend)
            if is_lost or fault_ms is None:
                self.num_lost += len(block_events)
                continue
            due_ms = time_ms + settings.delay_ms + fault_ms + late_ms
            self._send(due_ms, frontend, worker_id, first_id, block_events)

    def _receive(self, message: Message, sent: list[BlockEvent]) -> None:
        """Take a message into account; a new gap is asked about."""
        worker_id = message.worker_id
        stream = self._streams[message.frontend][worker_id]
        had_gap = stream.missing is not None
        events: list[BlockEvent] = []
        if message.first_id >= 0:
            for place, event in enumerate(sent):
                events += stream.receive(message.first_id + place, event)
        elif stream.missing is None:
            return  # what was missing has come by itself
        else:
            events += stream.resync(self._buffers[worker_id].replay(stream.missing))
            had_gap = False
        feed_blocks = self._frontends[message.frontend].feed_blocks
        if feed_blocks is not None and events:
            feed_blocks(worker_id, events, message.due_ms)
        if stream.missing is not None and not had_gap:
            due_ms = message.due_ms + self._settings.recovery_ms
            self._send(due_ms, message.frontend, worker_id, -1, [])


def _is_beyond_device(event: KvEvent) -> bool:
    """Whether it is a connector's: vLLM tells of those of a step after those of its device."""
    return event.tier is not Tier.DEVICE


def _by_step(stamped: Sequence[StampedEvent]) -> Iterator[tuple[float, list[KvEvent]]]:
    """What was published at one time, with that time."""
    events: list[KvEvent] = []
    first_ms = until_ms = float("-inf")
    for time_ms, event in stamped:
        if time_ms > until_ms:
            if events:
                yield first_ms, events
            events, first_ms, until_ms = [], time_ms, instant_end(time_ms)
        events.append(event)
    if events:
        yield first_ms, events


AnyPlane = SilentPlane | DirectPlane | DelayedPlane | EventPlane
"""Ours are named beside the protocol, so that a compiler calls them directly."""
