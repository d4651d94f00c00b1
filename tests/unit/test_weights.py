"""Bytes of weights on one GPU, part by part, counted by hand."""

from typing import Any

import pytest

from dynosim.silicon.catalogue import model_entry
from dynosim.timing.architecture import ModelEntry, model_shape
from dynosim.timing.weights import Gpus, Tensor, gpu_weights, rotary_bytes, vision_parameters

MIB = 1024**2
DENSE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
EXPERTS = DENSE | {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
LATENT = DENSE | {
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 64,
    "v_head_dim": 16,
    "num_key_value_heads": 8,
}
QKV, OUT = 64 * 16 * (8 + 2 * 2), 8 * 16 * 64
MLP = 3 * 64 * 160
ATTENTION = QKV + OUT
NORMS = (2 * 3 + 1) * 64


def weights(
    config: dict[str, Any], number_format: str | None = None, **split: Any
) -> dict[str, int]:
    entry = ModelEntry("m", config, None, "m", is_packaged=False)
    return gpu_weights(entry, model_shape(entry), Gpus(**split), number_format)


def quantised(how: dict[str, Any], config: dict[str, Any] = DENSE) -> dict[str, int]:
    return weights(config | {"quantization_config": how})


def test_a_dense_model_in_16_bits() -> None:
    assert weights(DENSE) == {
        "embeddings": 2 * 1000 * 64,
        "lm_head": 2 * 1000 * 64,
        "norms": 2 * NORMS,
        "rotary": 2 * 512 * 16,
        "vision": 0,
        "attention": 2 * 3 * ATTENTION,
        "mlp": 2 * 3 * MLP,
    }


def test_tied_embeddings_are_kept_once() -> None:
    tied = weights(DENSE | {"tie_word_embeddings": True})
    assert "lm_head" not in tied and tied["embeddings"] == 2 * 1000 * 64


def test_gpus_share_what_can_be_split() -> None:
    """Two KV heads on four GPUs are held twice; norms and the rotary table by everyone."""
    found = weights(DENSE, tensor_parallel=4)
    assert found["embeddings"] == 2 * 250 * 64
    assert found["mlp"] == 2 * 3 * MLP // 4
    assert found["attention"] == 2 * 3 * (64 * 16 * (2 + 2 * 1) + OUT // 4)
    assert found["norms"] == 2 * NORMS and found["rotary"] == 2 * 512 * 16


@pytest.mark.parametrize(
    ("split", "held"),
    [
        ({}, 8),
        ({"tensor_parallel": 2}, 4),
        ({"data_parallel": 4}, 2),
        ({"tensor_parallel": 2, "data_parallel": 4}, 1),
        ({"tensor_parallel": 2, "data_parallel": 4, "expert_parallel": True}, 1),
    ],
)
def test_experts_are_split_over_all_ranks(split: dict[str, Any], held: int) -> None:
    """In parts of each or in whole ones; attention is each rank's own."""
    found = weights(EXPERTS, **split)
    assert found["experts"] == 2 * 3 * held * 3 * 64 * 32
    assert found["router"] == 2 * 3 * 8 * 64
    ranks = split.get("tensor_parallel", 1)
    assert found["shared_experts"] == 2 * 3 * 3 * 64 * 48 // ranks
    assert found["attention"] == 2 * 3 * ATTENTION // ranks


def test_whole_experts_do_not_divide_evenly() -> None:
    found = weights(EXPERTS, data_parallel=3, expert_parallel=True)
    assert found["experts"] == 2 * 3 * 3 * 3 * 64 * 32


def test_latent_attention_repeats_what_comes_before_the_heads() -> None:
    down = 64 * (32 + 64) + 64 * 24
    up = 32 * 8 * (16 + 16) + 24 * 8 * (16 + 64) + 8 * 16 * 64
    assert weights(LATENT)["attention"] == 2 * 3 * (down + up)
    assert weights(LATENT, tensor_parallel=8)["attention"] == 2 * 3 * (down + up // 8)


@pytest.mark.parametrize(
    ("number_format", "element"), [("fp8", 1.0), ("awq", None), ("gptq", None)]
)
def test_on_line_quantisation_leaves_embeddings_head_and_router(
    number_format: str, element: float | None
) -> None:
    plain, found = weights(EXPERTS), weights(EXPERTS, number_format)
    for part in ("embeddings", "lm_head", "norms", "rotary", "router"):
        assert found[part] == plain[part]
    for part in ("attention", "experts", "shared_experts"):
        share = found[part] / plain[part]
        assert share == element / 2 if element else 0.25 < share < 0.3


def ct(ignore: list[str], targets: list[str] | None = None) -> dict[str, Any]:
    """A compressed-tensors checkpoint in fp8."""
    weights = {"num_bits": 8, "type": "float"}
    group = {"targets": targets or ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }


NAMES = [f"model.layers.{n}.self_attn.{p}_proj" for n in range(3) for p in "qkvo"]


@pytest.mark.parametrize(
    ("how", "attention", "mlp"),
    [
        (ct(["lm_head"]), 1, 1),
        (ct(["lm_head", *NAMES]), 2, 1),
        (ct([f"language_model.{name}" for name in NAMES]), 2, 1),
        (ct(["re:.*self_attn.*", "re:.*lm_head"]), 2, 1),
        (ct(["re:.*mlp\\.(gate|up|gate_up|down)_proj.*"]), 1, 2),
        (ct([f"vision_model.{name}" for name in NAMES]), 1, 1),  # another tower's
        (ct([], ["re:.*self_attn.*"]), 1, 2),
        (ct([], NAMES), 1, 2),
        ({"quant_method": "fp8", "modules_to_not_convert": ["self_attn"]}, 2, 1),
        ({"quant_method": "fp8", "modules_to_not_convert": ["gate", "lm_head"]}, 1, 1),
        ({"quant_method": "fp8", "modules_to_not_convert": [
            "model.layers.0*", "model.layers.1.*", "model.layers.2.self_attn*"]}, 2, 5 / 3),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
         2, None),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["*.self_attn.*"]},
         2, 1),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.layers.1.mlp*"]},
         1, 4 / 3),
    ],
)  # fmt: skip
def test_what_a_checkpoint_leaves_in_16_bits(
    how: dict[str, Any], attention: float, mlp: float | None
) -> None:
    found = quantised(how)
    assert found["attention"] == pytest.approx(attention * 3 * ATTENTION)
    assert mlp is None or found["mlp"] == pytest.approx(mlp * 3 * MLP)
    assert found["embeddings"] == found["lm_head"] == 2 * 1000 * 64


