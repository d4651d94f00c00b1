"""HTTP connections with the bounds that uvicorn's lack.

A request's head has a size and a time, however it arrives. Who goes on sending after his answer is
listened to for a little while only, lest the answer be lost on its way, and then cut off. Bodies
have their bounds in `dynosim_runtime.http.limits`.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 1 << 16  # request line and headers
HEAD_TIMEOUT_S = 60.0  # for a client to send them
LINGER_S = 5.0  # for what a client still sends when it has been answered
LINGER_BYTES = 32 << 20  # of that: twice the largest body, so that an honest one reads its answer
UNKNOWN = float("inf")  # length of a body in chunks
END_OF_HEAD = b"\r\n\r\n"
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"content-type: text/plain; charset=utf-8\r\n"
    b"content-length: 30\r\nconnection: close\r\n\r\n"
    b"Invalid HTTP request received."
)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's, closed when a head is too large or does not come to its end, or a body never ends.

    Between two requests uvicorn's own `timeout_keep_alive` holds. A head that comes in one piece,
    as nearly all do, costs no timer.
    """

    _is_in_head = True
    _is_in_body = False
    _is_deaf = False  # refused: what still comes is thrown away
    _is_exact = True  # the piece being parsed ends where a head or body ends, or before
    _is_measured = True  # the head being parsed began at the start of a piece
    _num_head_bytes = 0
    _body_left: float | None = None  # bytes of the body to come; None: not looked at yet
    _num_lingering_bytes = 0
    _refusal: bytes | None = None  # to be sent when the answers before it are out
    _deadline: asyncio.TimerHandle | None = None  # for a head
    _linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._wire = transport
        polite = _PoliteTransport(transport, self._hang_up, self._is_closing)
        super().connection_made(cast(asyncio.Transport, polite))
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        self._stop_lingering()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. The parser gets a head and what follows it one by one."""
        if self._is_deaf or (self._is_in_body and self.cycle.response_complete):
            self._num_lingering_bytes += len(data)
            if self._num_lingering_bytes > LINGER_BYTES:
                self._wire.abort()
        start = 0
        while start < len(data) and not self._is_deaf and not self._wire.is_closing():
            end = self._end_of_head(data, start) if self._is_in_head else self._end(data, start)
            if end == start:
                self._refuse(TOO_LARGE)
                return
            self._is_exact = self._is_in_head or self._body_left != UNKNOWN
            super().data_received(data if end - start == len(data) else data[start:end])
            start = end
        if self._is_in_head and self._num_head_bytes and not self._is_deaf:
            self._expect_head()

    # ---- called by the parser ------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """See httptools."""
        if not self._is_measured and self._parsed_head_bytes() > MAX_HEAD_BYTES:
            self._refuse(TOO_LARGE)
            raise ValueError("the head is too large")
        self._is_in_head, self._is_in_body = False, True
        self._num_head_bytes = 0
        self._body_left = None
        if self._deadline is not None:
            self._stop_waiting()
        super().on_headers_complete()
        self.headers = cast("list[tuple[bytes, bytes]]", _NOWHERE)  # where trailers go

    def on_message_complete(self) -> None:
        """See httptools."""
        self._is_in_head, self._is_in_body = True, False
        self._is_measured = self._is_exact
        if self._linger is not None and not self._is_deaf:
            self._stop_lingering()
            self._expect_head()
        super().on_message_complete()

    # ---- called by uvicorn ---------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """An answer is out."""
        super().on_response_complete()
        if not self.cycle.response_complete:  # another one is under way
            return
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._is_in_body and not self._is_closing():
            self._begin_lingering()

    def send_400_response(self, msg: str) -> None:
        """The request is no HTTP."""
        self._refuse(BAD_REQUEST)

    def _should_upgrade(self) -> bool:
        return False  # there are no web sockets here, and the headers are no longer kept

    def _hang_up(self) -> None:
        """Close; a client that may still be sending is given the time to read its answer first."""
        if self._is_closing():
            return
        if not (self._is_deaf or self._is_in_body or self._num_head_bytes):
            self._wire.close()
            return
        self._is_deaf = True
        self._begin_lingering()
        if self._wire.can_write_eof():
            self._wire.write_eof()

    def _is_closing(self) -> bool:
        return self._wire.is_closing() or (self._is_deaf and self._linger is not None)

    # ---- inside --------------------------------------------------------------------------------

    def _refuse(self, answer: bytes) -> None:
        """Listen no more, and say so, when the answers to requests before are out."""
        if self._is_deaf or self._is_closing():
            return
        self._is_deaf = True
        if self.cycle is None or (self.cycle.response_complete and not self.pipeline):
            self._send_refusal(answer)
        else:
            self._refusal = answer

    def _send_refusal(self, answer: bytes) -> None:
        self._refusal = None
        self._wire.write(answer)
        self._hang_up()

    def _end_of_head(self, data: bytes, start: int) -> int:
        """Where a head ends that goes on at `start`, as far as it is here and allowed to go."""
        found = data.find(END_OF_HEAD, start)
        end = len(data) if found < 0 else found + len(END_OF_HEAD)
        end = min(end, start + MAX_HEAD_BYTES - self._num_head_bytes)
        self._num_head_bytes += end - start
        return end

    def _end(self, data: bytes, start: int) -> int:
        """Where a body ends that goes on at `start`; the end of the data if it does not tell."""
        if self._body_left is None:
            declared = dict(self.scope["headers"]).get(b"content-length", b"")
            self._body_left = int(declared) if declared.isdigit() else UNKNOWN
        if len(data) - start <= self._body_left:
            self._body_left -= len(data) - start
            return len(data)
        return start + max(int(self._body_left), 1)

    def _parsed_head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._wire.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _begin_lingering(self) -> None:
        """Throw away what comes, for so long and so much."""
        self._stop_waiting()
        self._num_lingering_bytes = 0
        self.flow.resume_reading()
        self._linger = self.loop.call_later(LINGER_S, self._wire.abort)

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None


class _PoliteTransport:
    """A transport as uvicorn is given it: `close` is the connection's to decide on."""

    __slots__ = (
        "close", "get_extra_info", "is_closing", "pause_reading", "resume_reading", "write",
    )  # fmt: skip

    def __init__(
        self,
        transport: asyncio.Transport,
        close: Callable[[], None],
        is_closing: Callable[[], bool],
    ) -> None:
        self.close = close
        self.is_closing = is_closing
        # the transport's own, which cost no call more
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.write = transport.write


class _Nowhere:
    """A list that keeps nothing."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """A trailer: nobody reads it, and there may be any number."""


_NOWHERE = _Nowhere()
