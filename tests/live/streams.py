"""Many completion streams at once, kept token by token."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from dynosim_runtime.clients.sse_read import SseParser


@dataclass
class Stream:
    """What one client got."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    is_done: bool = False
    error: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    nvext: dict[str, Any] = field(default_factory=dict)


async def stream_completion(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> Stream:
    """One streamed completion with token ids."""
    stream, parser = Stream(), SseParser()
    body = {
        "stream": True,
        "model": "tiny",
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "ignore_eos": True,
        **body,
    }
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                stream.error = f"{response.status}: {await response.text()}"
                return stream
            async for data in response.content.iter_any():
                for event in parser.feed(data):
                    _take(stream, event)
    except aiohttp.ClientError as error:
        stream.error = repr(error)
    return stream


def _take(stream: Stream, event: bytes) -> None:
    if event == b"[DONE]":
        stream.is_done = True
        return
    document = orjson.loads(event)
    if "error" in document:
        stream.error = str(document["error"])
        return
    for choice in document["choices"]:
        stream.token_ids += choice.get("token_ids") or []
        stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
    stream.usage = document.get("usage") or stream.usage
    stream.nvext = document.get("nvext") or stream.nvext


async def stream_all(url: str, bodies: list[dict[str, Any]]) -> list[Stream]:
    """All at once, over as many connections."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await asyncio.gather(*(stream_completion(session, url, body) for body in bodies))


def prompt(number: int, length: int, *, shared: int = 0) -> list[int]:
    """Token ids of a prompt; the first `shared` are the same for every number."""
    own = [3 + (7919 * number + 31 * i) % 2000 for i in range(length - shared)]
    return [3 + (17 * i) % 2000 for i in range(shared)] + own
