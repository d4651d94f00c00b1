"""Streams: the order of events, what they carry, when they begin and how they end."""

import asyncio
from typing import Any

import pytest
from http_support import (
    MODEL,
    app_of,
    client_of,
    dispatcher_saying,
    events_of,
    says,
)
from waiting import PATIENCE_S

from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.limits import HttpLimits
from dynosim_runtime.http.observer import NoObserver
from dynosim_runtime.requests import GenerateRequest, TokenDelta
from dynosim_runtime.testing.dispatcher import Pause, ScriptedDispatcher
from dynosim_runtime.tokenize.byte_tokenizer import BYTE_OFFSET

HELLO = [{"role": "user", "content": "Hello"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
ID = {"x-request-id": "r1"}


async def stream(dispatcher: ScriptedDispatcher, path: str, **fields: Any) -> list[Any]:
    body = {"model": MODEL, "stream": True, **fields}
    async with client_of(app_of(dispatcher)) as client:
        answer = await client.post(path, json=body, headers=ID)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"] == "r1"
    return events_of(answer.text)


def slowly(text: str) -> ScriptedDispatcher:
    """One token at a time, so that none are merged."""

    def script(request: GenerateRequest) -> list[Any]:
        steps: list[Any] = []
        for delta in says(text)(request):
            steps += [delta, Pause(0)]
        return steps

    return ScriptedDispatcher(script, cached_tokens=3, worker_id=5)


async def test_chat_stream() -> None:
    events = await stream(slowly("ab"), CHAT, messages=HELLO)
    contents = [content for _, content in events]
    assert contents[-1] == "[DONE]"
    choices = [content["choices"][0] for content in contents[:-1]]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert {content["id"] for content in contents[:-1]} == {"chatcmpl-r1"}
    last = contents[-2]["nvext"]
    assert last["worker_id"]["decode_worker_id"] == 5
    assert last["timing"].keys() == {
        "request_received_ms",
        "prefill_wait_time_ms",
        "prefill_time_ms",
        "ttft_ms",
        "total_time_ms",
        "kv_hit_rate",
    }


async def test_tokens_that_are_ready_are_merged() -> None:
    events = await stream(dispatcher_saying("hello"), COMPLETIONS, prompt="x")
    texts = [content["choices"][0]["text"] for _, content in events[:-1]]
    assert texts == ["hello", ""]


async def test_usage_comes_in_a_chunk_of_its_own() -> None:
    options = {"include_usage": True}
    events = await stream(slowly("ab"), COMPLETIONS, prompt="xyz", stream_options=options)
    last = events[-2][1]
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert "nvext" in last
    assert "nvext" not in events[-3][1]


async def test_token_ids_are_told_when_asked_for() -> None:
    ids = [byte + BYTE_OFFSET for byte in "ä".encode()]
    fields = {"prompt": [9, 8], "return_token_ids": True}
    events = [content for _, content in await stream(slowly("ä"), COMPLETIONS, **fields)]
    choices = [event["choices"][0] for event in events[:-1]]
    assert choices[0]["prompt_token_ids"] == [9, 8]
    assert [choice.get("token_ids") for choice in choices] == [[], ids[:1], ids[1:], None]
    async with client_of(app_of(slowly("ä"))) as client:
        whole = await client.post(COMPLETIONS, json={"model": MODEL, **fields})
        chat = await client.post(
            CHAT, json={"model": MODEL, "messages": HELLO, "return_token_ids": True}
        )
    assert whole.json()["choices"][0]["prompt_token_ids"] == [9, 8]
    assert whole.json()["choices"][0]["token_ids"] == ids
    assert chat.json()["choices"][0]["token_ids"] == ids
    assert len(chat.json()["prompt_token_ids"]) == chat.json()["usage"]["prompt_tokens"]


async def test_responses_stream() -> None:
    events = await stream(slowly("ab"), RESPONSES, input="x")
    assert [name for name, _ in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [content["sequence_number"] for _, content in events] == list(range(10))
    assert all(name == content["type"] for name, content in events)
    final = events[-1][1]["response"]
    assert final["output"][0]["content"][0]["text"] == "ab"
    assert final["nvext"]["worker_id"]["prefill_worker_id"] == 5


async def test_responses_stream_that_ran_out_of_tokens() -> None:
    events = await stream(dispatcher_saying("ab", "length"), RESPONSES, input="x")
    name, content = events[-1]
    assert name == "response.incomplete"
    assert content["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_messages_stream() -> None:
    events = await stream(slowly("ab"), MESSAGES, messages=HELLO, max_tokens=9)
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(name == content["type"] for name, content in events)
    prompt_tokens = events[0][1]["message"]["usage"]["input_tokens"]
    assert prompt_tokens > 5
    final = events[-2][1]
    assert final["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert final["usage"]["input_tokens"] == prompt_tokens - 3
    assert final["usage"]["cache_read_input_tokens"] == 3


@pytest.mark.parametrize("text", ["one STOP two", "one STOP", "one S", "STOP"])
async def test_stop_strings_end_the_generation(text: str) -> None:
    dispatcher = slowly(text)
    events = await stream(dispatcher, CHAT, messages=HELLO, stop=["STOP", "never"])
    choices = [content["choices"][0] for _, content in events[:-1]]
    shown = "".join(choice["delta"].get("content", "") for choice in choices)
    has_stop = "STOP" in text
    assert shown == text.split("STOP")[0]
    assert choices[-1]["finish_reason"] == "stop"
    assert choices[-1]["stop_reason"] == ("STOP" if has_stop else None)
    assert dispatcher.streams[0].is_closed
    assert dispatcher.streams[0].record.status == "completed"


async def test_stop_sequence_of_messages() -> None:
    events = await stream(
        slowly("one two"), MESSAGES, messages=HELLO, max_tokens=9, stop_sequences=[" two"]
    )
    assert events[-2][1]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " two"}


async def test_text_before_min_tokens_is_not_searched() -> None:
    body = {"model": MODEL, "prompt": "x", "stop": "ab", "min_tokens": 2, "max_tokens": 10}
    async with client_of(app_of(dispatcher_saying("ababc"))) as client:
        answer = await client.post(COMPLETIONS, json=body)
    assert answer.json()["choices"][0]["text"] == "ab"
    assert answer.json()["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_failure_within_a_stream_is_its_last_event(path: str) -> None:
    broken = ScriptedDispatcher(lambda request: [TokenDelta([100]), ApiError(502, "worker lost")])
    fields: dict[str, Any] = {"input": "x"} if path == RESPONSES else {"messages": HELLO}
    events = await stream(broken, path, max_tokens=9, **fields)
    names = [name for name, _ in events]
    assert "error" in names[-2:]
    assert "[DONE]" not in [content for _, content in events]
    assert any("worker lost" in str(content) for _, content in events[-2:])
    assert broken.streams[0].is_closed


async def test_early_failure_has_its_own_status() -> None:
    broken = ScriptedDispatcher(lambda request: [Pause(0.01), ApiError(502, "worker lost")])
    async with client_of(app_of(broken)) as client:
        answer = await client.post(CHAT, json={"model": MODEL, "messages": HELLO, "stream": True})
    assert answer.status_code == 502


@pytest.mark.parametrize(
    ("path", "sign"), [(CHAT, ": keep-alive"), (MESSAGES, "event: ping")], ids=["chat", "messages"]
)
async def test_silent_stream_begins_and_shows_signs_of_life(path: str, sign: str) -> None:
    limits = HttpLimits(head_hold_s=0.01, keep_alive_s=0.01)
    silent = ScriptedDispatcher(lambda request: [Pause(0.2), TokenDelta([100], "stop")])
    body = {"model": MODEL, "messages": HELLO, "stream": True, "max_tokens": 9}
    async with client_of(app_of(silent, limits=limits)) as client:
        answer = await client.post(path, json=body)
    assert answer.text.count(sign) >= 3
    assert answer.text.index(sign) < answer.text.index('"a"')


async def test_one_failing_choice_ends_all() -> None:
    def script(request: GenerateRequest) -> list[Any]:
        if request.request_id.endswith("-1"):
            return [ApiError(503, "no worker")]
        return [Pause(3600)]

    dispatcher = ScriptedDispatcher(script)
    async with client_of(app_of(dispatcher)) as client:
        answer = await client.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", "n": 3})
    assert answer.status_code == 503
    assert all(stream.is_closed for stream in dispatcher.streams)


async def test_client_that_leaves_the_queue_is_forgotten() -> None:
    """It hangs up while the router has not placed its request yet."""
    dispatcher = ScriptedDispatcher(says("x"), start_pause_s=3600)
    app = app_of(dispatcher, metrics=(metrics := Outcomes()))
    body = [
        {"type": "http.request", "body": b'{"model": "%b", "prompt": "x"}' % MODEL.encode()},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return body.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": COMPLETIONS,
        "headers": [],
        "query_string": b"",
        "root_path": "",
    }
    await asyncio.wait_for(app(scope, receive, send), PATIENCE_S)
    assert not sent
    assert metrics.outcomes == [("completions", "unary", "cancelled")]


class Outcomes(NoObserver):
    """Remembers how requests ended."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str, str]] = []

    def request_ended(
        self, model: str, endpoint: str, request_type: str, outcome: str, duration_s: float
    ) -> None:
        self.outcomes.append((endpoint, request_type, outcome))
