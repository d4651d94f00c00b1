"""Configs of common dense models that aiconfigurator-core does not ship, as far as costs need them.

Source: each model's config.json on the Hugging Face hub. Models tuned from these have the same
shapes, see `SAME_SHAPES`.
"""

from typing import Any

_LLAMA = ("LlamaForCausalLM", "llama")
_MISTRAL = ("MistralForCausalLM", "mistral")
_QWEN2 = ("Qwen2ForCausalLM", "qwen2")
_QWEN3 = ("Qwen3ForCausalLM", "qwen3")

# architecture, layers, hidden, heads, KV heads, head width, feed-forward width, vocabulary,
# context, whether the embeddings are tied
_Row = tuple[tuple[str, str], int, int, int, int, int, int, int, int, bool]

_ROWS: dict[str, _Row] = {
    "meta-llama/Llama-2-7b-hf": (
        _LLAMA, 32, 4096, 32, 32, 128, 11008, 32000, 4096, False),
    "meta-llama/Llama-2-13b-hf": (
        _LLAMA, 40, 5120, 40, 40, 128, 13824, 32000, 4096, False),
    "meta-llama/Llama-2-70b-hf": (
        _LLAMA, 80, 8192, 64, 8, 128, 28672, 32000, 4096, False),
    "meta-llama/Meta-Llama-3-8B": (
        _LLAMA, 32, 4096, 32, 8, 128, 14336, 128256, 8192, False),
    "meta-llama/Meta-Llama-3-70B": (
        _LLAMA, 80, 8192, 64, 8, 128, 28672, 128256, 8192, False),
    "meta-llama/Llama-3.2-1B": (
        _LLAMA, 16, 2048, 32, 8, 64, 8192, 128256, 131072, True),
    "meta-llama/Llama-3.2-3B": (
        _LLAMA, 28, 3072, 24, 8, 128, 8192, 128256, 131072, True),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        _LLAMA, 22, 2048, 32, 4, 64, 5632, 32000, 2048, False),
    "mistralai/Mistral-7B-v0.3": (
        _MISTRAL, 32, 4096, 32, 8, 128, 14336, 32768, 32768, False),
    "mistralai/Mistral-Nemo-Base-2407": (
        _MISTRAL, 40, 5120, 32, 8, 128, 14336, 131072, 131072, False),
    "mistralai/Mistral-Small-24B-Base-2501": (
        _MISTRAL, 40, 5120, 32, 8, 128, 32768, 131072, 32768, False),
    "Qwen/Qwen2.5-0.5B": (
        _QWEN2, 24, 896, 14, 2, 64, 4864, 151936, 32768, True),
    "Qwen/Qwen2.5-1.5B": (
        _QWEN2, 28, 1536, 12, 2, 128, 8960, 151936, 131072, True),
    "Qwen/Qwen2.5-3B": (
        _QWEN2, 36, 2048, 16, 2, 128, 11008, 151936, 32768, True),
    "Qwen/Qwen2.5-7B": (
        _QWEN2, 28, 3584, 28, 4, 128, 18944, 152064, 131072, False),
    "Qwen/Qwen2.5-14B": (
        _QWEN2, 48, 5120, 40, 8, 128, 13824, 152064, 131072, False),
    "Qwen/Qwen2.5-32B": (
        _QWEN2, 64, 5120, 40, 8, 128, 27648, 152064, 131072, False),
    "Qwen/Qwen2.5-72B": (
        _QWEN2, 80, 8192, 64, 8, 128, 29568, 152064, 131072, False),
    "Qwen/Qwen3-4B": (
        _QWEN3, 36, 2560, 32, 8, 128, 9728, 151936, 40960, True),
    "Qwen/Qwen3-14B": (
        _QWEN3, 40, 5120, 40, 8, 128, 17408, 151936, 40960, False),
}  # fmt: skip

SAME_SHAPES = {
    "meta-llama/Llama-2-7b-chat-hf": "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-13b-chat-hf": "meta-llama/Llama-2-13b-hf",
    "meta-llama/Llama-2-70b-chat-hf": "meta-llama/Llama-2-70b-hf",
    "meta-llama/Meta-Llama-3-8B-Instruct": "meta-llama/Meta-Llama-3-8B",
    "meta-llama/Meta-Llama-3-70B-Instruct": "meta-llama/Meta-Llama-3-70B",
    "meta-llama/Llama-3.2-1B-Instruct": "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B-Instruct": "meta-llama/Llama-3.2-3B",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistralai/Mistral-7B-v0.3",
    "mistralai/Mistral-Nemo-Instruct-2407": "mistralai/Mistral-Nemo-Base-2407",
    "mistralai/Mistral-Small-24B-Instruct-2501": "mistralai/Mistral-Small-24B-Base-2501",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "meta-llama/Meta-Llama-3.1-8B",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": "meta-llama/Meta-Llama-3.1-70B",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": "Qwen/Qwen2.5-14B",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": "Qwen/Qwen2.5-32B",
    "Qwen/QwQ-32B": "Qwen/Qwen2.5-32B",
    **{
        f"Qwen/Qwen2.5-{size}-Instruct": f"Qwen/Qwen2.5-{size}"
        for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
    },
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-30B-A3B-Thinking-2507": "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-4B-Instruct-2507": "Qwen/Qwen3-4B",
    "Qwen/Qwen3-4B-Thinking-2507": "Qwen/Qwen3-4B",
    **{
        f"Qwen/Qwen3-{size}-Base": f"Qwen/Qwen3-{size}"
        for size in ("0.6B", "1.7B", "4B", "8B", "14B", "30B-A3B")
    },
}
"""Names by the model that has the same shapes (contexts may be longer)."""


def common_models() -> list[str]:
    """Names that this module has a config of."""
    return list(_ROWS)


def common_config(name: str) -> dict[str, Any] | None:
    """A Hugging Face config of the model, as far as it bears on costs; None if it is not here."""
    row = _ROWS.get(name)
    if row is None:
        return None
    (architecture, kind), layers, hidden, heads, kv_heads, width, inner, vocabulary = row[:8]
    return {
        "architectures": [architecture],
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": row[8],
        "tie_word_embeddings": row[9],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
