"""Token counts in answers: every field of every dialect, whole and streamed, worked out by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from http_support import MODEL, app_of, client_of, events_of

from dynosim_runtime.requests import GenerateRequest, TokenDelta
from dynosim_runtime.testing.dispatcher import ScriptedDispatcher, ScriptedStream, Step
from dynosim_runtime.tokenize.byte_tokenizer import BYTE_OFFSET

HELLO = [{"role": "user", "content": "Hello"}]
# Byte tokens: <|im_start|>, "user\nHello", <|im_end|>, "\n", then <|im_start|>, "assistant\n".
HELLO_TOKENS = (1 + 10 + 1 + 1) + (1 + 10)
CHAT, COMPLETIONS = "chat/completions", "completions"
RESPONSES, MESSAGES = "responses", "messages"


class Answering(ScriptedDispatcher):
    """Answers the n-th choice (of a request with several) with its own text and cached tokens."""

    def __init__(self, *choices: tuple[str, int | None], finish_reason: str = "stop") -> None:
        super().__init__(self._steps)
        self._choices = choices
        self._finish_reason = finish_reason

    def _steps(self, request: GenerateRequest) -> Sequence[Step]:
        text, _ = self._choices[self._number(request)]
        ids = [byte + BYTE_OFFSET for byte in text.encode()]
        reason: Any = self._finish_reason
        return [TokenDelta(ids[:2]), TokenDelta(ids[2:]), TokenDelta([], reason)]

    async def start(self, request: GenerateRequest) -> ScriptedStream:
        stream = await super().start(request)
        stream.record.cached_tokens = self._choices[self._number(request)][1]
        return stream

    def _number(self, request: GenerateRequest) -> int:
        return 0 if len(self._choices) == 1 else int(request.request_id.rsplit("-", 1)[1])


async def whole(dispatcher: ScriptedDispatcher, path: str, **fields: Any) -> Any:
    body = {"model": MODEL, **fields}
    async with client_of(app_of(dispatcher)) as client:
        answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def streamed(dispatcher: ScriptedDispatcher, path: str, **fields: Any) -> list[Any]:
    body = {"model": MODEL, "stream": True, **fields}
    async with client_of(app_of(dispatcher)) as client:
        answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return [content for _, content in events_of(answer.text)]


async def openai_usage(choices: Sequence[tuple[str, int | None]], path: str, **fields: Any) -> Any:
    """`usage`, which must be the same in a whole answer and in the last chunk of a stream."""
    told = (await whole(Answering(*choices), path, **fields))["usage"]
    options = {"include_usage": True}
    *chunks, last, done = await streamed(
        Answering(*choices), path, stream_options=options, **fields
    )
    assert (last["choices"], last["usage"], done) == ([], told, "[DONE]")
    assert not any("usage" in chunk for chunk in chunks)
    assert not any("usage" in chunk for chunk in await streamed(Answering(*choices), path, **fields)
                   if chunk != "[DONE]")  # fmt: skip
    return told


def usage(prompt: int, completion: int, cached: int | None) -> Mapping[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
    }


@pytest.mark.parametrize(
    ("fields", "choices", "expected"),
    [
        ({"prompt": "xyz"}, [("abcd", 2)], usage(3, 4, 2)),
        ({"prompt": "xyz"}, [("abcd", 0)], usage(3, 4, 0)),
        ({"prompt": "xyz"}, [("abcd", None)], usage(3, 4, None)),
        # A prompt counts once for its choices, and so does what was cached of it.
        ({"prompt": "xyz", "n": 3}, [("a", 1), ("bc", 3), ("def", 3)], usage(3, 6, 1)),
        ({"prompt": "xyz", "n": 2}, [("a", None), ("bc", 3)], usage(3, 3, None)),
        # Prompts count each, equal ones too.
        ({"prompt": ["xyz", "xy"]}, [("a", 3), ("bc", 1)], usage(5, 3, 4)),
        ({"prompt": ["xyz", "xyz"]}, [("a", 3), ("bc", 2)], usage(6, 3, 5)),
        ({"prompt": ["xyz", "xy"]}, [("a", None), ("bc", 1)], usage(5, 3, 1)),
        (
            {"prompt": [[9, 8], [7]], "n": 2},
            [("a", 2), ("bc", 7), ("def", 1), ("g", 7)],
            usage(3, 7, 3),
        ),
    ],
)
async def test_completions(
    fields: dict[str, Any], choices: list[tuple[str, int | None]], expected: Mapping[str, Any]
) -> None:
    assert await openai_usage(choices, COMPLETIONS, **fields) == expected


@pytest.mark.parametrize(
    ("num_choices", "choices", "expected"),
    [
        (1, [("abcd", 5)], usage(HELLO_TOKENS, 4, 5)),
        (2, [("abcd", 5), ("e", 6)], usage(HELLO_TOKENS, 5, 5)),
        (1, [("abcd", None)], usage(HELLO_TOKENS, 4, None)),
    ],
)
async def test_chats(
    num_choices: int, choices: list[tuple[str, int | None]], expected: Mapping[str, Any]
) -> None:
    assert await openai_usage(choices, CHAT, messages=HELLO, n=num_choices) == expected


@pytest.mark.parametrize(
    ("finish_reason", "status"), [("stop", "completed"), ("length", "incomplete")]
)
@pytest.mark.parametrize(("cached", "told"), [(5, 5), (None, 0)])
async def test_responses(cached: int | None, told: int, finish_reason: str, status: str) -> None:
    expected = {
        "input_tokens": HELLO_TOKENS,
        "input_tokens_details": {"cached_tokens": told},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": HELLO_TOKENS + 4,
    }
    answer = await whole(
        Answering(("abcd", cached), finish_reason=finish_reason), RESPONSES, input="Hello"
    )
    assert (answer["usage"], answer["status"]) == (expected, status)
    events = await streamed(
        Answering(("abcd", cached), finish_reason=finish_reason), RESPONSES, input="Hello"
    )
    assert events[-1]["type"] == f"response.{status}"
    assert events[-1]["response"]["usage"] == expected
    earlier = [event["response"] for event in events[:-1] if "response" in event]
    assert [response["usage"] for response in earlier] == [None, None]


@pytest.mark.parametrize("cached", [5, 0, None])
async def test_messages_count_cached_tokens_apart(cached: int | None) -> None:
    expected = {
        "input_tokens": HELLO_TOKENS - (cached or 0),
        "output_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached or 0,
    }
    fields: dict[str, Any] = {"messages": HELLO, "max_tokens": 9}
    assert (await whole(Answering(("abcd", cached)), MESSAGES, **fields))["usage"] == expected
    events = await streamed(Answering(("abcd", cached)), MESSAGES, **fields)
    by_type = {event["type"]: event for event in events}
    assert by_type["message_delta"]["usage"] == expected
    # Before anything is known of the cache: the whole prompt.
    assert by_type["message_start"]["message"]["usage"] == {
        "input_tokens": HELLO_TOKENS,
        "output_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


async def test_tokens_up_to_the_one_that_completes_a_stop_string_count() -> None:
    answer = await whole(Answering(("one STOP two", 1)), COMPLETIONS, prompt="xyz", stop="STOP")
    assert answer["choices"][0]["text"] == "one "
    assert answer["usage"] == usage(3, len("one STOP"), 1)
