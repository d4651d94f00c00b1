"""Logprobs, structured output, tool calls and reasoning, as the official client sees them."""

import json
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from http_support import MODEL, app_of, dispatcher_saying, serving

from dynosim_runtime.dialects.parsing.output_parser import Parsing
from dynosim_runtime.requests import GenerateRequest, StructuredOutput, TokenDelta, TokenLogprob
from dynosim_runtime.testing.dispatcher import ScriptedDispatcher, Step
from dynosim_runtime.tokenize.byte_tokenizer import BYTE_OFFSET

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def openai_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def likely(text: str, num_top: int) -> list[TokenLogprob]:
    """Of byte tokens: the one after each is half as likely."""
    return [
        TokenLogprob(
            byte + BYTE_OFFSET,
            -0.5,
            [(byte + BYTE_OFFSET + i, -0.5 - i) for i in range(num_top + 1)],
        )
        for byte in text.encode()
    ]


def telling(text: str) -> ScriptedDispatcher:
    """Says a text, two tokens a time, with logprobs if they are asked for."""

    def script(request: GenerateRequest) -> Sequence[Step]:
        steps: list[Step] = []
        for begin in range(0, len(text), 2):
            piece = text[begin : begin + 2]
            num_top = request.sampling.logprobs
            told = None if num_top is None else likely(piece, num_top)
            steps.append(TokenDelta([byte + BYTE_OFFSET for byte in piece.encode()], None, told))
        return [*steps, TokenDelta([], "stop")]

    return ScriptedDispatcher(script)


async def test_chat_logprobs_whole_and_streamed() -> None:
    async with serving(app_of(telling("abcde"))) as url:
        client = openai_client(url)
        asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "logprobs": True}
        whole = await client.chat.completions.create(**asked, top_logprobs=1, n=2)
        stream = await client.chat.completions.create(**asked, stream=True)
        streamed = [
            token
            async for chunk in stream
            for choice in chunk.choices
            if choice.logprobs is not None
            for token in choice.logprobs.content or ()
        ]
    for choice in whole.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == "abcde"
        assert {token.logprob for token in tokens} == {-0.5}
        assert [[top.token for top in token.top_logprobs] for token in tokens] == [
            [letter] for letter in "abcde"
        ]
        assert tokens[0].bytes == [97]
    assert [token.token for token in streamed] == list("abcde")
    assert [token.top_logprobs for token in streamed] == [[]] * 5


async def test_completions_logprobs_end_with_the_stop_string() -> None:
    async with serving(app_of(telling("abcdefgh"))) as url:
        client = openai_client(url)
        asked: dict[str, Any] = {"model": MODEL, "prompt": "x", "logprobs": 1, "stop": "e"}
        whole = await client.completions.create(**asked)
        stream = await client.completions.create(**asked, stream=True)
        streamed = [chunk.choices[0] async for chunk in stream if chunk.choices]
    told = whole.choices[0].logprobs
    assert told is not None
    assert told.tokens == list("abcde")
    assert told.text_offset == [0, 1, 2, 3, 4]
    assert told.top_logprobs is not None and told.top_logprobs[1] == {"b": -0.5, "c": -1.5}
    assert whole.choices[0].text == "abcd"
    assert "".join(choice.text for choice in streamed) == "abcd"
    pieces = [choice.logprobs for choice in streamed if choice.logprobs is not None]
    assert [token for piece in pieces for token in piece.tokens or ()] == list("abcde")
    assert [offset for piece in pieces for offset in piece.text_offset or ()] == [0, 1, 2, 3, 4]


async def test_the_form_of_an_answer_reaches_the_engine() -> None:
    dispatcher = telling("{}")
    async with serving(app_of(dispatcher)) as url:
        client = openai_client(url)
        asked: dict[str, Any] = {"model": MODEL, "messages": HELLO}
        schema = {"name": "answer", "schema": SCHEMA}
        forms: list[Any] = [
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": schema},
        ]
        for form in forms:
            await client.chat.completions.create(**asked, response_format=form)
        for more in (
            {"guided_choice": ["yes", "no"]},
            {"structured_outputs": {"regex": "a+"}},
            {"response_format": {"type": "text"}},
        ):
            await client.completions.create(model=MODEL, prompt="x", extra_body=more)
        with pytest.raises(openai.BadRequestError, match=r"response_format\.type"):
            await client.chat.completions.create(**asked, response_format={"type": "xml"})  # type: ignore[call-overload]
        with pytest.raises(openai.BadRequestError, match="guided_regex: excludes"):
            await client.chat.completions.create(
                **asked,
                response_format={"type": "json_object"},
                extra_body={"guided_regex": "a"},
            )
    assert [request.sampling.structured for request in dispatcher.requests] == [
        StructuredOutput(kind="json_object"),
        StructuredOutput(kind="json", form=SCHEMA),
        StructuredOutput(kind="choice", form=["yes", "no"]),
        StructuredOutput(kind="regex", form="a+"),
        None,
    ]


SAID = (
    "<think>the weather!</think>\n\n"
    '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>'
)
ARGUMENTS = '{"city": "Oslo", "days": 3}'


async def test_tool_calls_and_reasoning_whole() -> None:
    app = app_of(dispatcher_saying(SAID % ARGUMENTS), parsing=Parsing("hermes", "qwen3"))
    async with serving(app) as url:
        answer = await openai_client(url).chat.completions.create(
            model=MODEL, messages=HELLO, tools=TOOLS
        )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [called] = choice.message.tool_calls
    assert called.type == "function" and len(called.id) == 9
    assert (called.function.name, called.function.arguments) == ("get_weather", ARGUMENTS)
    assert choice.message.model_extra == {"reasoning_content": "the weather!"}


async def test_tool_calls_streamed_and_understood_by_the_clients_own_helper() -> None:
    app = app_of(dispatcher_saying(SAID % ARGUMENTS), parsing=Parsing("hermes", "qwen3"))
    async with (
        serving(app) as url,
        openai_client(url).chat.completions.stream(
            model=MODEL, messages=HELLO, tools=TOOLS
        ) as stream,
    ):
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.delta") > 1
    [choice] = final.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert json.loads(choice.message.tool_calls[0].function.arguments) == json.loads(ARGUMENTS)


@pytest.mark.parametrize(
    ("parsing", "more"),
    [
        (Parsing("hermes"), {}),
        (Parsing("hermes"), {"tools": TOOLS, "tool_choice": "none"}),
        (Parsing(), {"tools": TOOLS}),
    ],
)
async def test_without_tools_or_parser_text_stays_text(
    parsing: Parsing, more: dict[str, Any]
) -> None:
    app = app_of(dispatcher_saying(SAID % ARGUMENTS), parsing=parsing)
    async with serving(app) as url:
        answer = await openai_client(url).chat.completions.create(
            model=MODEL, messages=HELLO, **more
        )
    assert answer.choices[0].message.content == SAID % ARGUMENTS
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
