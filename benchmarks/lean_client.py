#!/usr/bin/env python3
"""A load generator that costs little: streamed completions over kept connections, raw bytes.

    python benchmarks/lean_client.py < load.json > measured.json

While the load runs, an answer is a list of byte strings and two times; what it says is read, and
checked token by token, when all have ended. `benchmarks/frontend.py` starts it.
"""

import asyncio
import random
import re
import sys
import time
from collections.abc import Iterator
from typing import cast
from urllib.parse import urlsplit

import msgspec
import uvloop

FIRST_TOKEN = re.compile(rb'"token_ids":\[\d')  # `prompt_token_ids` has no quote there
END_OF_ANSWER = b"0\r\n\r\n"
TIMEOUT_S = 120.0


class Load(msgspec.Struct, kw_only=True):
    """What to ask for: `num_requests` at `rate_rps`, or by `concurrency` clients in turn."""

    urls: list[str]  # asked in turn
    model: str
    num_requests: int
    rate_rps: float | None = None  # evenly spaced; None: as fast as `concurrency` allows
    concurrency: int = 1
    prompt_tokens: int = 256
    shared_tokens: int = 128  # of each prompt, with a sixteenth of the others
    max_tokens: int = 16
    vocabulary: int = 2000
    seed: int = 0


class Measured(msgspec.Struct, kw_only=True):
    """What came back. Times by request, in order of their start, of those that did not fail."""

    wall_s: float
    cpu_s: float  # of this process, while the load ran
    tokens: int
    ttft_ms: list[float]
    e2e_ms: list[float]
    errors: list[str]


class Answer(asyncio.Protocol):
    """A connection, and the answer that it brings at present."""

    def __init__(self) -> None:
        self._is_done: asyncio.Future[None] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the answer before."""
        self.pieces: list[bytes] = []
        self.first_token_s = self.end_s = 0.0

    async def ask(self, request: bytes) -> None:
        """Send a request; returns at the end of its answer. Raises: ConnectionError."""
        self.reset()
        self._is_done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._is_done

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        now_s = time.perf_counter()
        self.pieces.append(data)
        if not self.first_token_s and FIRST_TOKEN.search(data):
            self.first_token_s = now_s
        if len(data) < len(END_OF_ANSWER):
            data = b"".join(self.pieces[-len(END_OF_ANSWER) :])
        is_refused = len(self.pieces) == 1 and not data.startswith(b"HTTP/1.1 200")
        if is_refused or data.endswith(END_OF_ANSWER):
            self.end_s = now_s
            if self._is_done is not None and not self._is_done.done():
                self._is_done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._is_done is not None and not self._is_done.done():
            self._is_done.set_exception(ConnectionError(f"connection lost: {error}"))


class Asked(msgspec.Struct):
    """A request that ended, one way or another."""

    start_s: float
    first_token_s: float
    end_s: float
    pieces: list[bytes]
    error: str | None


class Client:
    """Runs a load over as many connections as it needs."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._idle: dict[str, list[Answer]] = {url: [] for url in load.urls}
        self._bodies = make_bodies(load)
        self.asked: list[Asked] = []

    async def run(self) -> None:
        """All requests, to the end of the last."""
        if self._load.rate_rps is not None:
            await self._run_at(self._load.rate_rps)
        else:
            turns = iter(range(self._load.num_requests))
            clients = (self._ask_in_turn(turns) for _ in range(self._load.concurrency))
            await asyncio.gather(*clients)
        for idle in self._idle.values():
            for answer in idle:
                answer.close()

    async def _run_at(self, rate_rps: float) -> None:
        start_s, tasks = time.perf_counter(), []
        for number in range(self._load.num_requests):
            await asyncio.sleep(start_s + number / rate_rps - time.perf_counter())
            tasks.append(asyncio.create_task(self._ask(number)))
        await asyncio.gather(*tasks)

    async def _ask_in_turn(self, turns: Iterator[int]) -> None:
        for number in turns:
            await self._ask(number)

    async def _ask(self, number: int) -> None:
        url = self._load.urls[number % len(self._load.urls)]
        request, start_s, error = self._bodies[number], time.perf_counter(), None
        answer = self._idle[url].pop() if self._idle[url] else None
        try:
            answer = answer or await connect(url)
            async with asyncio.timeout(TIMEOUT_S):
                await answer.ask(request)
            self._idle[url].append(answer)
        except (OSError, TimeoutError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        pieces = [] if answer is None else answer.pieces
        first_token_s = 0.0 if answer is None else answer.first_token_s
        end_s = 0.0 if answer is None else answer.end_s
        self.asked.append(Asked(start_s, first_token_s, end_s, pieces, error))


async def connect(url: str) -> Answer:
    """A new connection. Raises: OSError."""
    parts = urlsplit(url)
    _, answer = await asyncio.get_running_loop().create_connection(
        Answer, parts.hostname or "", parts.port or 80
    )
    return answer


def make_bodies(load: Load) -> list[bytes]:
    """The requests as bytes."""
    draw = random.Random(load.seed).randrange
    prefixes = [
        [draw(3, load.vocabulary) for _ in range(load.shared_tokens)] for _ in range(16)
    ]  # fmt: skip
    requests = []
    for number in range(load.num_requests):
        own = [draw(3, load.vocabulary) for _ in range(load.prompt_tokens - load.shared_tokens)]
        body = msgspec.json.encode(
            {
                "model": load.model,
                "prompt": prefixes[number % 16] + own,
                "max_tokens": load.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                "return_token_ids": True,
            }
        )
        requests.append(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
    return requests


def tokens_of(asked: Asked) -> int:
    """Tokens of a complete answer. Raises: ValueError that tells what is wrong with it."""
    raw = b"".join(asked.pieces)
    head, _, chunks = raw.partition(b"\r\n\r\n")
    if asked.error is not None or not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(asked.error or raw[:300].decode(errors="replace"))
    body = bytearray()
    while (size := int(chunks[: chunks.index(b"\r\n")], 16)) > 0:
        start = chunks.index(b"\r\n") + 2
        body += chunks[start : start + size]
        chunks = chunks[start + size + 2 :]
    events = body.decode().split("\n\n")
    if "data: [DONE]" not in events:
        raise ValueError(f"an answer without its end: {events[-2:]}")
    count = 0
    for event in events:
        if event.startswith("data: {"):
            for choice in msgspec.json.decode(event[6:])["choices"]:
                count += len(choice.get("token_ids") or ())
    return count


def measured(load: Load, asked: list[Asked], wall_s: float, cpu_s: float) -> Measured:
    """What the answers come to."""
    result = Measured(wall_s=wall_s, cpu_s=cpu_s, tokens=0, ttft_ms=[], e2e_ms=[], errors=[])
    for one in sorted(asked, key=lambda one: one.start_s):
        try:
            count = tokens_of(one)
            if count != load.max_tokens:
                raise ValueError(f"{count} tokens instead of {load.max_tokens}")
        except ValueError as error:
            result.errors.append(str(error))
            continue
        result.tokens += count
        result.ttft_ms.append((one.first_token_s - one.start_s) * 1e3)
        result.e2e_ms.append((one.end_s - one.start_s) * 1e3)
    return result


def main() -> None:
    """One load, from standard input to standard output."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    client = Client(load)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    uvloop.run(client.run())
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    result = measured(load, client.asked, wall_s, cpu_s)
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
