"""Connections to engines, against servers that say exactly what a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from waiting import until

from dynosim_runtime.clients import connections
from dynosim_runtime.clients.connections import Connections

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers each request with the next of `answers`; notes requests and connections."""

    def __init__(self, *answers: bytes, hangs_up: bool = False) -> None:
        self.requests: list[bytes] = []
        self.num_connections = 0
        self._answers = iter(answers)
        self._hangs_up = hangs_up

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                writer.write(next(self._answers, OK))
                await writer.drain()
                if self._hangs_up:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[str]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def asked(pool: Connections, url: str) -> tuple[int, bytes]:
    body = b""
    async with pool.post(url, "/v1/x", {"X-Request-Id": "r"}, b"{}") as connection:
        while piece := await connection.read():
            body += piece
        return connection.status, body


async def test_a_connection_serves_one_request_after_the_other() -> None:
    chunked = (
        b"HTTP/1.1 201 Fine\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    )
    server = Server(chunked, b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
    async with listening(server) as url:
        pool = Connections()
        assert await asked(pool, url + "/base/") == (201, b"abcd")
        assert await asked(pool, url + "/base/") == (200, b"ok")
        assert server.num_connections == 1
        assert server.requests[0] == (
            b"POST /base/v1/x HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\nX-Request-Id: r\r\n\r\n{}" % url.removeprefix("http://").encode()
        )
        pool.close()


async def test_what_cannot_be_used_again_is_not() -> None:
    closing = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
    server = Server(closing, OK)
    async with listening(server) as url:
        pool = Connections()
        assert await asked(pool, url) == (200, b"ok")
        assert await asked(pool, url) == (200, b"ok")
        assert server.num_connections == 2
        pool.close()


async def test_connections_that_were_idle_long_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    async with listening(server) as url:
        pool = Connections()
        await asked(pool, url)
        monkeypatch.setattr(connections, "MAX_IDLE_S", -1.0)
        await asked(pool, url)
        assert server.num_connections == 2
        pool.close()


async def test_a_server_that_hung_up_is_connected_to_again() -> None:
    server = Server(hangs_up=True)
    async with listening(server) as url:
        pool = Connections()
        await asked(pool, url)
        (kept,) = pool._idle[url]
        await until(lambda: not kept.is_reusable)
        assert await asked(pool, url) == (200, b"ok")
        assert server.num_connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_broken_answer_is_a_connection_error(answer: bytes) -> None:
    async with listening(Server(answer, hangs_up=True)) as url:
        with pytest.raises(ConnectionError):
            await asked(Connections(), url)


async def test_a_reader_who_leaves_hangs_up() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok")
    async with listening(server) as url:
        pool = Connections()
        async with pool.post(url, "/", {}, b"") as connection:
            assert await connection.read() == b"ok"
        assert await asked(pool, url) == (200, b"ok")
        assert server.num_connections == 2
        pool.close()


async def test_a_server_has_to_wait_for_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_UNREAD_BYTES", 1 << 16)
    size = 32 << 20
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
    async with listening(Server(head + bytes(size))) as url:
        pool = Connections()
        async with pool.post(url, "/", {}, b"") as connection:
            await until(lambda: connection._num_unread_bytes > 1 << 16)
            await asyncio.sleep(0.1)
            assert connection._num_unread_bytes < 4 << 20
            total = 0
            while piece := await connection.read():
                total += len(piece)
            assert total == size
        pool.close()
