"""vLLM's dialect, from the asking side, against a server with scripted answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from live_support import card
from msgspec.structs import replace
from waiting import PATIENCE_S

from dynosim_runtime.clients.base import (
    EngineDelta,
    EngineLostError,
    EngineRefusedError,
    EngineRequest,
)
from dynosim_runtime.clients.connections import Connections
from dynosim_runtime.clients.openai import OpenAiEngineClient, completion_body
from dynosim_runtime.clients.sse_read import SseParser
from dynosim_runtime.requests import Sampling, StructuredOutput, TokenLogprob

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST = EngineRequest(request_id="r", token_ids=[1, 2], sampling=Sampling(max_tokens=3))


def chunk(token_ids: list[int], finish_reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "text": "x", "token_ids": token_ids, "finish_reason": finish_reason}
    return {"id": "c", "object": "text_completion", "choices": [choice]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}


def streaming(*documents: dict[str, object], done: bool = True, dies: bool = False) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for document in documents:
            await response.write(b"data: " + json.dumps(document).encode() + b"\n\n")
            await asyncio.sleep(0.01)
        if dies:
            assert request.transport is not None
            request.transport.abort()
        elif done:
            await response.write(b"data: [DONE]\n\n")
        return response

    return handle


def refusing(status: int, text: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    return handle


async def answer(handler: Handler) -> list[EngineDelta]:
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    async with TestServer(app) as server:
        worker = card("w", url=str(server.make_url("/")).rstrip("/"))
        client = OpenAiEngineClient(Connections())
        return [delta async for delta in client.stream(worker, REQUEST)]


async def test_tokens_reason_and_cached_tokens_come_through() -> None:
    deltas = await answer(streaming(chunk([5]), chunk([6, 7], "length"), USAGE))
    assert [token for delta in deltas for token in delta.token_ids] == [5, 6, 7]
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert [delta.cached_tokens for delta in deltas if delta.cached_tokens is not None] == [1]


@pytest.mark.parametrize(
    "handler",
    [
        streaming(chunk([5]), dies=True),
        streaming(chunk([5])),  # no finish reason
        streaming(chunk([5], "abort")),
        streaming({"error": {"message": "engine dead", "code": 500}}),
        streaming({"choices": "no"}),
        refusing(503, "draining"),
        refusing(500, "no json"),
    ],
)
async def test_an_engine_that_gives_up_is_lost(handler: Handler) -> None:
    with pytest.raises(EngineLostError):
        await answer(handler)


async def test_nobody_listening_is_lost() -> None:
    client = OpenAiEngineClient(Connections())
    with pytest.raises(EngineLostError):
        async for _ in client.stream(card("w", url="http://127.0.0.1:9"), REQUEST):
            pass


async def test_a_refusal_keeps_its_status_and_reason() -> None:
    body = json.dumps({"error": {"message": "too long", "code": 400}})
    with pytest.raises(EngineRefusedError, match=r"^too long$") as caught:
        await answer(refusing(400, body))
    assert caught.value.status == 400
    with pytest.raises(EngineRefusedError, match="bad token"):
        await answer(streaming({"error": {"message": "bad token", "code": 422}}))


async def test_closing_the_iterator_hangs_up() -> None:
    gone = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: " + json.dumps(chunk([1])).encode() + b"\n\n")
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            gone.set()
            raise

    app = web.Application()
    app.router.add_post("/v1/completions", handle)
    async with TestServer(app) as server:
        worker = card("w", url=str(server.make_url("/")).rstrip("/"))
        stream = OpenAiEngineClient(Connections()).stream(worker, REQUEST)
        assert isinstance(stream, AsyncIterator)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()


@pytest.mark.parametrize(("engine", "stop"), [("vllm", ["a", "b"]), ("mock", None)])
def test_stop_strings_go_to_engines_that_find_them(engine: str, stop: list[str] | None) -> None:
    request = EngineRequest(
        request_id="r", token_ids=[1], sampling=Sampling(max_tokens=3, stop=("a", "b"))
    )
    assert completion_body(card("w", engine=engine), request).get("stop") == stop


def logprobs_chunk(token_ids: list[int], tops: list[dict[str, float]]) -> dict[str, object]:
    told = {
        "tokens": [f"token_id:{token_id}" for token_id in token_ids],
        "token_logprobs": [-0.5] * len(token_ids),
        "top_logprobs": tops,
        "text_offset": [0] * len(token_ids),
    }
    choice = {"index": 0, "text": "x", "token_ids": token_ids, "logprobs": told}
    return {"id": "c", "choices": [choice]}


async def test_logprobs_come_with_their_tokens() -> None:
    first = logprobs_chunk([5], [{"token_id:5": -0.5, "token_id:9": -1.0}])
    second = logprobs_chunk([6, 7], [{}, {"token_id:7": -0.5}])
    deltas = await answer(streaming(first, second, chunk([], "stop")))
    told = [token for delta in deltas for token in delta.logprobs or ()]
    assert told == [
        TokenLogprob(5, -0.5, [(5, -0.5), (9, -1.0)]),
        TokenLogprob(6, -0.5),
        TokenLogprob(7, -0.5, [(7, -0.5)]),
    ]


async def test_logprobs_that_do_not_fit_are_the_engines_fault() -> None:
    choice = {"index": 0, "token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0]}}
    with pytest.raises(EngineLostError, match="logprobs do not fit"):
        await answer(streaming({"choices": [choice]}))


@pytest.mark.parametrize(
    ("structured", "words"),
    [
        (StructuredOutput(kind="json_object"), {"json_object": True}),
        (StructuredOutput(kind="json", form={"type": "array"}), {"json": {"type": "array"}}),
        (StructuredOutput(kind="choice", form=["a"]), {"choice": ["a"]}),
    ],
)
def test_logprobs_and_form_are_asked_for_in_vllms_words(
    structured: StructuredOutput, words: dict[str, object]
) -> None:
    sampling = Sampling(max_tokens=3, logprobs=0, structured=structured)
    request = EngineRequest(request_id="r", token_ids=[1], sampling=sampling)
    body = completion_body(card("w", engine="vllm"), request)
    assert body["structured_outputs"] == words
    assert (body["logprobs"], body["return_tokens_as_token_ids"]) == (0, True)


def test_defaults_are_left_to_the_server() -> None:
    body = completion_body(card("w"), REQUEST)
    assert set(body) == {
        "model", "prompt", "max_tokens", "temperature", "stream", "stream_options",
        "return_token_ids",
    }  # fmt: skip
    sampling = Sampling(max_tokens=3, top_p=0.5, ignore_eos=True, stop_token_ids=(7,))
    request = EngineRequest(request_id="r", token_ids=[1], sampling=sampling, priority=-2)
    body = completion_body(card("w", accepts_priority=True), request)
    assert (body["top_p"], body["ignore_eos"], body["stop_token_ids"]) == (0.5, True, [7])
    assert body["priority"] == -2
    assert "priority" not in completion_body(card("w"), request)


def test_only_engines_that_can_are_asked_to_keep_a_prompt() -> None:
    request = replace(REQUEST, pin_ttl_s=60.0)
    assert completion_body(card("w"), request)["pin_ttl_s"] == 60.0
    assert "pin_ttl_s" not in completion_body(card("w", engine="vllm"), request)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_survive_any_cut(size: int) -> None:
    text = b'data: {"a": 1}\r\n\r\n: comment\n\nevent: x\ndata: one\ndata: two\n\ndata:[DONE]\n\n'
    parser = SseParser()
    events = [e for i in range(0, len(text), size) for e in parser.feed(text[i : i + size])]
    assert events == [b'{"a": 1}', b"one\ntwo", b"[DONE]"]
