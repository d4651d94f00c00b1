"""A frontend's end of one engine's KV events: nothing lost, nothing twice, in order.

The engine publishes numbered messages (ZMQ PUB) and keeps the last of them for replay (ROUTER).
What is missing, at the start or later, is asked for again. Messages that the engine no longer has
are made up for by forgetting all that is known of it, and going on from the oldest it still has.

Nothing that an engine sends ends a subscription: what makes no sense is counted and passed over;
where the receiving end fails at it, what is known of the engine is forgotten. A place that cannot
be connected to is tried again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

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

REPLAY_TIMEOUT_S = 2.0  # for the next message of an answer
REPLAY_LIMIT_S = 60.0  # for a whole answer
MAX_REPLAYED = 200_000  # messages of one answer; the rest is asked for again
RETRY_S = 0.5
MAX_FRUITLESS_ANSWERS = 3
MAX_UNANSWERED = 5  # replays asked for in a row, while messages wait for what they would bring
RESUBSCRIBE_S_MIN, RESUBSCRIBE_S_MAX = 1.0, 30.0  # after a failure; doubles
PAUSE_S = 0.005  # the tokens that came along with an event go out first
MAX_AT_ONCE = 100  # messages, before others have their turn
MAX_PENDING = 100_000  # messages that ZMQ keeps for us
MAX_MESSAGE_BYTES = 64 << 20  # a sender of more is hung up on

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
    failures: int = 0  # of connecting, or of the receiving end at what came


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
        self._num_unanswered = 0
        self._reported: set[str] = set()  # kinds of trouble
        self.is_following = False  # connected, as far as ZMQ tells

    async def run(self) -> None:
        """Receive until cancelled, whatever comes."""
        delay_s = RESUBSCRIBE_S_MIN
        while True:
            num_before = self.counters.messages
            try:
                await self._follow()
            except Exception as error:
                self._note_failure("cannot be followed at the moment", error)
            self.is_following = False
            if self.counters.messages > num_before:
                delay_s = RESUBSCRIBE_S_MIN
                self._forget()
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RESUBSCRIBE_S_MAX)

    async def _follow(self) -> None:
        """Receive until something fails."""
        socket = _socket(zmq.SUB)
        try:
            socket.set_hwm(MAX_PENDING)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            socket.subscribe(self._source.topic.encode())
            socket.connect(self._source.endpoint)
            self.is_following = True
            while True:
                await self._receive(socket)
        finally:
            socket.close(linger=0)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        """Take the next message; ask for what is missing."""
        if self._needs_replay:
            await self._catch_up()
            # Looks without taking: a wait for a message that is broken off may lose it.
            if not await socket.poll(RETRY_S * 1e3):
                return
        frames = await socket.recv_multipart()
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
            self._note_unanswered()  # (yet); asked again soon
            return
        self._num_unanswered = 0
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

    def _note_unanswered(self) -> None:
        """An endpoint that never answers must not hold up for ever what comes by itself."""
        self._num_unanswered += 1
        if self._num_unanswered >= MAX_UNANSWERED and self._stream.missing is not None:
            self._num_unanswered = 0
            self._has_caught_up = True
            self._report(f"replay endpoint {self._source.replay_endpoint} does not answer")
            self._give_up()

    def _forget(self) -> None:
        """Nothing is known of the engine any more; it will be asked for all it has."""
        self._stream = EventStream()
        self._has_caught_up = False
        self._last_sequence = -1
        self._fruitless_answers = 0
        self._hand_over([Cleared()])

    def _give_up(self) -> None:
        """Messages are gone for good: what is known of the worker is void."""
        self._fruitless_answers = 0
        self.counters.cleared += 1
        self._apply(self._stream.give_up())

    async def _replayed(self, first_id: int) -> list[KvBatch] | None:
        """The engine's messages from `first_id` on that it still has; None: no answer."""
        assert self._source.replay_endpoint is not None
        socket = _socket(zmq.DEALER)
        try:
            socket.set_hwm(0)
            socket.connect(self._source.replay_endpoint)
            async with asyncio.timeout(REPLAY_LIMIT_S):
                await socket.send_multipart(replay_request(first_id))
                return await self._answer(socket)
        except TimeoutError:
            return None
        except (zmq.ZMQError, OverflowError) as error:  # no such place, no such number
            self._note_failure("cannot be asked for what is missing", error)
            return None
        finally:
            socket.close(linger=0)

    async def _answer(self, socket: zmq.asyncio.Socket) -> list[KvBatch]:
        """Messages up to the end of an answer, or as many as are taken at once."""
        batches: list[KvBatch] = []
        while len(batches) < MAX_REPLAYED:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                frames = await socket.recv_multipart()
            try:
                batch = decode_replay(frames)
            except Exception as error:
                self._note_malformed(error)
                continue
            if batch is None:
                break
            batches.append(batch)
        return batches

    def _decoded(self, frames: list[bytes]) -> KvBatch | None:
        try:
            return decode_batch(frames)
        except Exception as error:
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
                except Exception as error:
                    self._note_malformed(error)
        self.counters.gaps = self._stream.num_gaps
        self.counters.events += len(events)
        if events:
            self._hand_over(events)

    def _hand_over(self, events: list[BlockEvent]) -> None:
        """If the receiving end fails, which of them it has taken in is unknown: forget them all."""
        try:
            self._deliver(events)
        except Exception as error:
            self._note_failure("are not understood by the router", error)
            with contextlib.suppress(Exception):
                self._deliver([Cleared()])

    def _note_malformed(self, error: Exception) -> None:
        """Foreseen (`EventFormatError`) or not: it is the message that makes no sense."""
        self.counters.malformed += 1
        if isinstance(error, EventFormatError):
            self._report(f"message passed over: {error}", kind="malformed")
        else:
            self._report(f"message passed over: {error!r:.200}", kind=type(error).__name__)

    def _note_failure(self, what: str, error: Exception) -> None:
        self.counters.failures += 1
        self._report(f"{what}: {error!r:.200}", kind=what)

    def _report(self, text: str, *, kind: str = "") -> None:
        """Once of each kind."""
        if (kind or text) not in self._reported:
            self._reported.add(kind or text)
            log.warning("KV events from %s: %s", self._source.endpoint, text)


