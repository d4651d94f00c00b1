"""KV events that no engine would send, and places where there are none: nothing ends silently."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from waiting import PATIENCE_S, until

from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored
from dynosim.indexer.wire import (
    END_OF_REPLAY,
    EngineEvent,
    EventFormatError,
    KvBatch,
    encode_batch,
    removed_event,
    stored_event,
    to_block_event,
)
from dynosim_runtime.card import EventSource
from dynosim_runtime.kv_events import subscriber
from dynosim_runtime.kv_events.subscriber import EventSubscriber, Subscriptions

BLOCK = 4


# ---- what a block hash may be --------------------------------------------------------------------


def events_with(value: Any) -> list[EngineEvent]:
    """Events with that hash, in every place where one can stand."""
    stored = stored_event(None, [1], range(BLOCK), BLOCK)
    return [
        EngineEvent("BlockStored", {**stored.fields, "block_hashes": [value]}),
        EngineEvent("BlockStored", {**stored.fields, "parent_block_hash": value}),
        EngineEvent("BlockRemoved", {"block_hashes": [1, value]}),
    ]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0),
        ((1 << 64) - 1, (1 << 64) - 1),
        (-(1 << 63), -(1 << 63)),
        (b"\x01", 1),
        (b"\x00" * 31 + b"\x07", 7),
        (b"\xff" * 64, (1 << 512) - 1),
    ],
)
def test_hashes_as_engines_send_them_are_taken(value: Any, number: int) -> None:
    stored, child, removed = (to_block_event(event, BLOCK) for event in events_with(value))
    assert isinstance(stored, Stored) and isinstance(child, Stored)
    assert (stored.block_hashes, child.parent) == ([number], number)
    assert removed == Removed([1, number])


@pytest.mark.parametrize(
    "value",
    [1 << 64, -(1 << 63) - 1, b"", b"x" * 65, b"x" * 2000, True, "x", 1.5, [1], {"a": 1}],
    ids=lambda value: f"{value!r:.20}",
)
def test_other_hashes_are_refused(value: Any) -> None:
    for event in events_with(value):
        with pytest.raises(EventFormatError, match="a block hash"):
            to_block_event(event, BLOCK)


@pytest.mark.parametrize("data", [["x" * 10_000, []], [1.0, [], "x" * 10_000], [1.0, ["x" * 9999]]])
def test_what_is_said_of_a_bad_message_is_short(data: list[Any]) -> None:
    from dynosim.indexer.wire import decode_batch

    with pytest.raises(EventFormatError) as caught:
        decode_batch((b"", bytes(8), msgspec.msgpack.encode(data)))
    assert len(str(caught.value)) < 200


# ---- a subscription ------------------------------------------------------------------------------


def stored(number: int, name: Any = None) -> KvBatch:
    tokens = [number * BLOCK + i for i in range(BLOCK)]
    return KvBatch(number, 0.0, 0, [stored_event(None, [name or number], tokens, BLOCK)])


class Publisher:
    """The publishing end, with an endpoint for replays that answers as it is told."""

    def __init__(self) -> None:
        context = zmq.asyncio.Context.instance()
        self.pub, self.router = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
        self.endpoint, self.replay_endpoint = (
            f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
            for socket in (self.pub, self.router)
        )
        self.answer: list[KvBatch] | None = None  # None: none at all
        self._task = asyncio.create_task(self._replays())

    async def publish(self, *batches: KvBatch) -> None:
        for batch in batches:
            await self.pub.send_multipart(encode_batch(batch))

    async def _replays(self) -> None:
        while True:
            client = (await self.router.recv_multipart())[0]
            for batch in self.answer or ():
                await self.router.send_multipart([client, b"", *encode_batch(batch)])
            if self.answer is not None:
                await self.router.send_multipart([client, b"", b"", END_OF_REPLAY, b""])

    def close(self) -> None:
        self._task.cancel()
        self.pub.close(0)
        self.router.close(0)


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.close()


class Follower:
    """A subscription and what it has delivered; `fails_at` is a block it cannot take in."""

    def __init__(self, source: EventSource, fails_at: int | None = None) -> None:
        self.seen: list[BlockEvent] = []
        self._fails_at = fails_at
        self.subscriber = EventSubscriber(source, BLOCK, self._deliver)
        self.task = asyncio.create_task(self.subscriber.run())

    def _deliver(self, events: list[BlockEvent]) -> None:
        for event in events:
            if isinstance(event, Stored) and self._fails_at in event.block_hashes:
                raise KeyError("a defect")
            self.seen.append(event)

    @property
    def blocks(self) -> list[int]:
        return [h for event in self.seen if isinstance(event, Stored) for h in event.block_hashes]

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(lambda: condition() or self.task.done())
        assert not self.task.done()

    async def subscribed(self, publisher: Publisher) -> None:
        """Returns when the subscription is there and has delivered a first message."""
        async with asyncio.timeout(PATIENCE_S):
            await publisher.pub.recv()  # a fresh one misses what comes before
        await publisher.publish(stored(0))
        await self.until(lambda: self.blocks == [0])


async def test_a_message_that_is_none_costs_only_itself(publisher: Publisher) -> None:
    follower = Follower(EventSource(endpoint=publisher.endpoint))
    await follower.subscribed(publisher)
    counters = follower.subscriber.counters
    before = counters.malformed
    poison = stored(1)
    fields = {**poison.events[0].fields, "block_hashes": [b"x" * 2000]}
    good = removed_event([0])
    await publisher.publish(
        poison._replace(events=[EngineEvent("BlockStored", fields), good]), stored(2)
    )
    await follower.until(lambda: 2 in follower.blocks)
    assert follower.seen[-2:] == [Removed([0]), *_events(stored(2))]
    assert counters.malformed == before + 1
    assert counters.failures == 0
    follower.task.cancel()


def _events(batch: KvBatch) -> list[BlockEvent]:
    return [to_block_event(event, BLOCK) for event in batch.events]


async def test_where_the_receiving_end_fails_all_is_forgotten_and_it_goes_on(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    follower = Follower(EventSource(endpoint=publisher.endpoint), fails_at=2)
    await follower.subscribed(publisher)
    await publisher.publish(stored(1))
    await follower.until(lambda: 1 in follower.blocks)
    await publisher.publish(stored(2))
    await follower.until(lambda: Cleared() in follower.seen)
    await publisher.publish(stored(3), stored(4, name=2))
    await follower.until(lambda: follower.subscriber.counters.failures == 2)
    await publisher.publish(stored(5))
    await follower.until(lambda: 5 in follower.blocks)
    assert follower.seen.count(Cleared()) == 2
    assert [r for r in caplog.records if "a defect" in r.getMessage()][1:] == []  # told once
    follower.task.cancel()


async def test_a_place_that_cannot_be_followed_is_told_and_tried_again(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscriber, "RESUBSCRIBE_S_MIN", 0.02)
    monkeypatch.setattr(subscriber, "RESUBSCRIBE_S_MAX", 0.02)
    subscriptions = Subscriptions()
    seen: list[BlockEvent] = []
    for worker_id, endpoint in ((1, "x"), (2, "http://127.0.0.1:1"), (3, publisher.endpoint)):
        followed = EventSubscriber(EventSource(endpoint=endpoint), BLOCK, seen.extend)
        subscriptions.start(worker_id, 0, followed)
    async with asyncio.timeout(PATIENCE_S):
        while subscriptions.total().failures < 6 or not seen:
            await publisher.publish(stored(0))
            await asyncio.sleep(0.01)
    assert subscriptions.num_failing == 2
    total = subscriptions.total()
    subscriptions.stop(1)
    subscriptions.stop(3)
    assert subscriptions.num_failing == 1
    assert subscriptions.total().failures >= total.failures  # those that were stopped count on
    assert subscriptions.total().messages >= total.messages > 0
    told = [r.getMessage() for r in caplog.records if "cannot be followed" in r.getMessage()]
    assert len(told) == 2
    await subscriptions.close()


async def test_a_subscription_that_broke_begins_anew(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "RESUBSCRIBE_S_MIN", 0.02)
    publisher.answer = [stored(number) for number in range(3)]
    source = EventSource(endpoint=publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
    follower = Follower(source)
    await follower.until(lambda: follower.blocks == [0, 1, 2])
    receive = EventSubscriber._receive

    async def fail_once(*args: Any) -> None:
        monkeypatch.setattr(EventSubscriber, "_receive", receive)
        raise zmq.ZMQError(zmq.ETERM)

    monkeypatch.setattr(EventSubscriber, "_receive", fail_once)
    await publisher.publish(stored(3))
    await follower.until(lambda: follower.blocks == [0, 1, 2, 3, 0, 1, 2])
    assert follower.seen[4] == Cleared()
    assert follower.subscriber.counters.failures == 1
    follower.task.cancel()


@pytest.mark.parametrize("replay_endpoint", ["no address", None])
async def test_a_replay_endpoint_that_never_answers_does_not_hold_up_what_comes(
    publisher: Publisher, replay_endpoint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "REPLAY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(subscriber, "RETRY_S", 0.02)
    source = EventSource(
        endpoint=publisher.endpoint,
        replay_endpoint=replay_endpoint or publisher.replay_endpoint,
    )
    follower = Follower(source)
    async with asyncio.timeout(PATIENCE_S):
        number = 5  # what came before is missing, and nobody has it
        while len(follower.blocks) < 2:
            await publisher.publish(stored(number))
            number += 1
            await asyncio.sleep(0.02)
    assert follower.seen[0] == Cleared()
    assert follower.subscriber.counters.cleared == 1
    follower.task.cancel()


async def test_an_answer_without_an_end_is_taken_in_parts(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "MAX_REPLAYED", 4)
    monkeypatch.setattr(subscriber, "RETRY_S", 0.02)
    publisher.answer = [stored(number) for number in range(9)]
    source = EventSource(endpoint=publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
    follower = Follower(source)
    await follower.until(lambda: follower.blocks == [0, 1, 2, 3])
    publisher.answer = publisher.answer[4:]
    await publisher.publish(stored(8))
    await follower.until(lambda: len(follower.blocks) >= 8)
    assert follower.blocks[:8] == list(range(8))
    follower.task.cancel()
