"""The small random model: a real model's files, the same ones for the same seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

from dynosim.errors import ConfigError
from dynosim_runtime.tiny.model import tiny_model_command, write_tiny_model
from dynosim_runtime.tiny.tokenizer import EOS_TOKEN_ID, VOCAB_SIZE

FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_seed_same_bytes_another_seed_other_weights(folder: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "same")
    write_tiny_model(tmp_path / "other", seed=1)
    first, same, other = (contents(f) for f in (folder, tmp_path / "same", tmp_path / "other"))
    assert first == same
    assert {name for name in FILES if first[name] != other[name]} == {"model.safetensors"}
    assert set(first) == FILES


def test_the_tensors_are_those_of_qwen3(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert len(tensors) == 2 + 11 * config.num_hidden_layers
    assert tensors["model.embed_tokens.weight"].shape == (VOCAB_SIZE, config.hidden_size)
    keys = config.num_key_value_heads * config.head_dim
    prefix = "model.layers.3"
    assert tensors[f"{prefix}.self_attn.k_proj.weight"].shape == (keys, config.hidden_size)
    assert tensors[f"{prefix}.self_attn.q_norm.weight"].shape == (config.head_dim,)
    assert tensors[f"{prefix}.mlp.down_proj.weight"].shape == (config.hidden_size, 768)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def test_sizes_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model_command(tmp_path / "m", layers=2, hidden=64, seed=3, as_json=True)
    said = json.loads(capsys.readouterr().out)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert said["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert (said["layers"], said["hidden"], said["seed"]) == (2, 64, 3)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


@pytest.mark.parametrize(
    "text",
    ["Hello, world!", "Grüße, 你好 🙂", "  two\n\n\tlines ", "def f(x):\n    return x\n", ""],
)
def test_any_text_comes_back_the_same(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_token_of_the_model_has_a_text(tokenizer: Any) -> None:
    assert len(tokenizer) == VOCAB_SIZE
    assert None not in tokenizer.convert_ids_to_tokens(list(range(VOCAB_SIZE)))
    assert tokenizer.eos_token_id == EOS_TOKEN_ID
    assert len(tokenizer.encode("The model reads the whole prompt.")) < 12  # words, not letters


def test_chats_are_rendered_in_chatml(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.encode(text)[0] == 1


def test_tools_and_their_calls_are_rendered(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "Call f"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert '<tools>\n{"type": "function", "function": {"name": "f"' in text
    assert '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><|im_end|>' in text
    assert text.endswith("<|im_start|>tool\n2<|im_end|>\n")


def test_a_tiny_model_is_replaced_anything_else_is_kept(tmp_path: Path) -> None:
    model = tmp_path / "m"
    write_tiny_model(model, layers=1, hidden=64)
    write_tiny_model(model, layers=2, hidden=64)
    assert json.loads((model / "config.json").read_text())["num_hidden_layers"] == 2
    (tmp_path / "theirs").mkdir()
    for content in ("[]", "{}", "not json"):
        (tmp_path / "theirs" / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=r"holds config.json, which is not of"):
            write_tiny_model(tmp_path / "theirs")
        assert (tmp_path / "theirs" / "config.json").read_text() == content


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, "--layers 0"),
        ({"hidden": 100}, "--hidden 100: expected a multiple of 32"),
        ({"hidden": 32}, "--hidden 32: .* at least 64"),
    ],
)
def test_sizes_that_make_no_model_are_refused(
    tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_tiny_model(tmp_path / "m", **sizes)
    assert not (tmp_path / "m").exists()
