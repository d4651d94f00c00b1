"""Connections to engines: a POST, and the body of its answer piece by piece as it comes.

aiohttp's client was a fifth of all that a frontend does for a token. Here httptools, with which
uvicorn parses requests, parses answers, and whoever reads is woken directly.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import httptools

CONNECT_TIMEOUT_S = 10.0  # a machine out of breath is slow; that nobody listens is told at once
MAX_IDLE_S = 4.0  # most servers hang up after 5 s; a request must not meet that
MAX_UNREAD_BYTES = 1 << 20  # then the server has to wait


class Connection(asyncio.Protocol):
    """One answer at a time. What fails raises ConnectionError."""

    def __init__(self) -> None:
        self.status = 0  # of the present answer, 0 until its head is here
        self.is_reusable = False
        self.idle_since_s = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._unread: list[bytes] = []
        self._num_unread_bytes = 0
        self._is_complete = True
        self._is_paused = False
        self._failure: ConnectionError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> None:
        """Send a whole request; returns when the answer's head is here."""
        self.status = 0
        self.is_reusable = self._is_complete = False
        self._transport.write(request)
        while not self.status:
            await self._news()

    async def read(self) -> bytes:
        """What has come of the body since the last time; nothing at its end."""
        while not self._unread and not self._is_complete:
            await self._news()
        unread = self._unread
        piece = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()
        self._num_unread_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return piece

    def close(self) -> None:
        """Hang up, whatever is under way."""
        self.is_reusable = False
        self._transport.abort()

    async def _news(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- called by the event loop --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._failure = ConnectionError(f"no HTTP answer: {error}")
            self.close()
        if self._num_unread_bytes > MAX_UNREAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_reusable = False
        if self._failure is None:
            self._failure = ConnectionResetError(str(error or "the server hung up"))
        self._wake()

    # ---- called by the parser ------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """A head is here; of interim answers (1xx) another follows."""
        if self._is_complete:
            raise ConnectionError("an answer that nobody asked for")
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status

    def on_body(self, body: bytes) -> None:
        """A piece of the body is here."""
        self._unread.append(body)
        self._num_unread_bytes += len(body)

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if self.status:
            self._is_complete = True
            self.is_reusable = self._parser.should_keep_alive()


class Connections:
    """Connections by server, as many as are needed, kept for requests that follow soon."""

    def __init__(self) -> None:
        self._idle: dict[str, deque[Connection]] = {}  # by base URL, the latest used last

    @asynccontextmanager
    async def post(
        self, base_url: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[Connection]:
        """A JSON request and the connection that its answer comes on; the head is here.

        `headers` hold no line breaks. What is not read to its end is hung up on.
        Raises: OSError (ConnectionError, TimeoutError, ...).
        """
        connection = self._idle_connection(base_url) or await _connect(base_url)
        try:
            await connection.ask(_head(base_url, path, headers, len(body)) + body)
            yield connection
        finally:
            if connection.is_reusable:
                connection.idle_since_s = time.monotonic()
                self._idle.setdefault(base_url, deque()).append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Hang up on all that are idle."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    def _idle_connection(self, base_url: str) -> Connection | None:
        idle = self._idle.get(base_url)
        if not idle:
            return None
        oldest_s = time.monotonic() - MAX_IDLE_S
        while idle and idle[0].idle_since_s < oldest_s:
            idle.popleft().close()
        while idle:
            connection = idle.pop()
            if connection.is_reusable:  # the server has not hung up
                return connection
        return None


async def _connect(base_url: str) -> Connection:
    url = urlsplit(base_url)
    is_secure = url.scheme == "https"
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection,
            url.hostname or "",
            url.port or (443 if is_secure else 80),
            ssl=is_secure or None,
        )
    return connection


def _head(base_url: str, path: str, headers: Mapping[str, str], num_bytes: int) -> bytes:
    url = urlsplit(base_url)
    lines = [
        f"POST {url.path.rstrip('/')}{path} HTTP/1.1",
        f"Host: {url.netloc.rpartition('@')[2]}",
        "Content-Type: application/json",
        f"Content-Length: {num_bytes}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
