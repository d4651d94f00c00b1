"""Tool calls and reasoning in what models write, however the text is cut into pieces."""

import json
from pathlib import Path
from typing import Any

import pytest
from http_support import tokenizer_folder

from dynosim_runtime.dialects.chat.parts import ChatParts
from dynosim_runtime.dialects.output import ChoiceOutput
from dynosim_runtime.dialects.parsing.output_parser import OutputParser, Parsing
from dynosim_runtime.dialects.parsing.parts import CallArguments
from dynosim_runtime.dialects.parsing.tool_calls import TOOL_PARSERS
from dynosim_runtime.requests import Sampling, TokenDelta
from dynosim_runtime.tokenize.load import load_tokenizer


def parsed(text: str, parsing: Parsing, size: int, prompt_end: str = "") -> dict[str, Any]:
    """Content, reasoning and calls, from deltas as a client puts them together."""
    numbers = iter(range(100))
    parts = ChatParts(OutputParser(parsing, prompt_end), lambda: f"id{next(numbers)}")
    deltas = []
    for begin in range(0, len(text), size):
        deltas += parts.deltas(text[begin : begin + size])
    deltas += parts.last_deltas()
    calls: list[list[str]] = []
    for piece in [piece for delta in deltas for piece in delta.get("tool_calls", ())]:
        if "name" in piece["function"]:
            assert piece["index"] == len(calls)
            calls.append([piece["function"]["name"], piece["function"]["arguments"]])
        else:
            calls[piece["index"]][1] += piece["function"]["arguments"]
    whole = ChatParts(OutputParser(parsing, prompt_end), lambda: "id").message(text)
    told = {
        "content": "".join(delta.get("content", "") for delta in deltas),
        "reasoning": "".join(delta.get("reasoning_content", "") for delta in deltas),
        "calls": [tuple(call) for call in calls],
        "reason": parts.finish_reason("stop"),
    }
    assert (whole["content"] or "") == told["content"]
    assert whole.get("reasoning_content", "") == told["reasoning"]
    functions = [call["function"] for call in whole.get("tool_calls", ())]
    assert [(f["name"], f["arguments"]) for f in functions] == told["calls"]
    return told


def call(name: str, arguments: str) -> tuple[str, str]:
    return name, arguments


WEATHER = call("get_weather", '{"city": "Paris \\"}{ [", "days": [1, {"a": 2}]}')
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", "just words < and <tool", "just words < and <tool", []),
    (
        "hermes",
        f'Let me see.\n<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER[1]}}}\n'
        '</tool_call>\n<tool_call>{"name": "now"}</tool_call>\n',
        "Let me see.\n",
        [WEATHER, call("now", "{}")],
    ),
    (
        "hermes",
        '\n\n<tool_call>\n{"arguments": {"a": 1}, "name": "f"}\n</tool_call>',
        "",
        [call("f", '{"a": 1}')],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call> bye',
        " bye",
        [call("f", '{"a": 1}')],
    ),
    ("hermes", "<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
    ("hermes", '<tool_call>{"nome": 1} x', '<tool_call>{"nome": 1} x', []),
    ("hermes", '<tool_call>{"name": "f"', '<tool_call>{"name": "f"', []),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1', "", [call("f", '{"a": [1')]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}}<tool_call>{"name": "g", "arguments": {}}',
        "",
        [call("f", "{}"), call("g", "{}")],
    ),
    ("llama3_json", "Hello {x}", "Hello {x}", []),
    ("llama3_json", "  {not json", "  {not json"[2:], []),
    (
        "llama3_json",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {WEATHER[1]}}}; '
        '{"name": "g", "parameters": {}}',
        "",
        [WEATHER, call("g", "{}")],
    ),
    (
        "llama3_json",
        '{"type": "function", "name": "f", "parameters": {"a": null}}',
        "",
        [call("f", '{"a": null}')],
    ),
    ("llama3_json", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
    ("mistral", "words [TOOL] and [", "words [TOOL] and [", []),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {WEATHER[1]}}}, '
        '{"name": "g", "arguments": {}}]',
        "",
        [WEATHER, call("g", "{}")],
    ),
    (
        "mistral",
        f'ok[TOOL_CALLS]get_weather{WEATHER[1]}[TOOL_CALLS]g[ARGS]{{"b": "]"}}',
        "ok",
        [WEATHER, call("g", '{"b": "]"}')],
    ),
    ("mistral", "[TOOL_CALLS]f", "[TOOL_CALLS]f", []),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("parser", "text", "content", "calls"), CASES)
