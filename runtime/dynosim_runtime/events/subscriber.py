"""A frontend's end of one engine's KV events: nothing lost, nothing twice, in order.

The engine publishes numbered messages (ZMQ PUB) and keeps the last of them for replay (ROUTER).
What is missing, at the start or later, is asked for again. Messages that the engine no longer has
are made up for by forgetting all that is known of it, and going on from the oldest it still has.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq
import zmq.asyncio

from dynosim.indexer.base import BlockEvent, Cleared
from dynosim.indexer.stream import Dump, Events, EventStream
from dynosim.indexer.wire import (
    EventFormatError,
    KvBatch,
    decode_batch,
    decode_replay,
    replay_request,
    to_block_event,
)
from dynosim_runtime.card import EventSource

REPLAY_TIMEOUT_S = 2.0
RETRY_S = 0.5
MAX_FRUITLESS_ANSWERS = 3
PAUSE_S = 0.005  # the tokens that came along with an event go out first
MAX_AT_ONCE = 100  # messages, before others have their turn
MAX_PENDING = 100_000  # messages that ZMQ keeps for us

log = logging.getLogger(__name__)
Deliver = Callable[[list[BlockEvent]], None]


@dataclass(slots=True)
class SubscriberCounters:
    """What one subscription has seen."""

    messages: int = 0
    events: int = 0
    malformed: int = 0
    gaps: int = 0
    replays: int = 0
    cleared: int = 0  # times all was forgotten because messages were gone for good


class EventSubscriber:
    """Follows one data-parallel rank of one worker; `deliver` gets block events in order.

    `block_size` is the router's; events of other block sizes are counted as malformed.
    """

    def __init__(self, source: EventSource, block_size: int, deliver: Deliver) -> None:
        self.counters = SubscriberCounters()
        self._source = source
        self._block_size = block_size
        self._deliver = deliver
        self._stream: EventStream[KvBatch] = EventStream()
        self._has_caught_up = False
        self._last_sequence = -1
        self._fruitless_answers = 0

    async def run(self) -> None:
        """Receive until cancelled."""
        context = zmq.asyncio.Context.instance()
        socket = context.socket(zmq.SUB)
        try:
            socket.set_hwm(MAX_PENDING)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            socket.subscribe(self._source.topic.encode())
            socket.connect(self._source.endpoint)
            while True:
                await self._receive(socket)
        finally:
            socket.close(linger=0)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        """Take the next message; ask for what is missing."""
        wait_s = RETRY_S if self._needs_replay else None
        if self._needs_replay:
            await self._catch_up()
        try:
            async with asyncio.timeout(wait_s):
                frames = await socket.recv_multipart()
        except TimeoutError:
            return
        await asyncio.sleep(PAUSE_S)
        self._take_frames(frames)
        with contextlib.suppress(zmq.Again):
            for _ in range(MAX_AT_ONCE):
                self._take_frames(await socket.recv_multipart(zmq.NOBLOCK))

    def _take_frames(self, frames: list[bytes]) -> None:
        batch = self._decoded(frames)
        if batch is not None:
            self._take(batch)

    def _take(self, batch: KvBatch) -> None:
        """One published message. They never overtake each other: lower numbers are a new life."""
        if batch.sequence <= self._last_sequence:
            self._stream = EventStream()
            self._has_caught_up = False
            self._apply([Cleared()])
        self._last_sequence = batch.sequence
        self._apply(self._stream.receive(batch.sequence, batch))
        if self._source.replay_endpoint is None and self._stream.missing is not None:
            self._give_up()

    @property
    def _needs_replay(self) -> bool:
        if self._source.replay_endpoint is None:
            return False
        return not self._has_caught_up or self._stream.missing is not None

    async def _catch_up(self) -> None:
        """Ask for everything from the first message that is missing."""
        first_id = self._stream.next_id
        batches = await self._replayed(first_id)
        if batches is None:
            return  # the endpoint does not answer (yet); asked again soon
        self._has_caught_up = True
        self.counters.replays += 1
        if batches and batches[0].sequence > first_id:
            self.counters.cleared += 1
            older: Dump[KvBatch] = Dump(batches[0].sequence - 1, [])
            self._apply(self._stream.resync(older))
        if batches:
            self._apply(self._stream.resync(Events(batches[0].sequence, batches)))
        self._fruitless_answers = (
            self._fruitless_answers + 1 if self._stream.missing is not None else 0
        )
        if self._fruitless_answers >= MAX_FRUITLESS_ANSWERS:
            self._give_up()

    def _give_up(self) -> None:
        """Messages are gone for good: what is known of the worker is void."""
        self._fruitless_answers = 0
        self.counters.cleared += 1
        self._apply(self._stream.give_up())

    async def _replayed(self, first_id: int) -> list[KvBatch] | None:
        """The engine's messages from `first_id` on that it still has; None: no answer."""
        assert self._source.replay_endpoint is not None
        socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        try:
            socket.set_hwm(0)
            socket.connect(self._source.replay_endpoint)
            await socket.send_multipart(replay_request(first_id))
            batches: list[KvBatch] = []
            while True:
                async with asyncio.timeout(REPLAY_TIMEOUT_S):
                    frames = await socket.recv_multipart()
                try:
                    batch = decode_replay(frames)
                except EventFormatError as error:
                    self._note_malformed(error)
                    continue
                if batch is None:
                    return batches
                batches.append(batch)
        except TimeoutError:
            return None
        finally:
            socket.close(linger=0)

    def _decoded(self, frames: list[bytes]) -> KvBatch | None:
        try:
            return decode_batch(frames)
        except EventFormatError as error:
            self._note_malformed(error)
            return None

    def _apply(self, ready: Sequence[KvBatch | Cleared]) -> None:
        events: list[BlockEvent] = []
        for item in ready:
            if isinstance(item, Cleared):
                events.append(item)
                continue
            self.counters.messages += 1
            for event in item.events:
                try:
                    events.append(to_block_event(event, self._block_size))
                except EventFormatError as error:
                    self._note_malformed(error)
        self.counters.gaps = self._stream.num_gaps
        self.counters.events += len(events)
        if events:
            self._deliver(events)

    def _note_malformed(self, error: EventFormatError) -> None:
        if self.counters.malformed == 0:
            log.warning("KV events from %s: %s", self._source.endpoint, error)
        self.counters.malformed += 1


class Subscriptions:
    """The running subscriptions of a frontend, by worker and rank."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, int], tuple[EventSubscriber, asyncio.Task[None]]] = {}

    def start(self, worker_id: int, dp_rank: int, subscriber: EventSubscriber) -> None:
        """Follow a worker's rank."""
        task = asyncio.create_task(subscriber.run(), name=f"events of worker {worker_id}")
        task.add_done_callback(_report_crash)
        self._running[worker_id, dp_rank] = subscriber, task

    def stop(self, worker_id: int) -> None:
        """Follow a worker no longer."""
        for key in [key for key in self._running if key[0] == worker_id]:
            self._running.pop(key)[1].cancel()

    def counters(self) -> dict[tuple[int, int], SubscriberCounters]:
        """By worker and rank."""
        return {key: subscriber.counters for key, (subscriber, _) in self._running.items()}

    async def close(self) -> None:
        """Stop all."""
        tasks = [task for _, task in self._running.values()]
        self._running.clear()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _report_crash(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("%s ended: %r", task.get_name(), task.exception())
