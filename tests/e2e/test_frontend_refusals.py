"""Clients that send too much, too slowly or without an end: answered, then cut off. Raw sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
import uvloop
from http_support import MODEL, app_of, dispatcher_saying
from starlette.types import Receive, Scope, Send
from waiting import PATIENCE_S

from dynosim_runtime.http import connection
from dynosim_runtime.http.connection import BoundedConnection
from dynosim_runtime.http.limits import HttpLimits
from dynosim_runtime.ports import listening_socket

MAX_HEAD = 2000
MAX_BODY = 50_000
LINGER_BYTES = 4 << 20
KERNEL_BYTES = 16 << 20  # what sockets may hold on the way; far less than a flood
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"model": "%s", "prompt": "x", "max_tokens": 5}' % MODEL.encode()
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

NEVER_S = 10 * PATIENCE_S

Test = Callable[["Client"], Awaitable[None]]
Run = Callable[..., None]
seen_headers: list[list[tuple[bytes, bytes]]] = []


def head_of(num_bytes: int, filler: bytes = b"y") -> bytes:
    """A request whose head has so many bytes."""
    start, end = b"GET /live HTTP/1.1\r\nHost: x\r\nX-Long: a", b"z\r\n\r\n"
    return start + filler * (num_bytes - len(start) - len(end)) + end


class Client:
    """A raw connection to the frontend's HTTP side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def another(self) -> "Client":
        """Another connection to the same place."""
        return Client(*await asyncio.open_connection(*self.writer.get_extra_info("peername")))

    async def send(self, *pieces: bytes) -> None:
        """Each piece in a segment of its own, as far as the system lets us."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.005)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer, whose length is told."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await self.reader.readexactly(int(fields[b"content-length"]))
        return int(head.split()[1]), head + body

    async def flood(self, piece: bytes) -> int:
        """Send for ever; returns how many bytes went before we were cut off."""
        num_bytes = 0
        with suppress(ConnectionError):
            while True:
                self.writer.write(piece)
                await self.writer.drain()
                num_bytes += len(piece)
        return num_bytes

    async def is_ended(self) -> None:
        """Returns when the other end has said all it had to say."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    async def is_cut_off(self) -> None:
        """Returns when the other end is gone for good: nothing can be sent any more."""
        await self.is_ended()
        with suppress(ConnectionError):
            while True:
                await self.send(b"y")


async def is_cut_off(client: Client, *pieces: bytes) -> None:
    """Who sends this once more, where nobody is listened to for long, is gone for good."""
    connection.LINGER_S = 0.05  # after the answers were seen: it may cost those that are not read
    again = await client.another()
    await again.send(*pieces)
    await again.is_cut_off()


