"""A frontend's end of an engine's events, over real sockets: gaps, restarts, late joins."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import zmq
import zmq.asyncio
from waiting import PATIENCE_S, until

from dynosim.blocks.hashing import local_hashes
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored
from dynosim.indexer.wire import (
    END_OF_REPLAY,
    KvBatch,
    encode_batch,
    removed_event,
    replay_first_sequence,
    stored_event,
)
from dynosim_runtime.card import EventSource
from dynosim_runtime.kv_events.subscriber import EventSubscriber

BLOCK = 4


def stored(number: int) -> KvBatch:
    tokens = [number * BLOCK + i for i in range(BLOCK)]
    event = stored_event(None if number == 0 else number - 1, [number], tokens, BLOCK)
    return KvBatch(number, 0.0, 0, [event])


class Engine:
    """The publishing end, with the choice of what gets lost."""

    def __init__(self) -> None:
        context = zmq.asyncio.Context.instance()
        self.pub, self.router = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
        ports = [
            socket.bind_to_random_port("tcp://127.0.0.1") for socket in (self.pub, self.router)
        ]
        self.endpoint, self.replay_endpoint = (f"tcp://127.0.0.1:{port}" for port in ports)
        self.kept: list[KvBatch] = []
        self.num_replays = 0
        self._task = asyncio.create_task(self._answer())

    async def publish(self, batch: KvBatch, *, is_lost: bool = False, is_kept: bool = True) -> None:
        if is_kept:
            self.kept.append(batch)
        if not is_lost:
            await self.pub.send_multipart(encode_batch(batch))

    async def _answer(self) -> None:
        while True:
            frames = await self.router.recv_multipart()
            self.num_replays += 1
            first = replay_first_sequence(frames)
            for batch in self.kept:
                if batch.sequence >= first:
                    await self.router.send_multipart([frames[0], b"", *encode_batch(batch)])
            await self.router.send_multipart([frames[0], b"", b"", END_OF_REPLAY, b""])

    def close(self) -> None:
        self._task.cancel()
        self.pub.close(0)
        self.router.close(0)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


class Follower:
    def __init__(self, engine: Engine, *, can_replay: bool = True) -> None:
        self.seen: list[BlockEvent] = []
        replay = engine.replay_endpoint if can_replay else None
        source = EventSource(endpoint=engine.endpoint, replay_endpoint=replay)
        self.subscriber = EventSubscriber(source, BLOCK, self.seen.extend)
        self.task = asyncio.create_task(self.subscriber.run())

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition)

    @property
    def blocks(self) -> list[int]:
        return [h for event in self.seen if isinstance(event, Stored) for h in event.block_hashes]


async def subscribed(engine: Engine) -> None:
    """Returns when the subscription is there; a fresh one misses what comes before."""
    async with asyncio.timeout(PATIENCE_S):
        await engine.pub.recv()


async def test_a_late_follower_gets_everything(engine: Engine) -> None:
    for number in range(5):
        await engine.publish(stored(number))
    follower = Follower(engine)
    await follower.until(lambda: len(follower.blocks) == 5)
    assert follower.blocks == [0, 1, 2, 3, 4]
    first = follower.seen[0]
    assert isinstance(first, Stored)
    assert first.local_hashes == local_hashes([0, 1, 2, 3], BLOCK)


async def test_lost_messages_are_asked_for(engine: Engine) -> None:
    await engine.publish(stored(0))
    follower = Follower(engine)
    await follower.until(lambda: follower.blocks == [0])
    for number in range(1, 20):
        await engine.publish(stored(number), is_lost=number % 3 == 0)
        await asyncio.sleep(0.01)
    await follower.until(lambda: len(follower.blocks) == 20)
    assert follower.blocks == list(range(20))
    assert follower.subscriber.counters.gaps > 0
    assert engine.num_replays > 1


async def test_messages_gone_for_good_void_what_is_known(engine: Engine) -> None:
    for number in range(3):
        await engine.publish(stored(number))
    follower = Follower(engine)
    await follower.until(lambda: len(follower.blocks) == 3)
    await engine.publish(stored(3), is_lost=True)
    engine.kept.clear()
    removal = KvBatch(4, 0.0, 0, [removed_event([1])])
    async with asyncio.timeout(PATIENCE_S):
        while Removed([1]) not in follower.seen:
            await engine.publish(removal)
            removal = removal._replace(sequence=removal.sequence + 1)
            await asyncio.sleep(0.05)
    assert Cleared() in follower.seen
    assert follower.seen.index(Cleared()) < follower.seen.index(Removed([1]))
    assert follower.subscriber.counters.cleared == 1


async def test_without_replay_a_gap_voids_what_is_known(engine: Engine) -> None:
    follower = Follower(engine, can_replay=False)
    await subscribed(engine)
    await engine.publish(stored(0))
    await engine.publish(stored(1))
    await engine.publish(stored(3))
    await follower.until(lambda: 3 in follower.blocks)
    assert follower.seen[-2] == Cleared()


async def test_lower_numbers_are_a_new_life_of_the_engine(engine: Engine) -> None:
    for number in range(3):
        await engine.publish(stored(number))
    follower = Follower(engine)
    await follower.until(lambda: len(follower.blocks) == 3)
    await subscribed(engine)
    await engine.publish(stored(3))
    await follower.until(lambda: len(follower.blocks) == 4)
    engine.kept = []
    await engine.publish(stored(0))
    await follower.until(lambda: Cleared() in follower.seen)
    restart = follower.seen.index(Cleared())
    await follower.until(lambda: len(follower.seen) > restart + 1)
    assert [e.block_hashes for e in follower.seen[restart + 1 :] if isinstance(e, Stored)] == [[0]]


async def test_malformed_messages_are_counted_and_passed_over(engine: Engine) -> None:
    follower = Follower(engine)
    await engine.publish(stored(0))
    await follower.until(lambda: follower.blocks == [0])
    await engine.pub.send_multipart([b"", b"short", b"x"])
    wrong_size = stored_event(None, [9], list(range(8)), 8)
    await engine.publish(KvBatch(1, 0.0, 0, [wrong_size]))
    await engine.publish(stored(2)._replace(events=stored(1).events))
    await follower.until(lambda: 1 in follower.blocks)
    assert follower.subscriber.counters.malformed >= 1
    assert follower.blocks == [0, 1]
