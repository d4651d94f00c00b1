"""Requests that cannot be served: the right status, in the dialect's shape, naming the field."""

import asyncio
from typing import Any

import pytest
from http_support import (
    MAX_MODEL_LEN,
    MODEL,
    app_of,
    client_of,
    dispatcher_saying,
)
from waiting import PATIENCE_S

from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.limits import HttpLimits
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.requests import GenerateRequest
from dynosim_runtime.testing.dispatcher import Pause, ScriptedDispatcher
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer

HELLO = [{"role": "user", "content": "Hello"}]
PICTURE = [{"type": "image_url", "image_url": {"url": "data:,"}}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": HELLO},
    COMPLETIONS: {"model": MODEL, "prompt": "Hello"},
    RESPONSES: {"model": MODEL, "input": "Hello"},
    MESSAGES: {"model": MODEL, "messages": HELLO, "max_tokens": 10},
}

BAD_FIELDS = [
    (CHAT, {"max_tokens": -1}, "max_tokens"),
    (CHAT, {"max_tokens": "10"}, "max_tokens"),
    (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
    (CHAT, {"temperature": 3}, "temperature"),
    (CHAT, {"n": 9}, "n"),
    (CHAT, {"stream": "yes"}, "stream"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, {"logprobs": 3}, "logprobs"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"logit_bias": {"5": 1}}, "logit_bias"),
    (CHAT, {"response_format": {"type": "xml"}}, "response_format.type"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    (CHAT, {"guided_choice": ["a", 1]}, "guided_choice"),
    (CHAT, {"guided_regex": "a", "guided_json": {}}, "guided_regex"),
    (CHAT, {"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    (CHAT, {"tool_choice": "required"}, "tool_choice"),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": PICTURE}]}, "messages[0].content[0]"),
    (CHAT, {"stop": [""]}, "stop[0]"),
    (CHAT, {"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
    (CHAT, {"nvext": {"agent_hints": {"priority": "high"}}}, "nvext.agent_hints.priority"),
    (CHAT, {"nvext": {"cache_control": "1h"}}, "nvext.cache_control"),
    (CHAT, {"nvext": {"cache_control": {"type": "forever"}}}, "nvext.cache_control.type"),
    (
        CHAT,
        {"nvext": {"cache_control": {"type": "ephemeral", "ttl": "1 h"}}},
        "nvext.cache_control.ttl",
    ),
    (
        CHAT,
        {"nvext": {"cache_control": {"type": "ephemeral", "ttl": "25h"}}},
        "nvext.cache_control.ttl",
    ),
    (CHAT, {"nvext": {"routing_constraints": {"taints": []}}}, "nvext.routing_constraints"),
    (CHAT, {"nvext": {"worker_id": 1, "backend_instance_id": 2}}, "nvext.worker_id"),
    (CHAT, {"nvext": {"dp_rank": 1}}, "nvext.dp_rank"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": [1, "two"]}, "prompt"),
    (COMPLETIONS, {"prompt": ["one", 2]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [[1], [True]]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt"),
    (COMPLETIONS, {"prompt": ["x"] * 129}, "prompt"),
    (COMPLETIONS, {"echo": True}, "echo"),
    (COMPLETIONS, {"logprobs": -1}, "logprobs"),
    (COMPLETIONS, {"best_of": 3}, "best_of"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, {"background": True}, "background"),
    (RESPONSES, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
    (RESPONSES, {"text": {"format": {"type": "json_schema"}}}, "text.format"),
    (RESPONSES, {"max_output_tokens": 1.5}, "max_output_tokens"),
]


@pytest.mark.parametrize(("path", "fields", "param"), BAD_FIELDS, ids=lambda value: str(value)[:60])
async def test_bad_field_is_refused_by_name(path: str, fields: dict[str, Any], param: str) -> None:
    dispatcher = dispatcher_saying("x")
    async with client_of(app_of(dispatcher)) as client:
        answer = await client.post(path, json={**GOOD[path], **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert not dispatcher.requests


@pytest.mark.parametrize("path", GOOD)
async def test_missing_field_is_named(path: str) -> None:
    for field in GOOD[path]:
        body = {key: value for key, value in GOOD[path].items() if key != field}
        async with client_of(app_of(dispatcher_saying("x"))) as client:
            answer = await client.post(path, json=body)
        assert answer.status_code == 400
        assert field in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", GOOD)
async def test_unknown_fields_are_ignored(path: str) -> None:
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        answer = await client.post(path, json={**GOOD[path], "shoe_size": 42, "nvext": {"hat": 1}})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", GOOD)
async def test_every_dialect_has_its_own_error_shape(path: str) -> None:
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        unknown = await client.post(path, json={**GOOD[path], "model": "other"})
        broken = await client.post(path, content=b'{"model": ', headers=JSON)
        deep = await client.post(path, content=b"[" * 100_000, headers=JSON)
        wrong_method = await client.get(path)
    for answer, status in ((unknown, 404), (broken, 400), (deep, 400), (wrong_method, 405)):
        assert answer.status_code == status, answer.text
        content = answer.json()
        if path == MESSAGES:
            assert content["type"] == "error"
            assert content["error"].keys() == {"type", "message"}
        else:
            assert content["error"].keys() == {"message", "type", "param", "code"}


JSON = {"content-type": "application/json"}


async def test_paths_and_encodings_that_do_not_exist() -> None:
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        assert (await client.get("/v1/nothing")).json()["error"]["code"] == "not_found"
        form = await client.post(CHAT, data={"model": MODEL})
        packed = await client.post(
            CHAT, content=b"\x1f\x8b", headers={**JSON, "content-encoding": "gzip"}
        )
        bad_id = await client.post(CHAT, json=GOOD[CHAT], headers={"x-request-id": "x" * 1000})
    assert (form.status_code, packed.status_code, bad_id.status_code) == (415, 415, 400)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_tokens": MAX_MODEL_LEN}),
        (CHAT, {"messages": [{"role": "user", "content": "x" * MAX_MODEL_LEN}]}),
        (COMPLETIONS, {"prompt": [7] * MAX_MODEL_LEN}),
        (COMPLETIONS, {"prompt": [7] * (MAX_MODEL_LEN - 1), "max_tokens": 2}),
        (RESPONSES, {"max_output_tokens": MAX_MODEL_LEN}),
    ],
)
async def test_prompt_and_answer_must_fit_the_context(path: str, fields: dict[str, Any]) -> None:
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        answer = await client.post(path, json={**GOOD[path], **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert str(MAX_MODEL_LEN) in answer.json()["error"]["message"]


async def test_body_is_bounded_whatever_its_declared_length() -> None:
    limits = HttpLimits(max_body_bytes=1000)

    async def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 100

    async with client_of(app_of(dispatcher_saying("x"), limits=limits)) as client:
        declared = await client.post(CHAT, content=b"x" * 2000, headers=JSON)
        chunked = await client.post(CHAT, content=chunks(), headers=JSON)
        just = await client.post(CHAT, json=GOOD[CHAT])
    assert (declared.status_code, chunked.status_code, just.status_code) == (413, 413, 200)


async def test_slow_body_is_given_up() -> None:
    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": parts.pop(), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    parts, sent = [b"{"], []
    app = app_of(dispatcher_saying("x"), limits=HttpLimits(body_timeout_s=0.05))
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [],
        "query_string": b"",
        "root_path": "",
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 408


async def test_requests_beyond_the_limit_are_shed() -> None:
    waiting = ScriptedDispatcher(lambda request: [Pause(3600)])
    app = app_of(waiting, limits=HttpLimits(max_concurrent_requests=2))
    async with client_of(app) as client:
        tasks = [asyncio.create_task(client.post(CHAT, json=GOOD[CHAT])) for _ in range(2)]
        while len(waiting.streams) < 2:
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):  # one that is let in waits for an hour
            shed = await client.post(MESSAGES, json=GOOD[MESSAGES])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(stream.is_closed for stream in waiting.streams)
        assert shed.status_code == 503
        assert shed.headers["retry-after"] == "1"
        assert shed.json()["error"]["type"] == "overloaded_error"


async def test_refusals_of_the_cluster_keep_their_status() -> None:
    refusal = ApiError(429, "slow down", kind="rate_limit_error", code="busy", retry_after_s=7)
    async with client_of(app_of(ScriptedDispatcher(lambda request: [refusal]))) as client:
        for stream in (False, True):
            answer = await client.post(CHAT, json={**GOOD[CHAT], "stream": stream})
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
            assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_faults_of_ours_become_500_and_the_next_request_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def script(request: GenerateRequest) -> list[Any]:
        if request.session_id == "broken":
            raise RuntimeError("a bug")
        return []

    async with client_of(app_of(ScriptedDispatcher(script))) as client:
        headers = {"x-dynamo-session-id": "broken"}
        answer = await client.post(CHAT, json=GOOD[CHAT], headers=headers)
        broken_off = await client.post(CHAT, json=GOOD[CHAT])
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "a bug" not in answer.text
    assert "a bug" in caplog.text
    assert (broken_off.status_code, broken_off.json()["error"]["code"]) == (502, "engine_failed")


async def test_health_follows_the_models() -> None:
    models = ModelRegistry()
    async with client_of(app_of(dispatcher_saying("x"), models=models)) as client:
        assert (await client.get("/live")).status_code == 200
        assert (await client.get("/health")).status_code == 503
        models.add("a/b", ByteTokenizer(), 100)
        assert (await client.get("/health")).json() == {"status": "healthy", "models": ["a/b"]}
        assert (await client.get("/v1/models/a/b")).json()["max_model_len"] == 100
        models.remove("a/b")
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/v1/models/a/b")).status_code == 404


async def test_text_that_cannot_fit_is_not_even_tokenized() -> None:
    body = {"model": MODEL, "prompt": "x" * (MAX_MODEL_LEN + 1)}
    async with client_of(app_of(dispatcher_saying("x"))) as client:
        answer = await client.post(COMPLETIONS, json=body)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "characters" in answer.json()["error"]["message"]
