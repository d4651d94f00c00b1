"""A client that measures: what it asks, what it takes for a token, and what it makes of trouble."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dynosim.errors import ConfigError
from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.client import (
    CompletionsClient,
    LoadClock,
    TimedAnswer,
    base_url,
    choose_model,
)
from dynosim_runtime.measure.counters import EngineCounters, parse_counters

PROMPT = np.array([5, 6, 7])


class Server:
    """Answers every completion with these events, or with a status and a text."""

    def __init__(self, *events: Any, status: int = 200, text: str = "") -> None:
        self.events = events
        self.status = status
        self.text = text
        self.refuses: str | None = None  # a field that is not known
        self.bodies: list[dict[str, Any]] = []
        self.ids: list[str | None] = []
        self.models: Any = {"data": [{"id": "m"}]}

    @asynccontextmanager
    async def client(
        self, model: str | None = None, **options: Any
    ) -> AsyncIterator[CompletionsClient]:
        app = web.Application()
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/odd", self._odd)
        async with (
            TestServer(app) as server,
            CompletionsClient(str(server.make_url("/")), model, **options) as client,
        ):
            yield client

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(self.models)

    async def _odd(self, _: web.Request) -> web.Response:
        return web.Response(text="no json")

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.ids.append(request.headers.get("X-Request-Id"))
        if self.refuses is not None and self.refuses in self.bodies[-1]:
            return web.json_response({"error": {"message": f"no {self.refuses}"}}, status=422)
        if self.status != 200:
            return web.Response(status=self.status, text=self.text)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in self.events:
            data = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {data}\n\n".encode())
        return response


async def answered(server: Server, output_tokens: int = 3, **options: Any) -> TimedAnswer:
    async with server.client() as client:
        return await client.complete(PROMPT, output_tokens, LoadClock(), **options)


def chunk(token_ids: Sequence[int] | None, text: str = "x", reason: str | None = None) -> Any:
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason}
    return {"choices": [choice if token_ids is None else {**choice, "token_ids": token_ids}]}


USAGE = {"usage": {"prompt_tokens": 9, "completion_tokens": 3}}
CACHED = {"usage": {**USAGE["usage"], "prompt_tokens_details": {"cached_tokens": 4}}}


@pytest.mark.parametrize(
    ("events", "num_tokens"),
    [
        ([chunk([1]), chunk([2, 3], reason="length")], 3),
        ([chunk([1, 2, 3], reason="length"), chunk([], reason="length")], 3),
        # Without ids a chunk is a token, but for one that only says why it ended.
        ([chunk(None), chunk(None), chunk(None, reason="length")], 3),
        ([chunk(None), chunk(None), chunk(None), chunk(None, "", "length")], 3),
        ([chunk(None), chunk(None, ""), chunk(None)], 3),  # half a character
        ([{"choices": []}, chunk([1, 2, 3])], 3),
    ],
)
async def test_what_counts_as_a_token(events: list[Any], num_tokens: int) -> None:
    answer = await answered(Server(*events, "[DONE]"))
    assert (len(answer.token_ms), answer.error, answer.http_status) == (num_tokens, None, 200)
    assert list(answer.token_ms) == sorted(answer.token_ms)
    assert 0 <= answer.sent_ms <= answer.token_ms[0]


async def test_what_the_server_counts_and_tells_is_kept() -> None:
    first, second = {"nvext": {"worker_id": {"a": 1}}}, {"nvext": {"timing": {"b": 2}}}
    answer = await answered(Server({**chunk([1, 2, 3]), **first}, {**CACHED, **second}))
    assert (answer.input_tokens, answer.output_tokens, answer.cached_tokens) == (9, 3, 4)
    assert answer.extension == {"worker_id": {"a": 1}, "timing": {"b": 2}}
    answer = await answered(Server(chunk([1, 2, 3]), USAGE))
    assert (answer.cached_tokens, answer.extension) == (None, {})


@pytest.mark.parametrize(
    ("events", "wanted", "error"),
    [
        ([chunk([1, 2])], 3, "2 tokens instead of 3; does the server know ignore_eos?"),
        ([chunk([1, 2, 3, 4])], 3, "4 tokens instead of 3; does the server know ignore_eos?"),
        ([chunk([1]), USAGE], 3, None),  # what the server counts is what counts
        ([chunk([1, 2]), USAGE], 2, "3 tokens instead of 2; does the server know ignore_eos?"),
        ([chunk([1]), {"error": {"message": "died"}}], 3, "error in the stream: died"),
        ([chunk([1]), {"error": "died"}], 3, "error in the stream: died"),
        ([chunk([1]), "{"], 3, "EngineLostError: no completion chunk: "),
    ],
)
async def test_what_goes_wrong_in_a_stream(
    events: list[Any], wanted: int, error: str | None
) -> None:
    answer = await answered(Server(*events), wanted)
    assert (answer.error or "")[: len(error or "")] == (error or "")
    assert (answer.error is None) is (error is None)


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (400, '{"error": {"message": "too long"}}', "HTTP 400: too long"),
        (503, '{"error": "busy"}', "HTTP 503: busy"),
        (500, "<html>", "HTTP 500: <html>"),
        (500, '{"x": 1}', 'HTTP 500: {"x": 1}'),
        (500, "y" * 900, "HTTP 500: " + "y" * 500),
    ],
)
async def test_an_answer_that_is_no_stream(status: int, text: str, error: str) -> None:
    answer = await answered(Server(status=status, text=text))
    assert (answer.error, answer.http_status, len(answer.token_ms)) == (error, status, 0)


async def test_a_server_that_hangs_up_is_told_in_a_word() -> None:
    async with Server(chunk([1])).client() as client:
        client.url = "http://127.0.0.1:9"
        answer = await client.complete(PROMPT, 3, LoadClock())
    assert answer.http_status is None
    assert (answer.error or "").startswith("ClientConnectorError: ")


async def test_what_is_asked() -> None:
    server = Server(chunk([1, 2, 3]))
    await answered(server, request_id="r7")
    assert server.ids == ["r7"]
    assert server.bodies == [
        {
            "model": "m",
            "prompt": [5, 6, 7],
            "max_tokens": 3,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "nvext": {"extra_fields": ["worker_id", "timing"]},
        }
    ]
    await answered(server)
    assert server.ids[1] is None


@pytest.mark.parametrize(
    ("sampling", "stated"),
    [
        ("greedy", {"temperature": 0.0}),
        ("random", {"temperature": 1.0}),
        ("truncated", {"temperature": 0.6, "top_p": 0.9}),
    ],
)
async def test_tokens_are_asked_for_as_the_workload_says(
    sampling: str, stated: dict[str, float]
) -> None:
    server = Server(chunk([1, 2, 3]))
    async with server.client(sampling=sampling) as client:
        await client.complete(PROMPT, 3, LoadClock())
    (body,) = server.bodies
    assert {key: body[key] for key in ("temperature", "top_p") if key in body} == stated


@pytest.mark.parametrize(("priority", "hint"), [(3, -3), (-2, 2)])
async def test_a_traces_priority_is_a_hint_the_other_way_round(priority: int, hint: int) -> None:
    server = Server(chunk([1, 2, 3]))
    await answered(server, priority=priority)
    await answered(server, priority=0)
    told, silent = (body["nvext"] for body in server.bodies)
    assert told == {"extra_fields": ["worker_id", "timing"], "agent_hints": {"priority": hint}}
    assert "agent_hints" not in silent


async def test_what_a_client_expects_of_an_answer_is_a_hint_beside_its_priority() -> None:
    server = Server(chunk([1, 2, 3]))
    await answered(server, expected_output_tokens=64)
    await answered(server, priority=-2, expected_output_tokens=64)
    alone, both = (body["nvext"]["agent_hints"] for body in server.bodies)
    assert alone == {"osl": 64}
    assert both == {"priority": 2, "osl": 64}


@pytest.mark.parametrize("field", ["nvext", "return_token_ids"])
async def test_a_server_that_refuses_what_is_not_openais_is_asked_without(field: str) -> None:
    server = Server(chunk(None, reason="length"))
    server.refuses = field
    async with server.client() as client:
        await client.probe(PROMPT)
        await client.complete(PROMPT, 1, LoadClock(), priority=5)
    assert [("nvext" in body, "return_token_ids" in body) for body in server.bodies] == [
        (True, True), (False, False), (False, False),
    ]  # fmt: skip


async def test_a_server_that_serves_no_completions_is_one_message() -> None:
    async with Server(status=404, text="no such page").client() as client:
        with pytest.raises(LiveError, match="a completion of 3 token ids fails: HTTP 404: no such"):
            await client.probe(PROMPT)


async def test_the_first_token_is_told_once() -> None:
    told: list[int] = []
    await answered(
        Server({"choices": []}, chunk([1]), chunk([2, 3])), on_first_token=lambda: told.append(1)
    )
    assert told == [1]


@pytest.mark.parametrize(
    ("models", "wanted", "chosen"),
    [(["m"], "", "m"), (["m"], "other", "m"), (["m", "n"], "n", "n")],
)
def test_the_model_asked_for_or_the_only_one(models: list[str], wanted: str, chosen: str) -> None:
    assert choose_model(models, wanted) == chosen


@pytest.mark.parametrize(("models", "known"), [([], "none"), (["m", "n"], "m, n")])
def test_a_model_that_is_not_clear_is_refused(models: list[str], known: str) -> None:
    with pytest.raises(LiveError, match=rf"no model 'x' \(it has: {known}\)"):
        choose_model(models, "x")


async def test_pages_that_are_none_say_so() -> None:
    server = Server()
    async with server.client() as client:
        assert await client.model_names() == ["m"]
        with pytest.raises(LiveError, match="the server answers 404"):
            await client.get_text("/nowhere")
        with pytest.raises(LiveError, match="/odd: no JSON document"):
            await client.get_json("/odd")
        server.models = {"data": 3}
        with pytest.raises(LiveError, match="is this an OpenAI server"):
            await client.model_names()
        server.models = {"data": [{"id": "a"}, {"x": 1}, 7, {"id": 8}]}
        assert await client.model_names() == ["a", "8"]


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("https://h/proxy/v1", "https://h/proxy"),
        ("h:8000", "http://h:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("h", "http://h"),
    ],
)
def test_addresses_in_the_form_that_requests_use(url: str, base: str) -> None:
    assert base_url(url) == base


@pytest.mark.parametrize("url", ["ftp://h", "http://h:99999", "http://h:x", "http://h?a=1", "h#a"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        base_url(url)


def test_a_clock_of_a_speed_counts_so_many_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 101.0, 103.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    clock = LoadClock(4.0)
    clock.restart()
    assert clock.now_ms() == 2.5 * 4 * 1000
    assert clock.wall_s(8000.0) == 2.0


PAGE = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0"} 4.0
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0"} 1000.0
vllm:prefix_cache_queries_total{engine="1"} 500.0
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{engine="0"} 250.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="7"} 1.0
"""


def test_counters_are_summed_over_an_engines_ranks() -> None:
    config = {"block_size": "16", "num_gpu_blocks": "7"}
    assert parse_counters(PAGE) == EngineCounters(1500.0, 250.0, 9.0, config)


def test_a_hit_rate_is_of_what_came_since() -> None:
    before, after = EngineCounters(100.0, 50.0, 0, {}), EngineCounters(300.0, 90.0, 0, {})
    assert after.hit_rate_since(before) == 40 / 200
    assert before.hit_rate_since(before) is None
