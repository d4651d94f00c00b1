"""KV events on the wire: numbering, replay, bounds, ports."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import zmq
import zmq.asyncio
from waiting import PATIENCE_S

from dynosim.indexer.wire import (
    EngineEvent,
    KvBatch,
    decode_batch,
    decode_replay,
    removed_event,
    replay_request,
)
from dynosim_runtime.card import EventSource
from dynosim_runtime.errors import LiveError
from dynosim_runtime.kv_events.publisher import EventPublisher, ReplayBuffer


@pytest.fixture
async def publisher() -> AsyncIterator[EventPublisher]:
    made = EventPublisher(topic="kv", dp_rank=2, buffer_messages=5)
    yield made
    await made.close()


def news(block: int) -> list[EngineEvent]:
    return [removed_event([block])]


async def replayed(source: EventSource, first_sequence: int) -> list[KvBatch]:
    """What the replay endpoint answers."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    try:
        assert source.replay_endpoint is not None
        socket.connect(source.replay_endpoint)
        await socket.send_multipart(replay_request(first_sequence))
        batches = []
        while True:
            frames = await asyncio.wait_for(socket.recv_multipart(), PATIENCE_S)
            batch = decode_replay(frames)
            if batch is None:
                return batches
            batches.append(batch)
    finally:
        socket.close(linger=0)
        context.term()


async def test_subscribers_get_numbered_messages(publisher: EventPublisher) -> None:
    source = publisher.start()
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"kv")
    socket.connect(source.endpoint)
    try:
        block = 0
        while not await socket.poll(20):  # until the subscription has arrived
            publisher.publish(news(block))
            block += 1
            assert block < 1000
        publisher.publish([])  # nothing happened: no message, no number
        publisher.publish(news(7))
        first = decode_batch(await socket.recv_multipart())
        batches = [first]
        while batches[-1].sequence < block:
            frames = await asyncio.wait_for(socket.recv_multipart(), PATIENCE_S)
            batches.append(decode_batch(frames))
        assert [b.sequence for b in batches] == list(range(first.sequence, block + 1))
        assert batches[-1].events[0].fields["block_hashes"] == [7]
        assert {b.dp_rank for b in batches} == {2}
    finally:
        socket.close(linger=0)
        context.term()


async def test_replay_gives_what_is_kept_from_a_number_on(publisher: EventPublisher) -> None:
    source = publisher.start()
    assert await replayed(source, 0) == []
    for block in range(8):
        publisher.publish(news(block))
    assert [b.sequence for b in await replayed(source, 0)] == [3, 4, 5, 6, 7]
    late = await replayed(source, 6)
    assert [b.events[0].fields["block_hashes"] for b in late] == [[6], [7]]


async def test_a_malformed_replay_request_does_not_stop_the_endpoint(
    publisher: EventPublisher,
) -> None:
    source = publisher.start()
    publisher.publish(news(1))
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    assert source.replay_endpoint is not None
    socket.connect(source.replay_endpoint)
    await socket.send_multipart([b"", b"12"])
    socket.close(linger=1000)
    context.term()
    assert len(await replayed(source, 0)) == 1


async def test_a_port_in_use_is_one_message(publisher: EventPublisher) -> None:
    taken = int(publisher.start().endpoint.rsplit(":", 1)[1])
    other = EventPublisher(port=taken)
    with pytest.raises(LiveError, match=f"cannot listen on tcp://127.0.0.1:{taken}"):
        other.start()
    await other.close()


def test_the_replay_buffer_is_bounded_in_messages_and_bytes() -> None:
    buffer = ReplayBuffer(max_messages=3, max_bytes=100)
    for sequence in range(5):
        buffer.append(sequence, b"x" * 10)
    assert [sequence for sequence, _ in buffer.since(0)] == [2, 3, 4]
    buffer.append(5, b"x" * 85)
    assert [sequence for sequence, _ in buffer.since(0)] == [4, 5]
    buffer.append(6, b"x" * 500)
    assert [sequence for sequence, _ in buffer.since(0)] == [6]