def test_formats_may_differ_by_module() -> None:
    layers = {f"model.layers.{n}.self_attn.{p}_proj": {"quant_algo": "FP8"}
              for n in range(3) for p in "qkvo"}  # fmt: skip
    layers |= {f"model.layers.{n}.mlp.experts": {"quant_algo": "NVFP4"} for n in range(3)}
    how = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    found = quantised(how, EXPERTS)
    assert found["attention"] == 3 * ATTENTION
    assert found["experts"] == 3 * 8 * 3 * 64 * 32 * 9 // 16
    assert found["shared_experts"] == 2 * 3 * 3 * 64 * 48


def test_scouts_ignore_list() -> None:
    """449 modules by name: attention, routers and the vision tower, but not the experts."""
    names = [f"vision_model.model.layers.{n}.mlp.fc1" for n in range(34)]
    for n in range(48):
        layer = f"language_model.model.layers.{n}"
        names += [f"{layer}.self_attn.{p}_proj" for p in "qkvo"] + [f"{layer}.feed_forward.router"]
    scout = model_entry("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    config = scout.config | {"quantization_config": ct([*names, "language_model.lm_head"])}
    plain, found = weights(scout.config), weights(config)
    for part in ("attention", "router", "embeddings", "lm_head", "rotary"):
        assert found[part] == plain[part]
    for part in ("experts", "shared_experts"):
        assert found[part] == plain[part] // 2
    assert found["rotary"] == 10_485_760 * 128 * 2


def test_a_vision_tower_is_kept_beside_the_decoder() -> None:
    vision = {"hidden_size": 32, "depth": 5, "intermediate_size": 100, "patch_size": 14,
              "temporal_patch_size": 2, "spatial_merge_size": 2}  # fmt: skip
    tower = 5 * (4 * 32 * 32 + 2 * 32 * 100) + 14 * 14 * 3 * 2 * 32
    merger = 128 * 128 + 128 * 64
    assert vision_parameters({"vision_config": vision}, 64) == tower + merger
    assert weights(DENSE | {"vision_config": vision})["vision"] == 2 * (tower + merger)
    assert vision_parameters({}, 64) == 0


def test_a_published_vision_tower() -> None:
    """Qwen3-VL-8B has 8.77 billion parameters, of which the decoder's are Qwen3-8B's 8.19."""
    entry = model_entry("Qwen/Qwen3-VL-8B-Instruct")
    assert vision_parameters(entry.config, 4096) == pytest.approx(0.576e9, rel=0.01)


def test_partial_rotation_needs_a_smaller_table() -> None:
    entry = ModelEntry("m", DENSE | {"partial_rotary_factor": 0.5}, None, "m", is_packaged=False)
    assert rotary_bytes(entry, model_shape(entry)) == 2 * 512 * 8


@pytest.mark.parametrize(
    ("size_mib", "allocated_mib"),
    [
        (1, 1),
        (9.5, 9.5),
        (11, 12),
        (10.5, 10.5),
        (259, 260),
        (129.5, 130),
        (64.75, 64.75),
        (64, 64),
    ],
)
def test_allocations_are_rounded(size_mib: float, allocated_mib: float) -> None:
    assert Tensor("x", int(size_mib * MIB), 1).bytes == int(allocated_mib * MIB)


def test_experts_beside_a_plain_block() -> None:
    """Gemma 4: the checkpoint's list has the plain block `mlp`, but not the experts."""
    entry = model_entry("nvidia/Gemma-4-26B-A4B-NVFP4")
    shape = model_shape(entry)
    found = gpu_weights(entry, shape, Gpus(), None)
    assert found["mlp"] == pytest.approx(2 * 30 * 3 * 2816 * 2112, rel=0.03)
    assert found["experts"] == pytest.approx(30 * 128 * 3 * 2816 * 704 * 0.5625, rel=0.01)
