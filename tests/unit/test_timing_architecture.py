"""Shapes of models from their configs: every field, format and obstacle."""

from dataclasses import asdict
from typing import Any

import pytest
from model_configs import DENSE, EXPERTS, LATENT, shape

from dynosim.errors import ConfigError
from dynosim.timing.architecture import require_divisible


def test_every_field_of_a_dense_model_is_read() -> None:
    assert asdict(shape(DENSE)) == {
        "layers": 3,
        "hidden": 64,
        "heads": 8,
        "kv_heads": 2,
        "head_dim": 8,  # 64 / 8
        "latent_width": 0,
        "rope_width": 0,
        "query_rank": 0,
        "value_head_dim": 0,
        "vocabulary": 1000,
        "is_tied": False,
        "dense_layers": 3,
        "intermediate": 160,
        "experts": 0,
        "experts_per_token": 0,
        "expert_intermediate": 0,
        "shared_intermediate": 0,
        "max_context": 4096,
        "quantisation": None,
        "obstacle": None,
        "has_windows": False,
    }


def test_every_field_of_a_latent_model_with_experts_is_read() -> None:
    found = asdict(shape(LATENT))
    assert found == {
        "layers": 5,
        "hidden": 512,
        "heads": 4,
        "kv_heads": 4,
        "head_dim": 32,  # the part without rotation
        "latent_width": 96 + 64,  # compressed entry and its rotary part
        "rope_width": 64,
        "query_rank": 48,
        "value_head_dim": 40,
        "vocabulary": 700,
        "is_tied": False,
        "dense_layers": 2,
        "intermediate": 100,
        "experts": 8,
        "experts_per_token": 2,
        "expert_intermediate": 20,
        "shared_intermediate": 3 * 20,
        "max_context": None,
        "quantisation": None,
        "obstacle": None,
        "has_windows": False,
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DENSE | {"head_dim": 32}, {"head_dim": 32}),
        (DENSE | {"num_key_value_heads": None}, {"kv_heads": 8}),  # each head its own: MHA
        (DENSE | {"num_key_value_heads": 1}, {"kv_heads": 1}),  # MQA
        (DENSE | {"tie_word_embeddings": True}, {"is_tied": True}),
        (DENSE | {"intermediate_size": None}, {"intermediate": 4 * 64}),
        (DENSE | {"intermediate_size": [80, 320, 160]}, {"intermediate": 320}),  # the widest
        (DENSE | {"max_position_embeddings": None}, {"max_context": None}),
        ({"text_config": DENSE, "vocab_size": 5}, {"layers": 3, "vocabulary": 1000}),
        (
            {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 9},
            {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 128, "kv_heads": 4},
        ),
        (DENSE | {"moe_intermediate_size": 24}, {"expert_intermediate": 0, "dense_layers": 3}),
        (EXPERTS, {"dense_layers": 0, "experts": 16, "experts_per_token": 4}),
        (EXPERTS, {"expert_intermediate": 24, "shared_intermediate": 0}),
        (EXPERTS | {"moe_intermediate_size": None}, {"expert_intermediate": 160}),
        (EXPERTS | {"mlp_only_layers": [0, 2]}, {"dense_layers": 2}),
        (EXPERTS | {"first_k_dense_replace": 1}, {"dense_layers": 1}),
        (EXPERTS | {"first_k_dense_replace": 9}, {"dense_layers": 3}),  # no more than there are
        (EXPERTS | {"interleave_moe_layer_step": 1}, {"dense_layers": 0}),
        (EXPERTS | {"interleave_moe_layer_step": 2}, {"dense_layers": 2}),  # of 3, one has experts
        (EXPERTS | {"shared_expert_intermediate_size": 72}, {"shared_intermediate": 72}),
        (EXPERTS | {"n_shared_experts": 2}, {"shared_intermediate": 48}),
        (
            EXPERTS | {"n_shared_experts": 2, "shared_expert_intermediate_size": 72},
            {"shared_intermediate": 72},  # all of them together
        ),
        (EXPERTS | {"model_type": "llama4_text"}, {"shared_intermediate": 24}),
        (EXPERTS | {"num_experts": None, "n_routed_experts": 6}, {"experts": 6}),
        (EXPERTS | {"num_experts": None, "num_local_experts": 7}, {"experts": 7}),
        (EXPERTS | {"num_experts_per_tok": None, "moe_topk": 3}, {"experts_per_token": 3}),
        (EXPERTS | {"num_experts_per_tok": None, "top_k_experts": 5}, {"experts_per_token": 5}),
        (
            EXPERTS | {"model_type": "llama4_text", "intermediate_size_mlp": 200},
            {"intermediate": 200, "expert_intermediate": 24},
        ),
        (LATENT | {"q_lora_rank": None}, {"query_rank": 0}),
        (LATENT | {"qk_rope_head_dim": 32}, {"latent_width": 128, "rope_width": 32}),  # MiniCPM3
        (LATENT | {"qk_rope_head_dim": None}, {"latent_width": 160, "rope_width": 64}),
        (DENSE | {"layers_block_type": ["a", "b"]}, {"layers": 2}),
    ],
)
def test_what_families_call_by_other_names(
    config: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = asdict(shape(config))
    assert {name: found[name] for name in expected} == expected


FP8 = {"quant_method": "fp8"}


@pytest.mark.parametrize(
    ("config", "file", "expected"),
    [
        ({}, None, None),
        ({"quantization_config": FP8}, None, "fp8"),
        ({"quantization_config": FP8 | {"weight_block_size": [128, 128]}}, None, "fp8_block"),
        ({"quantization_config": {"quant_method": "MXFP4"}}, None, "mxfp4"),
        ({"quantization_config": {"quant_algo": "FP8"}}, None, "fp8"),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
            None, "nvfp4",
        ),
        ({"quantization_config": {"quant_method": "modelopt"}}, None, "fp8"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {
                "a": {"weights": {"num_bits": 8}}, "b": {"weights": {"num_bits": 4}}}}},
            None, "int4",
        ),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, None, "fp8"),
        ({}, {"quantization": {"quant_algo": "FP8"}}, "fp8"),
        ({}, {"quantization": {}}, None),
        ({}, {}, None),
        ({"quantization_config": {}}, {"quantization": {"quant_algo": "NVFP4"}}, "nvfp4"),
        ({"quantization_config": FP8}, {"quantization": {"quant_algo": "NVFP4"}}, "fp8"),
    ],
)  # fmt: skip
def test_format_of_a_checkpoint(
    config: dict[str, Any], file: dict[str, Any] | None, expected: str | None
) -> None:
    assert shape(DENSE | config, quantisation=file).quantisation == expected
    nested = {"text_config": DENSE | config}
    assert shape(nested, quantisation=file).quantisation == expected


