"""HTTP answers written to the server directly: one message per write, nothing in between."""

import asyncio
from collections.abc import Callable, Mapping

from starlette.types import Send

SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # proxies must not hold tokens back
}


async def send_json(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """A whole JSON answer."""
    described = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **headers,
    }
    await send(_start(status, described))
    await send({"type": "http.response.body", "body": body})


class EventResponse:
    """A stream of server-sent events; `is_open` once its head is out."""

    __slots__ = ("_headers", "_send", "is_open")

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        self.is_open = False

    async def write(self, events: bytes) -> None:
        """Events, in one piece."""
        if not self.is_open:
            self.is_open = True
            await self._send(_start(200, {**SSE_HEADERS, **self._headers}))
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def close(self) -> None:
        """The end of the stream."""
        await self._send({"type": "http.response.body", "body": b""})


class Alarm:
    """Wakes the writer of a stream that may have nothing to write for long."""

    __slots__ = ("_handle", "_loop", "_wake", "has_rung")

    def __init__(self, wake: Callable[[], None], delay_s: float) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self.set(delay_s)

    def set(self, delay_s: float) -> None:
        """Ring once, so much later."""
        self.has_rung = False
        self._handle = self._loop.call_later(delay_s, self._ring)

    def cancel(self) -> None:
        """Ring no more."""
        self._handle.cancel()

    def _ring(self) -> None:
        self.has_rung = True
        self._wake()


def _start(status: int, headers: Mapping[str, str]) -> dict[str, object]:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}