@asynccontextmanager
async def served(body_timeout_s: float) -> AsyncIterator[int]:
    limits = HttpLimits(max_body_bytes=MAX_BODY, body_timeout_s=body_timeout_s)
    app = app_of(dispatcher_saying("hello"), limits=limits)

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        seen_headers.append(scope["headers"])
        await app(scope, receive, send)

    listener = listening_socket("127.0.0.1", 0)
    config = uvicorn.Config(
        watched, http=BoundedConnection, ws="none", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test's client against a frontend on the loop of this kind: transports differ."""
    monkeypatch.setattr(connection, "MAX_HEAD_BYTES", MAX_HEAD)
    monkeypatch.setattr(connection, "LINGER_BYTES", LINGER_BYTES)

    async def with_client(test: Test, body_timeout_s: float) -> None:
        async with asyncio.timeout(PATIENCE_S), served(body_timeout_s) as port:
            client = Client(*await asyncio.open_connection("127.0.0.1", port))
            await test(client)
            client.writer.close()

    def run_it(test: Test, *, linger_s: float = NEVER_S, body_timeout_s: float = NEVER_S) -> None:
        """Nobody is cut off for his time, which may be the machine's, unless a test says so."""
        monkeypatch.setattr(connection, "LINGER_S", linger_s)
        seen_headers.clear()
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(with_client(test, body_timeout_s))

    return run_it


def test_an_endless_body_is_refused_and_cut_off(run: Run) -> None:
    async def test(client: Client) -> None:
        await client.send(CHUNKED)
        reading = asyncio.create_task(client.answer())
        sent = await client.flood(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert sent < LINGER_BYTES + KERNEL_BYTES
        status, text = await reading
        assert status == 413 and b"connection: close" in text.lower()

    run(test)


def test_a_body_announced_as_too_large_is_not_waited_for(run: Run) -> None:
    async def test(client: Client) -> None:
        announced = POST + b"Content-Length: 99999999999\r\n\r\nabc"
        await client.send(announced)
        assert (await client.answer())[0] == 413
        await is_cut_off(client, announced)

    run(test)


def test_who_reads_only_after_all_is_sent_still_gets_the_answer(
    run: Run,
) -> None:
    async def test(client: Client) -> None:
        size = 40 * MAX_BODY
        await client.send(POST + b"Content-Length: %d\r\n\r\n" % size, b"x" * size)
        assert (await client.answer())[0] == 413
        assert await client.reader.read() == b""  # an end, not a reset

    run(test)


@pytest.mark.parametrize("first", [b"", b'{"model"'])
def test_a_slow_body_is_refused_and_its_trickle_cut_off(run: Run, first: bytes) -> None:
    async def test(client: Client) -> None:
        begun = POST + b"Content-Length: 1000\r\n\r\n" + first
        await client.send(begun)
        assert (await client.answer())[0] == 408
        await is_cut_off(client, begun)

    run(test, body_timeout_s=0.1)


@pytest.mark.parametrize("path", [b"/live", b"/nowhere"])
def test_a_body_that_nobody_reads_is_bounded_too(run: Run, path: bytes) -> None:
    async def test(client: Client) -> None:
        await client.send(CHUNKED.replace(b"/v1/completions", path))
        assert (await client.answer())[0] in (404, 405)
        assert await client.flood(b"10000\r\n" + b"x" * 65536 + b"\r\n") < (
            LINGER_BYTES + KERNEL_BYTES
        )

    run(test)


def test_a_body_that_comes_after_its_answer_costs_no_connection(
    run: Run,
) -> None:
    async def test(client: Client) -> None:
        nowhere = WHOLE.replace(b"/v1/completions", b"/nowhere")
        head, body = nowhere[: -len(BODY)], BODY
        for _ in range(2):
            await client.send(head)
            assert (await client.answer())[0] == 404
            await client.send(body[:10], body[10:])
        await client.send(WHOLE)
        assert (await client.answer())[0] == 200
        await asyncio.sleep(1.2 * connection.LINGER_S)  # what is over is over
        await client.send(WHOLE)
        assert (await client.answer())[0] == 200

    run(test, linger_s=2.0)


@pytest.mark.parametrize("before", [b"", head_of(100), WHOLE], ids=["first", "after", "pipelined"])
def test_heads_have_their_limit_however_they_arrive(run: Run, before: bytes) -> None:
    async def sends(client: Client, head: bytes, cuts: tuple[int, ...]) -> int:
        ends = [*cuts, len(head)]
        pieces = [head[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        await client.send(before + pieces[0], *pieces[1:])
        if before:
            assert (await client.answer())[0] == 200
        return (await client.answer())[0]

    async def test(first: Client) -> None:
        for filler in (b"y", b" "):  # blanks are no part of what the parser tells
            for cuts in ((), (1000,), (1990, 1999)):
                client = await first.another()
                for more, status in ((-1, 200), (0, 200), (1, 431)):
                    assert await sends(client, head_of(MAX_HEAD + more, filler), cuts) == status
                await client.is_ended()
        await is_cut_off(first, head_of(MAX_HEAD + 1))

    run(test)


def test_a_large_head_behind_a_body_in_chunks_is_refused(run: Run) -> None:
    async def test(client: Client) -> None:
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        await client.send(CHUNKED + chunks + head_of(MAX_HEAD))
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
        await client.send(CHUNKED + chunks + head_of(MAX_HEAD + 60))
        assert [(await client.answer())[0] for _ in range(2)] == [200, 431]

    run(test)


@pytest.mark.parametrize(
    ("bad", "status"), [(head_of(MAX_HEAD + 1), 431), (b"no http\r\n\r\n", 400)]
)
def test_a_refusal_waits_for_the_answers_before_it(run: Run, bad: bytes, status: int) -> None:
    async def test(client: Client) -> None:
        await client.send(WHOLE + WHOLE + bad)
        assert [(await client.answer())[0] for _ in range(3)] == [200, 200, status]
        await is_cut_off(client, bad)

    run(test)


def test_trailers_are_not_kept(run: Run) -> None:
    async def test(client: Client) -> None:
        trailers = b"".join(b"X-Trailer: %d\r\n" % i for i in range(1000))
        await client.send(CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY), trailers + b"\r\n")
        assert (await client.answer())[0] == 200
        assert [len(headers) for headers in seen_headers] == [3]
        await client.send(WHOLE)
        assert (await client.answer())[0] == 200
        assert seen_headers[1][-1] == (b"content-length", b"%d" % len(BODY))

    run(test)
