"""What real vLLM does natively, through the frontend: logprobs, forms of answers, stop strings."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from cluster import VLLM_PYTHON, Cluster
from test_real_vllm import vllm_plan

PROMPT = "the quick brown fox " * 20
COLOR = {"enum": ["red", "green"]}
FORM = {
    "type": "object",
    "properties": {"color": COLOR, "on": {"type": "boolean"}},
    "required": ["color", "on"],
    "additionalProperties": False,
}

POSSIBLE = [
    json.dumps({"color": color, "on": on}, separators=(",", ":"))
    for color in ("red", "green")
    for on in (True, False)
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("vllm")
    plan = vllm_plan(folder, tiny_model, workers=1)
    engine = ("--real", "--engine", "vllm-cpu", "--engine-python", VLLM_PYTHON)
    with Cluster(plan, folder / "out", *engine) as cluster:
        yield openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)


def form_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def model_of(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": model_of(client), "temperature": 0.0, "max_tokens": 12}
    done = client.completions.create(**asked, prompt=PROMPT, logprobs=2)
    told = done.choices[0].logprobs
    assert told is not None and told.tokens and told.top_logprobs and told.token_logprobs
    assert len(told.tokens) == 12
    # vLLM names a token that ends within a character by nothing, and shows it in the text
    assert "".join(told.tokens) == done.choices[0].text.replace("\ufffd", "")
    for token, logprob, top in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, strict=True
    ):
        assert 1 <= len(top) <= 3  # by text: halves of characters look alike
        assert logprob == top[token] == max(top.values()) < 0
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}]}
    stream = client.chat.completions.create(
        **asked, **chat, logprobs=True, top_logprobs=3, stream=True
    )
    tokens = [
        token
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or ()
    ]
    assert len(tokens) == 12
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.top_logprobs[0].logprob == token.logprob for token in tokens)


def test_answers_have_the_form_asked_for(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": model_of(client),
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 60,
    }
    done = client.chat.completions.create(**asked, response_format=form_of(FORM), n=3, seed=7)
    assert len(done.choices) == 3
    for choice in done.choices:
        assert choice.message.content is not None
        # A random model may write nothing but blanks between the parts, for as long as it can.
        compact = "".join(choice.message.content.split())
        assert any(answer.startswith(compact) for answer in POSSIBLE)
        assert choice.finish_reason == "length" or compact in POSSIBLE
    # A form without room for blanks leaves it nothing but to answer.
    done = client.chat.completions.create(**asked, response_format=form_of(COLOR), n=3, seed=7)
    assert [choice.finish_reason for choice in done.choices] == ["stop"] * 3
    assert {choice.message.content for choice in done.choices} <= {'"red"', '"green"'}
    for words in (
        {"guided_choice": ["yes", "no"]},
        {"structured_outputs": {"regex": "(yes|no)"}},
    ):
        stream = client.chat.completions.create(**asked, stream=True, extra_body=words)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text in ("yes", "no")


@pytest.mark.parametrize("stream", [False, True])
def test_cached_tokens_are_told_where_a_stop_string_ends_the_answer(
    client: openai.OpenAI, stream: bool
) -> None:
    asked: dict[str, Any] = {
        "model": model_of(client), "prompt": PROMPT, "temperature": 0.0, "max_tokens": 60,
    }  # fmt: skip
    text = client.completions.create(**asked).choices[0].text
    stop = text[10:14]
    if stream:
        options: dict[str, Any] = {"stream_options": {"include_usage": True}}
        *_, last = client.completions.create(**asked, stop=stop, stream=True, **options)
        usage = last.usage
    else:
        done = client.completions.create(**asked, stop=stop)
        assert done.choices[0].text == text[: text.index(stop)]
        assert done.choices[0].finish_reason == "stop"
        usage = done.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert usage.prompt_tokens_details.cached_tokens > 0
    assert usage.completion_tokens < 60
