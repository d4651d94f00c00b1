"""Speculative prefills behind answers: what is sent, when, and that no client notices."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from exposition import samples
from http_support import MAX_MODEL_LEN, MODEL, client_of, dispatcher_saying, says, served_models
from live_support import MODEL as LIVE_MODEL
from live_support import Inside, ScriptedEngine
from waiting import PATIENCE_S, until

from dynosim_runtime.dialects.parsing.output_parser import Parsing
from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.app import create_app
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.http.speculative_prefills import AheadOutcome, SpeculativePrefills
from dynosim_runtime.requests import GenerateRequest, RequestRecord
from dynosim_runtime.testing.dispatcher import Pause, ScriptedDispatcher, Step
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer
from dynosim_runtime.tokenize.tokenizer import Conversation

HINT = {"agent_hints": {"speculative_prefill": True}}
HELLO = [{"role": "user", "content": "hello"}]


class Frontend:
    """The routes over a scripted dispatcher, and what became of what was sent ahead."""

    def __init__(
        self, dispatcher: ScriptedDispatcher, *, limit: int = 8, parsing: Parsing | None = None
    ) -> None:
        self.dispatcher = dispatcher
        self.told: list[AheadOutcome] = []
        self.speculative_prefills = SpeculativePrefills(dispatcher, self._tell, max_under_way=limit)
        app = create_app(
            dispatcher,
            served_models(),
            speculative_prefills=self.speculative_prefills,
            parsing=parsing,
        )
        self.client = client_of(app)  # type: ignore[arg-type]

    def _tell(self, outcome: AheadOutcome, record: RequestRecord | None) -> None:
        self.told.append(outcome)

    async def ask(self, path: str = "chat/completions", **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "nvext": HINT, **fields}
        return await self.client.post(f"/v1/{path}", json=body)

    async def ahead(self) -> GenerateRequest:
        """What was sent ahead."""
        await until(lambda: bool(self.told))
        assert self.told == ["completed"]
        (request,) = [one for one in self.dispatcher.requests if one.is_speculative]
        return request


def rendered(*messages: tuple[str, str], **more: Any) -> list[int]:
    return ByteTokenizer().encode_chat(
        Conversation(messages=[{"role": role, "content": text} for role, text in messages], **more)
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"messages": HELLO}),
        ("messages", {"messages": HELLO, "max_tokens": 20}),
        ("responses", {"input": "hello"}),
    ],
)
async def test_the_conversation_with_its_answer_begins_the_next_turns_prompt(
    path: str, fields: dict[str, Any], stream: bool
) -> None:
    frontend = Frontend(dispatcher_saying("good day"))
    answer = await frontend.ask(path, stream=stream, **fields)
    assert answer.status_code == 200
    ahead = await frontend.ahead()
    talk = (("user", "hello"), ("assistant", "good day"))
    assert ahead.token_ids == rendered(*talk, add_generation_prompt=False)
    following = rendered(*talk, ("user", "and now?"))
    assert following[: len(ahead.token_ids)] == ahead.token_ids
    assert ahead.sampling.max_tokens == 1 and ahead.expected_output_tokens == 1
    first = frontend.dispatcher.requests[0]
    assert ahead.request_id == f"{first.request_id}-ahead" and not first.is_speculative


async def test_of_a_prompt_that_is_no_conversation_tokens_go_on() -> None:
    frontend = Frontend(dispatcher_saying("abc"))
    await frontend.ask("completions", prompt=[10, 11, 12], max_tokens=5, cache_salt="s")
    ahead = await frontend.ahead()
    assert ahead.token_ids == [10, 11, 12, *ByteTokenizer().encode("abc")]
    assert ahead.cache_salt == "s"


async def test_an_answer_that_was_begun_by_the_client_is_one_message() -> None:
    frontend = Frontend(dispatcher_saying(" sum is 4"))
    begun = [*HELLO, {"role": "assistant", "content": "The"}]
    await frontend.ask("messages", messages=begun, max_tokens=20)
    talk = (("user", "hello"), ("assistant", "The sum is 4"))
    assert (await frontend.ahead()).token_ids == rendered(*talk, add_generation_prompt=False)


async def test_thinking_and_calls_are_rendered_as_the_client_sends_them_back() -> None:
    text = '<think>hm</think>Look:<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    frontend = Frontend(dispatcher_saying(text), parsing=Parsing("hermes", "qwen3"))
    seen: list[Conversation] = []

    class Watching(ByteTokenizer):
        def encode_chat(self, conversation: Conversation) -> list[int]:
            seen.append(conversation)
            return super().encode_chat(conversation)

    models = ModelRegistry()
    models.add(MODEL, Watching(), MAX_MODEL_LEN)
    app = create_app(
        frontend.dispatcher, models, speculative_prefills=frontend.speculative_prefills,
        parsing=Parsing("hermes", "qwen3"),
    )  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    body = {"model": MODEL, "nvext": HINT, "messages": HELLO, "tools": tools}
    answer = await client_of(app).post("/v1/chat/completions", json=body)  # type: ignore[arg-type]
    told = answer.json()["choices"][0]["message"]
    await frontend.ahead()
    message = seen[-1].messages[-1]
    assert message["content"] == told["content"] == "Look:"
    assert message["reasoning_content"] == told["reasoning_content"] == "hm"
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": {"x": 1}}
    assert seen[-1].tools == tools


# ---- when none is sent -----------------------------------------------------------------------


@pytest.mark.parametrize("hints", [{}, {"speculative_prefill": False}, {"priority": 1}])
async def test_nobody_is_served_what_nobody_asked_for(hints: dict[str, Any]) -> None:
    frontend = Frontend(dispatcher_saying("x"))
    await frontend.ask(messages=HELLO, nvext={"agent_hints": hints})
    await asyncio.sleep(0.01)
    assert len(frontend.dispatcher.requests) == 1 and frontend.told == []


@pytest.mark.parametrize("stream", [False, True])
async def test_behind_an_answer_that_failed_there_is_none(stream: bool) -> None:
    def breaks(request: GenerateRequest) -> Sequence[Step]:
        return [says("a")(request)[0], ApiError(502, "x")]

    frontend = Frontend(ScriptedDispatcher(breaks))
    await frontend.ask(messages=HELLO, stream=stream)
    await asyncio.sleep(0.01)
    assert len(frontend.dispatcher.requests) == 1 and frontend.told == []


async def test_of_several_choices_none_is_the_one_that_goes_on() -> None:
    frontend = Frontend(dispatcher_saying("x"))
    refused = [
        await frontend.ask(messages=HELLO, n=2),
        await frontend.ask("completions", prompt=["a", "b"], max_tokens=1),
        await frontend.ask(messages=HELLO, nvext={"agent_hints": {"speculative_prefill": 1}}),
    ]
    for answer in refused:
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["param"] == "nvext.agent_hints.speculative_prefill"
    assert frontend.dispatcher.requests == []


async def test_a_conversation_that_has_no_room_for_more_is_left_alone() -> None:
    room = MAX_MODEL_LEN - len(rendered(("user", "hello")))
    frontend = Frontend(dispatcher_saying("x" * room))
    await frontend.ask(messages=HELLO)
    await until(lambda: bool(frontend.told))
    assert frontend.told == ["skipped"] and len(frontend.dispatcher.requests) == 1


# ---- nobody notices --------------------------------------------------------------------------


class Slow:
    """Answers clients at once, and what is sent ahead after a pause or never."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, request: GenerateRequest) -> Sequence[Step]:
        return [self._step, *says("x")(request)] if request.is_speculative else says("x")(request)


