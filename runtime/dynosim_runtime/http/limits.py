"""How much a frontend takes on: size of bodies, time to send them, requests at once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from starlette.types import Receive, Scope

from dynosim_runtime.errors import ApiError


class ClientGoneError(Exception):
    """The client hung up before its request was complete."""


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the HTTP layer; see `LiveConfig` for those a plan sets."""

    max_body_bytes: int = 16 << 20
    max_concurrent_requests: int = 8192  # beyond: 503
    body_timeout_s: float = 60.0  # for a client to send its body
    head_hold_s: float = 1.0  # a stream's status waits so long for the first token, or an error
    keep_alive_s: float = 15.0  # silence on a stream before a sign of life


class ConcurrencyLimit:
    """Counts requests under way and refuses those beyond the limit."""

    def __init__(self, max_concurrent_requests: int) -> None:
        self._max_concurrent_requests = max_concurrent_requests
        self.num_active = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a place. Raises: ApiError 503."""
        if self.num_active >= self._max_concurrent_requests:
            raise ApiError(
                503,
                f"{self.num_active} requests are under way, the limit of this frontend; "
                "try again later",
                kind="overloaded_error",
                code="too_many_concurrent_requests",
                retry_after_s=1,
            )
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1


async def read_body(scope: Scope, receive: Receive, limits: HttpLimits) -> bytes:
    """The body of a JSON request.

    Raises: ApiError (408 too slow, 413 too large, 415 not JSON), ClientGoneError.
    """
    headers = dict(scope["headers"])
    _check_encoding(headers)
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read(receive, limits)
    except TimeoutError:
        raise ApiError(
            408, f"the body was not complete within {limits.body_timeout_s:g} s", code="timeout"
        ) from None


async def _read(receive: Receive, limits: HttpLimits) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body: bytes = message.get("body", b"")
        num_bytes += len(body)
        if num_bytes > limits.max_body_bytes:
            raise _too_large(limits)
        parts.append(body)
        if not message.get("more_body"):
            return body if len(parts) == 1 else b"".join(parts)


def _too_large(limits: HttpLimits) -> ApiError:
    return ApiError(
        413,
        f"the request body is larger than {limits.max_body_bytes} bytes",
        code="request_too_large",
    )


def _check_encoding(headers: dict[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise ApiError(
            415,
            f"Content-Encoding {encoding.decode('latin-1')!r} is not supported; send the body "
            "uncompressed",
            code="unsupported_encoding",
        )
    content_type = headers.get(b"content-type", b"application/json")
    media_type = content_type.split(b";", 1)[0].strip().lower()
    if media_type != b"application/json" and not media_type.endswith(b"+json"):
        raise ApiError(
            415,
            f"Content-Type {media_type.decode('latin-1')!r} is not supported; send "
            "application/json",
            code="unsupported_media_type",
        )
