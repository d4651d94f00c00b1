"""Publishes an engine's KV events over ZMQ, as vLLM does, and repeats those that were missed.

Messages go out on a PUB socket, numbered from 0. A ROUTER socket answers requests for all messages
from a number on with those that are still kept, and then an end mark.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq
import zmq.asyncio

from dynosim.indexer.wire import (
    END_OF_REPLAY,
    EngineEvent,
    EventFormatError,
    KvBatch,
    encode_batch,
    replay_first_sequence,
)
from dynosim_runtime.card import EventSource
from dynosim_runtime.errors import LiveError
from dynosim_runtime.outage import Outage

_SUBSCRIBER_QUEUE = 100_000  # messages kept for a slow subscriber, then it misses some; vLLM's
_logger = logging.getLogger(__name__)


class ReplayBuffer:
    """The last messages, bounded in number and in bytes of payload."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._messages: deque[tuple[int, bytes]] = deque()
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def append(self, sequence: int, payload: bytes) -> None:
        """Keep a message, at the expense of the oldest; the newest is always kept."""
        messages = self._messages
        messages.append((sequence, payload))
        self._num_bytes += len(payload)
        while len(messages) > 1 and (
            len(messages) > self._max_messages or self._num_bytes > self._max_bytes
        ):
            self._num_bytes -= len(messages.popleft()[1])

    def since(self, first_sequence: int) -> list[tuple[int, bytes]]:
        """Kept messages from a sequence number on, oldest first."""
        return [message for message in self._messages if message[0] >= first_sequence]


class EventPublisher:
    """The publishing end of one engine rank. Needs a running event loop from `start` to `close`."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        replay_port: int = 0,
        topic: str = "",
        dp_rank: int = 0,
        buffer_messages: int = 10_000,
        buffer_bytes: int = 64 << 20,
    ) -> None:
        """Prepare; ports of 0 are any free ones. The buffer is what a replay can still give."""
        self._addresses = (f"tcp://{host}:{port}", f"tcp://{host}:{replay_port}")
        self._topic = topic
        self._dp_rank = dp_rank
        self._next_sequence = 0
        self._buffer = ReplayBuffer(buffer_messages, buffer_bytes)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> EventSource:
        """Bind both sockets; returns where to connect. Raises: LiveError if a port is taken."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = context.socket(zmq.PUB)
        self._pub.set_hwm(_SUBSCRIBER_QUEUE)
        self._replay = zmq.asyncio.Context.shadow(context).socket(zmq.ROUTER)
        self._replay.set_hwm(0)  # no limit, or messages of a long answer would be dropped
        self._context = context
        try:
            endpoint = _bind(self._pub, self._addresses[0])
            replay_endpoint = _bind(self._replay, self._addresses[1])
        except LiveError:
            self._release_ports()
            raise
        self._task = asyncio.create_task(self._answer_replays())
        return EventSource(endpoint=endpoint, replay_endpoint=replay_endpoint, topic=self._topic)

    def publish(self, events: Sequence[EngineEvent]) -> None:
        """Send what happened in one step as one message; nothing happened: no message."""
        if not events:
            return
        batch = KvBatch(self._next_sequence, time.time(), self._dp_rank, list(events))
        frames = encode_batch(batch, self._topic)
        self._buffer.append(self._next_sequence, frames[2])
        self._next_sequence += 1
        self._pub.send_multipart(frames)

    async def close(self) -> None:
        """Send what is queued for up to a second, and release the ports."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._release_ports()

    def _release_ports(self) -> None:
        if self._context is not None:
            self._replay.close(linger=0)
            self._pub.close(linger=1000)
            self._context.term()
            self._context = None

    async def _answer_replays(self) -> None:
        answering = Outage(_logger, "KV events: a replay could not be sent")
        while True:
            frames = await self._replay.recv_multipart()
            try:
                await self._answer_replay(frames)
                answering.worked()
            except EventFormatError as error:
                _logger.warning("KV events: ignored a replay request: %s", error)
            except Exception as error:  # the next one is another's
                answering.failed(error)

    async def _answer_replay(self, frames: list[bytes]) -> None:
        """Raises: EventFormatError for what is no request."""
        first_sequence = replay_first_sequence(frames)
        client, topic = frames[0], self._topic.encode()
        for sequence, payload in self._buffer.since(first_sequence):
            number = sequence.to_bytes(8, "big")
            await self._replay.send_multipart([client, b"", topic, number, payload])
        await self._replay.send_multipart([client, b"", b"", END_OF_REPLAY, b""])


def _bind(socket: "zmq.Socket[Any]", address: str) -> str:
    """Listen; returns the address with its actual port."""
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise LiveError(
            f"KV events: cannot listen on {address}: {error}; choose another port"
        ) from None
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
