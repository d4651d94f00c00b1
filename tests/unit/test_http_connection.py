"""Clients that do not send a request's head, or send too much of it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from dynosim_runtime.http import connection
from dynosim_runtime.http.connection import BoundedConnection
from dynosim_runtime.http.sse_write import send_json
from dynosim_runtime.ports import listening_socket

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
BODY = b"x" * 5000
WHOLE = HEAD + b"Content-Length: 5000\r\n\r\n" + BODY


async def answer_size(scope: Scope, receive: Receive, send: Send) -> None:
    num_bytes, is_whole = 0, False
    while not is_whole:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        is_whole = not message.get("more_body")
    await send_json(send, 200, str(num_bytes).encode(), {})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(connection, "MAX_HEAD_BYTES", 1000)
    listener = listening_socket("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(answer_size, http=BoundedConnection, ws="none", lifespan="off")
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()[1]
    server.should_exit = True
    await serving


async def test_a_head_without_an_end_is_refused(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"X-Long: " + b"y" * 2000)
    assert (await reader.read()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("sent", [b"", HEAD])
async def test_a_client_that_does_not_go_on_is_cut_off(
    port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert await reader.read() == b""


async def test_bodies_and_requests_in_a_row_are_no_heads(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in (WHOLE[:10], WHOLE[10:50], WHOLE[50:3000], WHOLE[3000:]):
        writer.write(piece)
        await asyncio.sleep(0.02)
    answer = await reader.readuntil(b"5000")
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.02)  # whole heads take no time at all
    writer.write(WHOLE + WHOLE)
    for _ in range(2):
        assert (await reader.readuntil(b"\r\n\r\n5000")).startswith(b"HTTP/1.1 200 ")
    assert answer.startswith(b"HTTP/1.1 200 ")
    await asyncio.sleep(0.1)  # an idle connection is uvicorn's business
    writer.write(WHOLE)
    assert (await reader.readuntil(b"\r\n\r\n5000")).startswith(b"HTTP/1.1 200 ")
    writer.close()