_EIGHT: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "channel"}
_FOUR: dict[str, Any] = {"num_bits": 4, "type": "float", "group_size": 16}


@pytest.mark.parametrize(
    ("weights", "activations", "expected"),
    [
        (_EIGHT, _EIGHT, "fp8"),
        (_EIGHT | {"strategy": "block"}, _EIGHT, "fp8_block"),
        (_EIGHT, None, "w8a16"),
        (_EIGHT | {"type": "int"}, _EIGHT | {"type": "int"}, "int8"),
        (_EIGHT | {"type": "int"}, None, "w8a16"),
        ({"num_bits": 4, "type": "int", "group_size": 128}, None, "int4"),
        ({"num_bits": 4, "type": "int"}, _EIGHT, "w4afp8"),
        (_FOUR, _FOUR, "nvfp4"),
        (_FOUR, None, "nvfp4_wo"),
        (_FOUR | {"group_size": 32}, _FOUR, "mxfp4"),
    ],
)
def test_format_of_compressed_tensors(
    weights: dict[str, Any], activations: dict[str, Any] | None, expected: str
) -> None:
    group = {"weights": weights, "input_activations": activations, "targets": ["Linear"]}
    stated = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    assert shape(DENSE | {"quantization_config": stated}).quantisation == expected


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "gptq", "bits": 8}, "w8a16"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
    ],
)
def test_format_of_other_methods(stated: dict[str, Any], expected: str) -> None:
    assert shape(DENSE | {"quantization_config": stated}).quantisation == expected


@pytest.mark.parametrize(
    ("config", "obstacle"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "it has recurrent layers"),
        ({"hybrid_override_pattern": "M-M*"}, "it has recurrent layers"),
        ({"linear_attn_config": {"x": 1}}, "it has recurrent layers"),
        ({"layers_block_type": ["mamba"]}, "it has recurrent layers"),
        ({"index_topk": 2048}, "its attention is sparse"),
        ({"sparse_attention_config": {"x": 1}}, "its attention is sparse"),
        ({"compress_ratios": [1, 4]}, "its cache is compressed"),
        ({"compress_ratio": 4}, "its cache is compressed"),
        ({"block_configs": [{}]}, "its layers differ in shape"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"index_topk": None}, None),
    ],
)
def test_what_formulas_do_not_cover(config: dict[str, Any], obstacle: str | None) -> None:
    found = shape(DENSE | config)
    assert found.obstacle == obstacle
    assert found.is_recurrent is (obstacle == "it has recurrent layers")


@pytest.mark.parametrize(
    ("config", "has_windows"),
    [
        ({"attention_chunk_size": 8192}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, True),
        ({"layer_types": ["chunked_attention"]}, True),
        ({"layer_types": ["full_attention"], "sliding_window": 128}, False),
        ({"sliding_window": 4096}, True),
        ({"sliding_window": 4096, "use_sliding_window": False}, False),
        ({"sliding_window": None, "use_sliding_window": True}, False),
    ],
)
def test_windows_of_attention_are_noticed(config: dict[str, Any], has_windows: bool) -> None:
    assert shape(DENSE | config).has_windows is has_windows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads: missing or 0"),
        ({"hidden_size": None}, "hidden_size: missing or 0"),
        ({"num_hidden_layers": None}, "num_hidden_layers: missing or 0"),
        ({"vocab_size": None}, "vocab_size: missing or 0"),
        ({"vocab_size": 1.5}, "vocab_size: expected a whole number, got 1.5"),
        ({"vocab_size": True}, "vocab_size: expected a whole number, got True"),
        ({"num_key_value_heads": -1}, "num_key_value_heads: expected a whole number, got -1"),
    ],
)
def test_a_count_that_is_none_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shape(DENSE | changes)
    assert str(caught.value) == f"model: m/config.json: {message}"


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4, 8])
def test_ranks_that_divide_the_heads_are_taken(tensor_parallel: int) -> None:
    require_divisible(shape(DENSE), tensor_parallel)


@pytest.mark.parametrize("tensor_parallel", [3, 5, 16])
def test_ranks_that_do_not_divide_the_heads_are_refused(tensor_parallel: int) -> None:
    with pytest.raises(ConfigError) as caught:
        require_divisible(shape(DENSE), tensor_parallel)
    assert str(caught.value) == (
        f"engine.tensor_parallel: {tensor_parallel} does not divide the model's 8 attention heads"
        " (use 1, 2, 4, 8)"
    )
