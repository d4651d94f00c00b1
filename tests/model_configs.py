"""Configs of small made-up models of three families, and their shapes."""

from typing import Any

from dynosim.timing.architecture import ModelEntry, ModelShape, model_shape

DENSE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
EXPERTS = DENSE | {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 24}
LATENT: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 5,
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 96,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 40,
    "first_k_dense_replace": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "intermediate_size": 100,
    "vocab_size": 700,
}


def shape(config: dict[str, Any], **files: Any) -> ModelShape:
    entry = ModelEntry("m", config, files.get("quantisation"), "m/config.json", False)
    return model_shape(entry)