async def test_the_client_has_its_answer_before_and_never_waits_for_it() -> None:
    frontend = Frontend(ScriptedDispatcher(Slow(Pause(3600))), limit=2)
    for _ in range(3):
        async with asyncio.timeout(PATIENCE_S):
            assert (await frontend.ask(messages=HELLO)).status_code == 200
    assert frontend.speculative_prefills.num_under_way == 2
    assert frontend.told == ["skipped"]  # the third: so many and no more
    await until(lambda: len(frontend.dispatcher.streams) == 5)
    await frontend.speculative_prefills.close()
    assert frontend.told == ["skipped", "cancelled", "cancelled"]
    assert all(one.is_closed for one in frontend.dispatcher.streams)
    await frontend.ask(messages=HELLO)
    assert frontend.told[-1] == "skipped" and frontend.speculative_prefills.num_under_way == 0


@pytest.mark.parametrize("error", [ApiError(503, "busy"), RuntimeError("broken")])
async def test_its_failure_is_counted_and_told_to_nobody(error: Exception) -> None:
    frontend = Frontend(ScriptedDispatcher(Slow(error)))
    assert (await frontend.ask(messages=HELLO)).status_code == 200
    await until(lambda: bool(frontend.told))
    assert frontend.told == ["failed"]
    assert (await frontend.ask(messages=HELLO)).status_code == 200


async def test_it_is_in_no_figure_and_no_record_of_requests() -> None:
    inside = Inside(ScriptedEngine(cached_tokens=8), "a")
    models = ModelRegistry()
    models.add(LIVE_MODEL, ByteTokenizer(), 4096)
    speculative_prefills = SpeculativePrefills(inside.dispatcher, inside.metrics.note_sent_ahead)
    app = create_app(
        inside.dispatcher, models, metrics=inside.metrics, speculative_prefills=speculative_prefills
    )  # fmt: skip
    body = {"model": LIVE_MODEL, "prompt": list(range(10, 22)), "max_tokens": 4}

    async def page(**more: Any) -> dict[str, float]:
        answer = await client_of(app).post("/v1/completions", json={**body, **more})  # type: ignore[arg-type]
        assert answer.status_code == 200
        await until(
            lambda: speculative_prefills.num_under_way == 0 and inside.dispatcher.num_active == 0
        )
        return samples(inside.metrics.exposition())

    await page()
    plain = await page()
    ahead = await page(nvext=HINT)
    counts = ("requests_total", "first_token_seconds_count", "sequence_tokens_count",
              "generations_total", "prompt_tokens_total", "cached_tokens_total")  # fmt: skip
    names = [name for name in plain if name.partition("{")[0].endswith(counts)]
    assert len(names) >= 7
    for name in names:
        assert ahead[name] == plain[name] * 1.5, name
    assert len(inside.records) == 3 and inside.num_booked == 0
    assert ahead["dynosim_frontend_speculative_prefills_total{outcome=completed}"] == 1
    assert ahead["dynosim_frontend_speculative_tokens_total"] == 12 + 4 - 8
