"""Configs of common dense models that aiconfigurator-core does not ship, as far as costs need them.

Source: each model's config.json on the Hugging Face hub, as the row says read in litgpt's
`config.py`, in mlc-llm's model presets, or in copies of the file in public repositories. Exact
parameter counts follow from the widths and are compared with the published ones in tests; contexts
do not, so that each name has its own.
"""

from typing import Any, NamedTuple


class _Row(NamedTuple):
    architecture: tuple[str, str]  # class and model_type
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int  # feed-forward width
    vocabulary: int
    context: int
    is_tied: bool  # input and output embedding are one matrix
    source: str


class SameShape(NamedTuple):
    """A model with the shapes of another, and what differs."""

    base: str
    context: int
    source: str
    vocabulary: int | None = None  # None: the base's


_LLAMA = ("LlamaForCausalLM", "llama")
_MISTRAL = ("MistralForCausalLM", "mistral")
_QWEN2 = ("Qwen2ForCausalLM", "qwen2")
_QWEN3 = ("Qwen3ForCausalLM", "qwen3")

_LITGPT = "litgpt"
_LITGPT_MLC = "litgpt, mlc-llm"
_COPY = "copies of config.json"
_FAMILY = "the rule of its family, copies of other sizes"

# architecture, layers, hidden, heads, KV heads, head width, feed-forward width, vocabulary,
# context, whether the embeddings are tied, source
_ROWS: dict[str, _Row] = {
    "meta-llama/Llama-2-7b-hf": _Row(
        _LLAMA, 32, 4096, 32, 32, 128, 11008, 32000, 4096, False, _LITGPT_MLC),
    "meta-llama/Llama-2-13b-hf": _Row(
        _LLAMA, 40, 5120, 40, 40, 128, 13824, 32000, 4096, False, _LITGPT_MLC),
    "meta-llama/Llama-2-70b-hf": _Row(
        _LLAMA, 80, 8192, 64, 8, 128, 28672, 32000, 4096, False, _LITGPT_MLC),
    "meta-llama/Meta-Llama-3-8B": _Row(
        _LLAMA, 32, 4096, 32, 8, 128, 14336, 128256, 8192, False, _LITGPT),
    "meta-llama/Meta-Llama-3-70B": _Row(
        _LLAMA, 80, 8192, 64, 8, 128, 28672, 128256, 8192, False, _LITGPT),
    "meta-llama/Llama-3.2-1B": _Row(
        _LLAMA, 16, 2048, 32, 8, 64, 8192, 128256, 131072, True, _LITGPT),
    "meta-llama/Llama-3.2-3B": _Row(
        _LLAMA, 28, 3072, 24, 8, 128, 8192, 128256, 131072, True, _LITGPT),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _Row(
        _LLAMA, 22, 2048, 32, 4, 64, 5632, 32000, 2048, False, _LITGPT_MLC),
    "01-ai/Yi-34B": _Row(
        _LLAMA, 60, 7168, 56, 8, 128, 20480, 64000, 4096, False, _COPY),
    "mistralai/Mistral-7B-v0.3": _Row(
        _MISTRAL, 32, 4096, 32, 8, 128, 14336, 32768, 32768, False, _LITGPT_MLC),
    # Older files of Nemo state 128000 (base) and 1024000 (instruct).
    "mistralai/Mistral-Nemo-Base-2407": _Row(
        _MISTRAL, 40, 5120, 32, 8, 128, 14336, 131072, 131072, False, _COPY),
    "mistralai/Mistral-Small-24B-Base-2501": _Row(
        _MISTRAL, 40, 5120, 32, 8, 128, 32768, 131072, 32768, False, _LITGPT),
    "Qwen/Qwen2.5-0.5B": _Row(
        _QWEN2, 24, 896, 14, 2, 64, 4864, 151936, 32768, True, _LITGPT),
    "Qwen/Qwen2.5-1.5B": _Row(
        _QWEN2, 28, 1536, 12, 2, 128, 8960, 151936, 131072, True, _LITGPT),
    "Qwen/Qwen2.5-3B": _Row(
        _QWEN2, 36, 2048, 16, 2, 128, 11008, 151936, 32768, True, _LITGPT),
    "Qwen/Qwen2.5-7B": _Row(
        _QWEN2, 28, 3584, 28, 4, 128, 18944, 152064, 131072, False, _LITGPT),
    "Qwen/Qwen2.5-14B": _Row(
        _QWEN2, 48, 5120, 40, 8, 128, 13824, 152064, 131072, False, _LITGPT),
    "Qwen/Qwen2.5-32B": _Row(
        _QWEN2, 64, 5120, 40, 8, 128, 27648, 152064, 131072, False, _LITGPT),
    "Qwen/Qwen2.5-72B": _Row(
        _QWEN2, 80, 8192, 64, 8, 128, 29568, 152064, 131072, False, _LITGPT),
    "Qwen/Qwen3-4B": _Row(
        _QWEN3, 36, 2560, 32, 8, 128, 9728, 151936, 40960, True, _LITGPT),
    "Qwen/Qwen3-14B": _Row(
        _QWEN3, 40, 5120, 40, 8, 128, 17408, 151936, 40960, False, _LITGPT),
}  # fmt: skip

