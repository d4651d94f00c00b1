"""The official clients, unchanged, against the frontend behind a real server."""

import asyncio

import anthropic
import openai
import pytest
from http_support import MODEL, app_of, dispatcher_saying, serving
from waiting import until

from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import TokenDelta
from dynosim_runtime.testing.dispatcher import Pause, ScriptedDispatcher

TEXT = "Grüße, 世界 😀!"
MESSAGES = [{"role": "user", "content": "Hello"}]


def openai_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def anthropic_client(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)


async def test_openai_chat_gets_text_usage_and_nvext() -> None:
    dispatcher = dispatcher_saying(TEXT, cached_tokens=16, worker_id=7)
    async with serving(app_of(dispatcher)) as url, openai_client(url) as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=100
        )
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(TEXT.encode())
    assert answer.usage.prompt_tokens == len(dispatcher.requests[0].token_ids)
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    assert answer.nvext["worker_id"] == {
        "prefill_worker_id": 7,
        "prefill_dp_rank": 0,
        "decode_worker_id": 7,
        "decode_dp_rank": 0,
    }
    timing = answer.nvext["timing"]
    assert timing["ttft_ms"] == timing["prefill_wait_time_ms"] + timing["prefill_time_ms"]


async def test_openai_chat_streams_with_usage_last() -> None:
    async with serving(app_of(dispatcher_saying(TEXT))) as url, openai_client(url) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == len(TEXT.encode())
    assert "timing" in chunks[-1].nvext


@pytest.mark.parametrize(
    "prompt", ["abc", ["abc", "de"], [100, 101, 102], [[100, 101], [102]]], ids=str
)
async def test_openai_completions_take_texts_and_tokens(prompt: object) -> None:
    dispatcher = dispatcher_saying("xyz", "length")
    async with serving(app_of(dispatcher)) as url, openai_client(url) as client:
        answer = await client.completions.create(model=MODEL, prompt=prompt, n=2)
        stream = await client.completions.create(model=MODEL, prompt=prompt, n=2, stream=True)
        texts: dict[int, str] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
    is_many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    num_choices = 2 * len(prompt) if is_many else 2
    assert [choice.text for choice in answer.choices] == ["xyz"] * num_choices
    assert [choice.index for choice in answer.choices] == list(range(num_choices))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == (5 if prompt == ["abc", "de"] else 3)
    assert texts == dict.fromkeys(range(num_choices), "xyz")
    assert len({request.request_id for request in dispatcher.requests}) == 2 * num_choices


async def test_openai_responses_whole_and_streamed() -> None:
    dispatcher = dispatcher_saying(TEXT, cached_tokens=4)
    async with serving(app_of(dispatcher)) as url, openai_client(url) as client:
        answer = await client.responses.create(
            model=MODEL, input="Hello", instructions="Be brief.", metadata={"a": "b"}
        )
        async with client.responses.stream(model=MODEL, input="Hello") as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
    assert answer.output_text == final.output_text == TEXT
    assert (answer.status, answer.instructions, answer.metadata) == (
        "completed",
        "Be brief.",
        {"a": "b"},
    )
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_anthropic_messages_whole_and_streamed() -> None:
    dispatcher = dispatcher_saying(TEXT, "length", cached_tokens=4)
    async with serving(app_of(dispatcher)) as url, anthropic_client(url) as client:
        answer = await client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=50)
        async with client.messages.stream(
            model=MODEL, messages=MESSAGES, max_tokens=50, system="Be brief."
        ) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        counted = await client.messages.count_tokens(
            model=MODEL, messages=MESSAGES, system="Be brief."
        )
    assert answer.content[0].text == text == final.content[0].text == TEXT
    assert answer.stop_reason == final.stop_reason == "max_tokens"
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == counted.input_tokens
    assert final.usage.output_tokens == len(TEXT.encode())
    assert counted.input_tokens == len(dispatcher.requests[1].token_ids)


async def test_models_are_found_by_ids_with_slashes() -> None:
    app = app_of(dispatcher_saying(""))
    async with serving(app) as url, openai_client(url) as client, anthropic_client(url) as other:
        assert (await client.models.retrieve(MODEL)).id == MODEL
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert [model.id async for model in other.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("org/other")


async def test_errors_become_the_clients_own_exceptions() -> None:
    busy = ScriptedDispatcher(lambda request: [ApiError(529, "queue full", retry_after_s=3)])
    async with serving(app_of(busy)) as url, openai_client(url) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert raised.value.response.headers["Retry-After"] == "3"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=-1)
        assert refused.value.param == "max_tokens"
        async with anthropic_client(url) as other:
            with pytest.raises(anthropic.APIStatusError) as overloaded:
                await other.messages.create(model=MODEL, messages=MESSAGES, max_tokens=5)
        assert overloaded.value.body["error"]["type"] == "overloaded_error"


async def test_failure_within_a_stream_reaches_the_client() -> None:
    broken = ScriptedDispatcher(lambda request: [TokenDelta([100]), ApiError(502, "worker lost")])
    async with serving(app_of(broken)) as url:
        async with openai_client(url) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True
            )
            with pytest.raises(openai.APIError, match="worker lost"):
                [chunk async for chunk in stream]
        async with anthropic_client(url) as other:
            with pytest.raises(anthropic.APIStatusError, match="worker lost"):
                async with other.messages.stream(
                    model=MODEL, messages=MESSAGES, max_tokens=5
                ) as events:
                    [event async for event in events]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_generation_is_closed_when_the_client_hangs_up(stream: bool) -> None:
    endless = ScriptedDispatcher(lambda request: [TokenDelta([100]), Pause(3600)])
    async with serving(app_of(endless)) as url, openai_client(url) as client:
        call = asyncio.create_task(
            client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
        )
        await until(lambda: bool(endless.streams))
        if stream:
            answer = await call
            await anext(aiter(answer))
            await answer.close()
        else:
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        await until(lambda: endless.streams[0].is_closed)
    assert endless.streams[0].record.status == "cancelled"


async def test_oversized_body_is_refused_by_a_real_server() -> None:
    async with serving(app_of(dispatcher_saying(""))) as url, openai_client(url) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.completions.create(model=MODEL, prompt="x" * (17 << 20))
    assert refused.value.status_code == 413
