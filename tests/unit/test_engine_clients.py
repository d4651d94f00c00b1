"""Clients of SGLang and TensorRT-LLM against streams in their form, made by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import (
    EngineClient,
    EngineDelta,
    EngineLostError,
    EngineRefusedError,
    EngineRequest,
)
from dynosim_runtime.clients.connections import Connections
from dynosim_runtime.clients.sglang import SglangEngineClient, generate_body
from dynosim_runtime.clients.trtllm import TrtllmEngineClient, trtllm_body
from dynosim_runtime.requests import Sampling, StructuredOutput, TokenLogprob
from dynosim_runtime.testing.discovery import card_of

REQUEST = EngineRequest(
    request_id="r1",
    token_ids=[7, 8, 9],
    sampling=Sampling(
        max_tokens=5, temperature=0.0, top_k=3, seed=1, stop_token_ids=(2,), ignore_eos=True
    ),
    priority=-4,
    cache_salt="tenant",
)


class FakeServer:
    """Answers a path with a stream of events, and keeps what it was sent."""

    def __init__(self, path: str, events: list[Any], status: int = 200, hang: bool = False) -> None:
        self._events = events
        self._status = status
        self._hang = hang
        self.bodies: list[dict[str, Any]] = []
        self.aborted: list[dict[str, Any]] = []
        self.app = web.Application()
        self.app.router.add_post(path, self._answer)
        self.app.router.add_post("/abort_request", self._abort)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        if self._status != 200:
            return web.json_response(self._events[0], status=self._status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self._events:
            data = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {data}\n\n".encode())
        if self._hang:
            await asyncio.Event().wait()
        return response

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted.append(await request.json())
        return web.Response()


@asynccontextmanager
async def serving(
    fake: FakeServer, client_type: Any
) -> AsyncIterator[tuple[EngineClient, LiveCard]]:
    """A client, and the card of the server it is for."""
    async with TestServer(fake.app) as server, aiohttp.ClientSession() as session:
        url = str(server.make_url("")).rstrip("/")
        client = client_type(session if client_type is SglangEngineClient else Connections())
        yield client, card_of("w", engine="sglang", url=url)


async def deltas(fake: FakeServer, client_type: Any) -> list[EngineDelta]:
    async with serving(fake, client_type) as (client, card):
        return [delta async for delta in client.stream(card, REQUEST)]


def piece(ids: list[int], total: int, finish: dict[str, Any] | None = None) -> dict[str, Any]:
    """A piece of an answer of SGLang."""
    meta = {"id": "r1", "finish_reason": finish, "prompt_tokens": 3, "completion_tokens": total,
            "cached_tokens": 2}  # fmt: skip
    return {"text": "x", "output_ids": ids, "meta_info": meta}


LENGTH = {"type": "length", "length": 4}


@pytest.mark.parametrize(
    "pieces",
    [
        [piece([1], 1), piece([1, 2, 3], 3), piece([1, 2, 3, 4], 4, LENGTH)],
        [piece([1], 1), piece([2, 3], 3), piece([4], 4, LENGTH)],
        [piece([1], 1), piece([1], 1), piece([1, 2, 3], 3), piece([1, 2, 3, 4], 4, LENGTH)],
    ],
    ids=["all so far", "increments", "a piece twice"],
)
async def test_sglangs_tokens_come_once_each(pieces: list[dict[str, Any]]) -> None:
    found = await deltas(FakeServer("/generate", [*pieces, "[DONE]"]), SglangEngineClient)
    assert [token for delta in found for token in delta.token_ids] == [1, 2, 3, 4]
    assert [delta.finish_reason for delta in found] == [None, None, "length"]
    assert {delta.cached_tokens for delta in found} == {2}


@pytest.mark.parametrize("is_incremental", [False, True])
async def test_sglangs_logprobs_come_with_their_tokens(is_incremental: bool) -> None:
    told = [[-0.1, 1, None], [-0.2, 2, "b"], [-0.3, 3, None]]
    tops = [[[-0.1, 1, None], [-3.0, 8, None]], None, []]
    pieces = []
    for begin, end, finish in ((0, 1, None), (1, 3, LENGTH)):
        begin = begin if is_incremental else 0
        one = piece([1, 2, 3][begin:end], end, finish)
        one["meta_info"]["output_token_logprobs"] = told[begin:end]
        one["meta_info"]["output_top_logprobs"] = tops[begin:end]
        pieces.append(one)
    found = await deltas(FakeServer("/generate", [*pieces, "[DONE]"]), SglangEngineClient)
    assert [token for delta in found for token in delta.logprobs or ()] == [
        TokenLogprob(1, -0.1, [(1, -0.1), (8, -3.0)]),
        TokenLogprob(2, -0.2),
        TokenLogprob(3, -0.3),
    ]


@pytest.mark.parametrize(
    ("structured", "words"),
    [
        (StructuredOutput(kind="json_object"), {"json_schema": '{"type":"object"}'}),
        (
            StructuredOutput(kind="json", form={"type": "array"}),
            {"json_schema": '{"type":"array"}'},
        ),
        (StructuredOutput(kind="regex", form="a+"), {"regex": "a+"}),
        (StructuredOutput(kind="choice", form=["a.", "b"]), {"regex": r"(a\.|b)"}),
        (StructuredOutput(kind="grammar", form="root ::= x"), {"ebnf": "root ::= x"}),
    ],
)
def test_sglang_is_told_the_form_and_asked_for_logprobs(
    structured: StructuredOutput, words: dict[str, str]
) -> None:
    sampling = Sampling(max_tokens=5, logprobs=2, structured=structured)
    request = EngineRequest(request_id="r", token_ids=[1], sampling=sampling)
    body = generate_body(card_of("w", engine="sglang"), request)
    assert words.items() <= body["sampling_params"].items()
    assert (body["return_logprob"], body["top_logprobs_num"]) == (True, 2)


@pytest.mark.parametrize(
    ("events", "status", "error", "message"),
    [
        ([piece([1], 1)], 200, EngineLostError, "without a finish reason"),
        ([piece([4], 4)], 200, EngineLostError, "left 4 output tokens out"),
        (["{"], 200, EngineLostError, "no piece of a generation"),
        ([{"error": {"message": "scheduler died"}}], 200, EngineLostError, "scheduler died"),
        ([{"error": {"message": "too long"}}], 400, EngineRefusedError, "too long"),
        ([{"error": {"message": "full"}}], 429, EngineLostError, "full"),
        ([{"x": 1}], 503, EngineLostError, "503"),
        (
            [piece([], 0, {"type": "abort", "message": "bad input", "status_code": 400})],
            200,
            EngineRefusedError,
            "bad input",
        ),
        ([piece([1], 1, {"type": "abort", "message": "shut down"})], 200, EngineLostError, "shut"),
    ],
)
async def test_sglangs_failures_are_told_apart(
    events: list[Any], status: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await deltas(FakeServer("/generate", events, status), SglangEngineClient)


async def test_a_request_that_is_closed_is_aborted_in_sglang() -> None:
    fake = FakeServer("/generate", [piece([1], 1)], hang=True)
    async with serving(fake, SglangEngineClient) as (client, card):
        stream = client.stream(card, REQUEST)
        assert (await anext(stream)).token_ids == [1]
        await stream.aclose()  # type: ignore[attr-defined]
        assert fake.aborted == [{"rid": "r1"}]


async def test_a_request_that_has_ended_is_not_aborted() -> None:
    fake = FakeServer("/generate", [piece([1], 1, LENGTH), "[DONE]"])
    await deltas(fake, SglangEngineClient)
    assert fake.aborted == []


async def test_a_server_that_is_not_there_is_lost() -> None:
    async with aiohttp.ClientSession() as session:
        for client in (SglangEngineClient(session), TrtllmEngineClient(Connections())):
            with pytest.raises(EngineLostError):
                async for _ in client.stream(card_of("w", url="http://127.0.0.1:1"), REQUEST):
                    pass


def test_sglang_is_asked_in_its_words() -> None:
    body = generate_body(card_of("w", accepts_priority=True), REQUEST)
    assert body == {
        "rid": "r1",
        "input_ids": [7, 8, 9],
        "sampling_params": {
            "max_new_tokens": 5,
            "temperature": 0.0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "top_k": 3,
            "sampling_seed": 1,
            "stop_token_ids": [2],
            "ignore_eos": True,
        },
        "stream": True,
        "extra_key": "tenant",
        "priority": -4,
    }
    assert "priority" not in generate_body(card_of("w"), REQUEST)


async def test_trtllm_gives_token_ids_without_text() -> None:
    def choice(ids: list[int], reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "text": "", "token_ids": ids, "finish_reason": reason}]}

    usage = {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 2}}}
    events = [choice([1]), choice([2, 3]), choice([4], "length"), usage, "[DONE]"]
    fake = FakeServer("/v1/completions", events)
    found = await deltas(fake, TrtllmEngineClient)
    assert [token for delta in found for token in delta.token_ids] == [1, 2, 3, 4]
    assert [delta.finish_reason for delta in found if delta.finish_reason] == ["length"]
    assert [delta.cached_tokens for delta in found if delta.cached_tokens] == [2]
    assert fake.bodies[0]["detokenize"] is False


def test_trtllm_is_sent_no_field_it_does_not_know() -> None:
    body = trtllm_body(card_of("w", accepts_priority=True), REQUEST)
    assert body["prompt"] == [7, 8, 9]
    assert not {"return_token_ids", "priority"} & set(body)
