"""Tokenizers: loading, templates, and what they tell the dialects."""

import json
from pathlib import Path

import pytest
from http_support import MODEL, app_of, client_of, dispatcher_saying, tokenizer_folder

from dynosim.errors import ConfigError
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.tokenize.byte_tokenizer import TURN_END_ID, TURN_START_ID, ByteTokenizer
from dynosim_runtime.tokenize.load import load_tokenizer
from dynosim_runtime.tokenize.tokenizer import (
    ChatTemplateError,
    Conversation,
    Tokenizer,
)

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    return load_tokenizer(model_folder)


def test_no_path_means_bytes() -> None:
    assert isinstance(load_tokenizer(None), ByteTokenizer)


def test_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such model folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no usable tokenizer: .*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_broken_config_is_one_clear_error(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 5000, "model_type": "qwen3"}))
    assert load_tokenizer(tmp_path).token_id_limit == 5000


def test_template_gets_tools_and_arguments(tokenizer: Tokenizer) -> None:
    conversation = Conversation(
        messages=HELLO,
        tools=[{"type": "function", "function": {"name": "f"}}],
        template_args={"enable_thinking": True},
    )
    text = tokenizer.decode(tokenizer.encode_chat(conversation))
    assert text.startswith('<|im_start|>system\n[{"type": "function", "function": {"name": "f"}}]')
    assert "[thinking]" in text
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("name", ["chat_template", "tokenize"])
def test_clients_cannot_bring_their_own_template(tokenizer: Tokenizer, name: str) -> None:
    conversation = Conversation(messages=HELLO, template_args={name: "{{ 1 }}"})
    with pytest.raises(ChatTemplateError, match="not for clients"):
        tokenizer.encode_chat(conversation)


def test_special_tokens_of_a_template_are_single_tokens(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode_chat(Conversation(messages=HELLO))
    assert [token_ids.count(1), token_ids.count(2)] == [2, 1]
    assert "<|im_start|>" not in tokenizer.decode(token_ids, skip_special_tokens=True)


def test_last_message_can_be_continued(tokenizer: Tokenizer) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    conversation = Conversation(
        messages=messages, add_generation_prompt=False, continue_final_message=True
    )
    assert tokenizer.decode(tokenizer.encode_chat(conversation)).endswith("assistant\nOnce upon")


async def test_refusal_of_a_template_is_the_clients_error(tokenizer: Tokenizer) -> None:
    messages = [{"role": "tool", "content": "x"}]
    with pytest.raises(ChatTemplateError, match="no tool first"):
        tokenizer.encode_chat(Conversation(messages=messages))
    models = ModelRegistry()
    models.add(MODEL, tokenizer, 100)
    async with client_of(app_of(dispatcher_saying("x"), models=models)) as client:
        answer = await client.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": messages}
        )
    assert answer.status_code == 400
    assert "no tool first" in answer.json()["error"]["message"]


def test_special_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    token_ids = [*tokenizer.encode("the fox"), 2]
    assert "".join(map(detokenizer.step, token_ids)) == "the fox"


def test_an_unfinished_character_is_not_shown(tokenizer: Tokenizer) -> None:
    for some in (tokenizer, ByteTokenizer()):
        token_ids = some.encode("a𝄞")
        detokenizer = some.detokenizer(some.encode("the quick brown fox"))
        assert [detokenizer.step(token_id) for token_id in token_ids[:-1]] == ["a", "", "", ""]
        assert detokenizer.step(token_ids[-1]) == "𝄞"


def test_chat_in_bytes_keeps_special_tokens_to_itself() -> None:
    messages = [{"role": "user", "content": "<|im_end|>"}]
    token_ids = ByteTokenizer().encode_chat(Conversation(messages=messages))
    assert [token_ids.count(TURN_START_ID), token_ids.count(TURN_END_ID)] == [2, 1]


def test_made_up_tokens_show_as_letters() -> None:
    text = ByteTokenizer().decode([70_000, 3 + ord("!")])
    assert text[0].isalpha()
    assert text[1] == "!"


async def test_long_texts_are_tokenized_like_short_ones(tokenizer: Tokenizer) -> None:
    models = ModelRegistry()
    models.add(MODEL, tokenizer, 100_000)
    long = "the quick brown fox " * 1000
    async with client_of(app_of(dispatcher_saying("x"), models=models)) as client:
        answer = await client.post("/tokenize", json={"prompt": long})
    assert answer.json()["tokens"] == tokenizer.encode(long)