def _socket(kind: int) -> zmq.asyncio.Socket:
    socket = zmq.asyncio.Context.instance().socket(kind)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    return socket


class Subscriptions:
    """The running subscriptions of a frontend, by worker and rank."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, int], tuple[EventSubscriber, asyncio.Task[None]]] = {}
        self._ended = SubscriberCounters()

    @property
    def num_failing(self) -> int:
        """Subscriptions that are not connected at the moment."""
        return sum(not subscriber.is_following for subscriber, _ in self._running.values())

    def start(self, worker_id: int, dp_rank: int, subscriber: EventSubscriber) -> None:
        """Follow a worker's rank."""
        task = asyncio.create_task(subscriber.run(), name=f"events of worker {worker_id}")
        task.add_done_callback(_report_crash)
        self._running[worker_id, dp_rank] = subscriber, task

    def stop(self, worker_id: int) -> None:
        """Follow a worker no longer."""
        for key in [key for key in self._running if key[0] == worker_id]:
            subscriber, task = self._running.pop(key)
            task.cancel()
            self._ended = _sum([self._ended, subscriber.counters])

    def counters(self) -> dict[tuple[int, int], SubscriberCounters]:
        """Of those that run, by worker and rank."""
        return {key: subscriber.counters for key, (subscriber, _) in self._running.items()}

    def total(self) -> SubscriberCounters:
        """Of all that have ever run."""
        return _sum([self._ended, *self.counters().values()])

    async def close(self) -> None:
        """Stop all."""
        tasks = [task for _, task in self._running.values()]
        self._running.clear()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _sum(parts: Sequence[SubscriberCounters]) -> SubscriberCounters:
    total = SubscriberCounters()
    for field in fields(SubscriberCounters):
        setattr(total, field.name, sum(getattr(part, field.name) for part in parts))
    return total


def _report_crash(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("%s ended: %r", task.get_name(), task.exception())