SAME_SHAPES: dict[str, SameShape] = {
    "meta-llama/Llama-2-7b-chat-hf": SameShape("meta-llama/Llama-2-7b-hf", 4096, _LITGPT),
    "meta-llama/Llama-2-13b-chat-hf": SameShape("meta-llama/Llama-2-13b-hf", 4096, _LITGPT),
    "meta-llama/Llama-2-70b-chat-hf": SameShape("meta-llama/Llama-2-70b-hf", 4096, _LITGPT),
    "meta-llama/Meta-Llama-3-8B-Instruct": SameShape("meta-llama/Meta-Llama-3-8B", 8192, _LITGPT),
    "meta-llama/Meta-Llama-3-70B-Instruct": SameShape("meta-llama/Meta-Llama-3-70B", 8192, _LITGPT),
    "meta-llama/Llama-3.2-1B-Instruct": SameShape("meta-llama/Llama-3.2-1B", 131072, _LITGPT),
    "meta-llama/Llama-3.2-3B-Instruct": SameShape("meta-llama/Llama-3.2-3B", 131072, _LITGPT),
    "01-ai/Yi-34B-Chat": SameShape("01-ai/Yi-34B", 4096, _FAMILY),
    "01-ai/Yi-34B-200K": SameShape("01-ai/Yi-34B", 200000, _FAMILY),
    "mistralai/Mistral-7B-Instruct-v0.3": SameShape("mistralai/Mistral-7B-v0.3", 32768, _LITGPT),
    "mistralai/Mistral-Nemo-Instruct-2407": SameShape(
        "mistralai/Mistral-Nemo-Base-2407", 131072, _COPY),
    "mistralai/Mistral-Small-24B-Instruct-2501": SameShape(
        "mistralai/Mistral-Small-24B-Base-2501", 32768, "its model card"),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": SameShape(
        "mistralai/Mixtral-8x22B-v0.1", 65536, _LITGPT, vocabulary=32768),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": SameShape(
        "meta-llama/Meta-Llama-3.1-8B", 131072, _LITGPT),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": SameShape(
        "meta-llama/Meta-Llama-3.1-70B", 131072, _LITGPT),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": SameShape("Qwen/Qwen2.5-14B", 131072, _COPY),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": SameShape("Qwen/Qwen2.5-32B", 131072, _COPY),
    "Qwen/QwQ-32B": SameShape("Qwen/Qwen2.5-32B", 40960, "QwenLM/QwQ issue 26"),
    **{
        f"Qwen/Qwen2.5-{size}-Instruct": SameShape(f"Qwen/Qwen2.5-{size}", 32768, source)
        for size, source in {
            "0.5B": _LITGPT, "1.5B": _COPY, "3B": _LITGPT, "7B": _COPY,
            "14B": _FAMILY, "32B": _FAMILY, "72B": _FAMILY,
        }.items()
    },
    **{
        f"Qwen/Qwen3-{size}-{kind}-2507": SameShape(f"Qwen/Qwen3-{size}", 262144, _LITGPT)
        for size in ("30B-A3B", "4B")
        for kind in ("Instruct", "Thinking")
    },
    **{
        f"Qwen/Qwen3-{size}-Base": SameShape(
            f"Qwen/Qwen3-{size}", 32768, _COPY if size == "8B" else _FAMILY)
        for size in ("0.6B", "1.7B", "4B", "8B", "14B", "30B-A3B")
    },
}  # fmt: skip
"""Names by the model that has the same shapes."""


def common_models() -> list[str]:
    """Names that this module has a config of."""
    return list(_ROWS)


def common_config(name: str) -> dict[str, Any] | None:
    """A Hugging Face config of the model, as far as it bears on costs; None if it is not here."""
    row = _ROWS.get(name)
    if row is None:
        return None
    architecture, kind = row.architecture
    return {
        "architectures": [architecture],
        "model_type": kind,
        "num_hidden_layers": row.layers,
        "hidden_size": row.hidden,
        "num_attention_heads": row.heads,
        "num_key_value_heads": row.kv_heads,
        "head_dim": row.head_width,
        "intermediate_size": row.inner,
        "vocab_size": row.vocabulary,
        "max_position_embeddings": row.context,
        "tie_word_embeddings": row.is_tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }


def shape_source(name: str) -> str | None:
    """Where the config or the context of a name was read; None if it is not here."""
    row = SAME_SHAPES.get(name) or _ROWS.get(name)
    return row.source if row else None


def own_values(name: str) -> dict[str, Any]:
    """What a name's config states differently from its base's; nothing for a name of its own."""
    same = SAME_SHAPES.get(name)
    if same is None:
        return {}
    values = {"max_position_embeddings": same.context}
    return values if same.vocabulary is None else values | {"vocab_size": same.vocabulary}