def test_calls_are_found(
    parser: str, text: str, content: str, calls: list[tuple[str, str]], size: int
) -> None:
    told = parsed(text, Parsing(tools=parser), size)
    assert told["calls"] == calls
    assert told["content"] == content
    assert told["reason"] == ("tool_calls" if calls else "stop")


@pytest.mark.parametrize("name", TOOL_PARSERS)
def test_arguments_come_while_they_are_written(name: str) -> None:
    begin = {"hermes": "<tool_call>", "llama3_json": "", "mistral": "[TOOL_CALLS]["}[name]
    parser = TOOL_PARSERS[name]()
    parser.feed(begin + '{"name": "f", "arguments": {"text": "')
    assert parser.feed("so far") == [CallArguments("so far")]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("parser", "prompt_end", "text", "reasoning", "content"),
    [
        ("deepseek_r1", "", "<think>\nhm</think>\n\nyes", "\nhm", "\n\nyes"),
        ("deepseek_r1", "<think>\n", "hm</think>yes", "hm", "yes"),
        ("deepseek_r1", "", "hm</think>yes", "hm", "yes"),
        ("deepseek_r1", "", "hm </thin", "hm </thin", ""),
        ("deepseek_r1", "</think>\n\n", "yes </think>", "", "yes </think>"),
        ("qwen3", "", "<think>hm</think>yes", "hm", "yes"),
        ("qwen3", "", "yes, <think> is a tag", "", "yes, <think> is a tag"),
        ("qwen3", "assistant\n<think>\n", "hm</think>yes", "hm", "yes"),
        ("qwen3", "<think>\n\n</think>\n\n", "yes", "", "yes"),
        ("qwen3", "", "<thi", "", "<thi"),
    ],
)
def test_reasoning_is_told_apart(
    parser: str, prompt_end: str, text: str, reasoning: str, content: str, size: int
) -> None:
    told = parsed(text, Parsing(reasoning=parser), size, prompt_end)
    assert (told["reasoning"], told["content"]) == (reasoning, content)


def test_calls_behind_reasoning_are_found_and_those_inside_are_not() -> None:
    inside, outside = (
        f"<tool_call>{json.dumps({'name': name, 'arguments': {}})}</tool_call>" for name in "ab"
    )
    told = parsed(
        f"<think>{inside}</think>\n\n{outside}", Parsing(tools="hermes", reasoning="qwen3"), 5
    )
    assert told["calls"] == [("b", "{}")]
    assert told["reasoning"] == inside
    assert told["content"] == ""


def test_markers_that_are_special_tokens_are_seen(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path))
    marker = tokenizer.special_id("<|im_start|>")
    assert marker is not None
    assert tokenizer.special_id("the") is tokenizer.special_id("<nothing>") is None
    ids = [*tokenizer.encode("fox"), marker, *tokenizer.encode("dog"), marker]
    sampling = Sampling(max_tokens=9, stop=("g<",))
    for shown, text, stop in (({}, "foxdog", None), ({marker: "<M>"}, "fox<M>do", "g<")):
        output = ChoiceOutput(tokenizer.detokenizer(), sampling, [], shown)
        output.feed(TokenDelta(ids))
        if stop is None:
            output.finish()
        assert (output.text, output.stop_text) == (text, stop)
