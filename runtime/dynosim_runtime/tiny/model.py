"""A small random Qwen3 model in Hugging Face form, for machines without GPUs or weights.

Its text is nonsense, but it is a real model to a real engine: the tensors of
`Qwen3ForCausalLM`, a trained tokenizer, a chat template. The same sizes and seed give the same
files, byte for byte. Written with numpy: torch is not needed.
"""

import json
from pathlib import Path
from typing import Any

from dynosim.atomic import check_folder, text_writer, write_files
from dynosim.errors import ConfigError
from dynosim.files.result_folder import MODEL, check_kind, check_results
from dynosim_runtime.tiny.tokenizer import (
    BOS_TOKEN_ID,
    EOS_TOKEN_ID,
    VOCAB_SIZE,
    tokenizer_files,
)

HEAD_DIM = 32
MAX_POSITION_EMBEDDINGS = 8192
EMBEDDING_STD = 0.02  # small beside what the layers add: a tied output would echo its input
LOGIT_SCALE = 5.0  # makes logits of standard deviation 1.6: some tokens are clearly the likeliest
QUERY_KEY_SCALE = 2.0  # sharp attention: what comes next depends on the whole text
MARK = "dynosim_tiny_model"  # key of config.json by which a folder is known as ours


def tiny_model_command(
    folder: Path, *, layers: int, hidden: int, seed: int, as_json: bool, overwrite: bool = False
) -> int:
    """`dynosim tiny-model`: write the model, say what it is. Raises: ConfigError."""
    import typer

    check_folder(folder, "tiny-model")
    check_results(folder, MODEL, overwrite=overwrite)
    parameters = write_tiny_model(folder, layers=layers, hidden=hidden, seed=seed)
    if as_json:
        summary = {
            "folder": str(folder), "parameters": parameters, "layers": layers, "hidden": hidden,
            "vocab_size": VOCAB_SIZE, "seed": seed,
        }  # fmt: skip
        typer.echo(json.dumps(summary))
    else:
        typer.echo(
            f"{folder}: {layers} layers of width {hidden}, {parameters / 1e6:.1f} M parameters"
        )
    return 0


def write_tiny_model(folder: Path, *, layers: int = 4, hidden: int = 256, seed: int = 0) -> int:
    """Write the model to `folder`, whole or not at all; returns its number of parameters.

    A tiny model that is there is replaced, other files beside it are kept.
    Raises: ConfigError for sizes that make no model, or a folder that holds something else.
    """
    from safetensors.numpy import save_file

    config = _config(layers, hidden)
    check_folder(folder, "tiny-model")
    check_kind(folder, MODEL)
    weights = _weights(config, seed)
    texts = {
        "config.json": _as_text(config),
        "generation_config.json": _as_text(_generation_config()),
        **tokenizer_files(),
    }

    def save_weights(path: Path) -> None:
        save_file(weights, path, metadata={"format": "pt"})
        path.chmod(0o644)  # it makes files that are their owner's only

    writers = {name: text_writer(text) for name, text in texts.items()}
    write_files(folder, {**writers, "model.safetensors": save_weights})
    return sum(weight.size for weight in weights.values())


def _config(layers: int, hidden: int) -> dict[str, Any]:
    """What config.json says. Raises: ConfigError for sizes that make no model."""
    if layers < 1:
        raise ConfigError(f"--layers {layers}: a model has at least one layer")
    if hidden < 64 or hidden % HEAD_DIM:
        raise ConfigError(f"--hidden {hidden}: expected a multiple of {HEAD_DIM}, at least 64")
    num_heads = hidden // HEAD_DIM
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": next(n for n in (2, 1) if num_heads % n == 0),
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITION_EMBEDDINGS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "use_cache": True,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_TOKEN_ID,
        "eos_token_id": EOS_TOKEN_ID,
        MARK: True,
    }  # fmt: skip


def _generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": BOS_TOKEN_ID,
        "eos_token_id": EOS_TOKEN_ID,
        "pad_token_id": BOS_TOKEN_ID,
        "do_sample": True,
        "temperature": 1.0,
    }


def _as_text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"


def _weights(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Every tensor of the model by its name, float16, (outputs, inputs).

    Matrices keep the size of what they are given: their standard deviation is 1/sqrt(inputs).
    """
    import numpy as np

    rng = np.random.default_rng(seed)

    def matrix(outputs: int, inputs: int, std: float | None = None) -> Any:
        scale = inputs**-0.5 if std is None else std
        return (rng.standard_normal((outputs, inputs)) * scale).astype(np.float16)

    def norm(size: int, scale: float = 1.0) -> Any:
        return np.full(size, scale, np.float16)

    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = (config[f"num_{kind}_heads"] * head for kind in ("attention", "key_value"))
    weights = {"model.embed_tokens.weight": matrix(VOCAB_SIZE, hidden, EMBEDDING_STD)}
    for layer in range(config["num_hidden_layers"]):
        tensors = {
            "input_layernorm": norm(hidden),
            "self_attn.q_proj": matrix(queries, hidden),
            "self_attn.k_proj": matrix(keys, hidden),
            "self_attn.v_proj": matrix(keys, hidden),
            "self_attn.o_proj": matrix(hidden, queries),
            "self_attn.q_norm": norm(head, QUERY_KEY_SCALE),
            "self_attn.k_norm": norm(head),
            "post_attention_layernorm": norm(hidden),
            "mlp.gate_proj": matrix(inner, hidden),
            "mlp.up_proj": matrix(inner, hidden),
            "mlp.down_proj": matrix(hidden, inner),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": t for name, t in tensors.items()}
    weights["model.norm.weight"] = norm(hidden, LOGIT_SCALE)
    return weights
