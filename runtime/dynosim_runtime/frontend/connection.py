"""HTTP connections with the bounds that uvicorn's lack: on a request's head, and the time for it.

Bodies have theirs in `dynosim_runtime.frontend.limits`.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 1 << 16  # request line and headers
HEAD_TIMEOUT_S = 60.0  # for a client to send them
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's, closed when a head is too large or does not come to its end.

    Between two requests uvicorn's own `timeout_keep_alive` holds. A head that comes in one piece,
    as nearly all do, costs no timer.
    """

    _is_in_head = True
    _num_head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_in_head:
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._num_head_bytes:
            self._expect_head()
            if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(TOO_LARGE)
                self.transport.close()

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._is_in_head = False
        self._num_head_bytes = 0
        if self._deadline is not None:
            self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See httptools."""
        self._is_in_head = True
        super().on_message_complete()

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
