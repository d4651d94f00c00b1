"""The publishing end of an engine's KV events, where messages can get lost, and a follower."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence

import zmq
import zmq.asyncio
from waiting import PATIENCE_S

from dynosim.indexer.base import BlockEvent, Cleared, Stored
from dynosim.indexer.wire import (
    END_OF_REPLAY,
    EngineEvent,
    KvBatch,
    encode_batch,
    replay_first_sequence,
    stored_event,
)
from dynosim_runtime.card import EventSource
from dynosim_runtime.kv_events.subscriber import EventSubscriber

BLOCK = 4
CLEARED = "cleared"
_numbers = itertools.count()


def stored(number: int, block: int | None = None) -> KvBatch:
    """Message `number`, which tells of one block, by default of the same number."""
    block = number if block is None else block
    tokens = [block * BLOCK + i for i in range(BLOCK)]
    event = stored_event(None if block == 0 else block - 1, [block], tokens, BLOCK)
    return message(number, event)


def message(number: int, *events: EngineEvent) -> KvBatch:
    return KvBatch(number, 0.0, 0, list(events))


class EventEngine:
    """Publishes within this process; `asked` are the numbers that replays were asked from.

    `kept` is what a replay can still give, from question n on `kept_from[n]`; `garbled` is sent in
    front of it.
    """

    def __init__(self, *, answers_replays: bool = True, topic: str = "") -> None:
        self.context = zmq.asyncio.Context.instance()
        self.pub = self.context.socket(zmq.XPUB)  # which hears of subscriptions
        number = next(_numbers)
        self.topic = topic
        self.endpoint, self.replay_endpoint = f"inproc://pub-{number}", f"inproc://replay-{number}"
        self.pub.bind(self.endpoint)
        self.kept: list[KvBatch] = []
        self.kept_from: dict[int, list[KvBatch]] = {}
        self.garbled: list[Sequence[bytes]] = []
        self.asked: list[int] = []
        self.router: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None
        if answers_replays:
            self.answer_replays()

    def source(self, *, can_replay: bool = True) -> EventSource:
        replay = self.replay_endpoint if can_replay else None
        return EventSource(endpoint=self.endpoint, replay_endpoint=replay, topic=self.topic)

    def answer_replays(self) -> None:
        self.router = self.context.socket(zmq.ROUTER)
        self.router.bind(self.replay_endpoint)
        self._task = asyncio.create_task(self._answer())

    async def subscribed(self) -> None:
        """Returns when somebody has subscribed."""
        async with asyncio.timeout(PATIENCE_S):
            assert (await self.pub.recv())[0] == 1

    async def left(self) -> None:
        """Returns when nobody follows any more."""
        async with asyncio.timeout(PATIENCE_S):
            assert (await self.pub.recv())[0] == 0

    async def publish(self, *batches: KvBatch, is_lost: bool = False, is_kept: bool = True) -> None:
        for batch in batches:
            if is_kept:
                self.kept.append(batch)
            if not is_lost:
                await self.pub.send_multipart(encode_batch(batch, self.topic))

    async def _answer(self) -> None:
        assert self.router is not None
        while True:
            frames = await self.router.recv_multipart()
            first = replay_first_sequence(frames)
            self.asked.append(first)
            self.kept = self.kept_from.pop(len(self.asked), self.kept)
            for odd in self.garbled:
                await self.router.send_multipart([frames[0], b"", *odd])
            for batch in self.kept:
                if batch.sequence >= first:
                    await self.router.send_multipart([frames[0], b"", *encode_batch(batch)])
            await self.router.send_multipart([frames[0], b"", b"", END_OF_REPLAY, b""])

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for socket in (self.pub, self.router):
            if socket is not None:
                socket.close(0)


class Follower:
    """A subscription; `story` is what it delivered: numbers of blocks, or CLEARED."""

    def __init__(self, engine: EventEngine, *, can_replay: bool = True) -> None:
        self.seen: list[BlockEvent] = []
        source = engine.source(can_replay=can_replay)
        self.subscriber = EventSubscriber(source, BLOCK, self._deliver)
        self.counters = self.subscriber.counters
        self._grown = asyncio.Event()
        self._task = asyncio.create_task(self.subscriber.run())

    def _deliver(self, events: list[BlockEvent]) -> None:
        self.seen.extend(events)
        self._grown.set()

    @property
    def story(self) -> list[int | str]:
        return [
            number
            for event in self.seen
            for number in (
                event.block_hashes
                if isinstance(event, Stored)
                else [CLEARED]
                if isinstance(event, Cleared)
                else []
            )
        ]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Looked at after everything that is delivered, and now and then."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._grown.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._grown.wait(), 0.02)

    async def has(self, *story: int | str) -> None:
        """Wait for that much of a story, and see that it is this one."""
        await self.until(lambda: len(self.story) >= len(story))
        assert self.story == list(story)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def following(
    *kept: KvBatch,
    can_replay: bool = True,
    answers_replays: bool = True,
    topic: str = "",
    garbled: Sequence[bytes] | None = None,
) -> AsyncIterator[tuple[EventEngine, Follower]]:
    """An engine that has published some messages, and a follower that has just subscribed."""
    engine = EventEngine(answers_replays=answers_replays, topic=topic)
    engine.kept = list(kept)
    engine.garbled = [] if garbled is None else [garbled]
    follower = Follower(engine, can_replay=can_replay)
    await engine.subscribed()
    try:
        yield engine, follower
    finally:
        await follower.close()
        await engine.close()
