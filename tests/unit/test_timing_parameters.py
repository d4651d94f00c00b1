"""Parameters and bytes of models: small ones by hand, published ones to the last weight."""

from dataclasses import replace

import pytest
from model_configs import DENSE, EXPERTS, LATENT, shape

from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.shapes import common_models
from dynosim.timing.architecture import ModelShape, model_shape
from dynosim.timing.number_formats import compute_format, weight_element_bytes


def test_parameters_of_a_dense_model_by_hand() -> None:
    dense = shape(DENSE)
    query, keys_values, output = 64 * 64, 2 * (64 * 16), 64 * 64  # 8 heads of 8, 2 KV heads of 8
    assert dense.attention_parameters == query + keys_values + output == 10_240
    feed_forward = 3 * 64 * 160
    assert dense.plain_parameters == 3 * (10_240 + feed_forward)
    assert dense.embedding_parameters == 2 * 1000 * 64
    assert dense.parameters == 3 * (10_240 + feed_forward) + 2 * 1000 * 64
    assert replace(dense, is_tied=True).embedding_parameters == 1000 * 64
    # 64 head widths of a model whose heads are wider than its hidden width.
    assert replace(dense, head_dim=32).attention_parameters == 64 * 256 + 2 * 64 * 64 + 256 * 64


def test_parameters_of_a_model_with_experts_by_hand() -> None:
    found = shape(EXPERTS | {"mlp_only_layers": [0], "n_shared_experts": 2})
    assert (found.dense_layers, found.expert_layers) == (1, 2)
    assert found.expert_parameters == 3 * 64 * 24
    shared, router = 3 * 64 * (2 * 24), 64 * 16
    plain = 3 * 10_240 + 1 * (3 * 64 * 160) + 2 * (shared + router)
    assert found.plain_parameters == plain
    assert found.parameters == plain + 2 * 16 * (3 * 64 * 24) + 2 * 1000 * 64


def test_parameters_of_latent_attention_by_hand() -> None:
    query_down, query_up = 512 * 48, 48 * 4 * (32 + 64)
    down = 512 * (96 + 64)
    up = 96 * 4 * (32 + 40)  # to keys without rotation, and values
    output = 4 * 40 * 512
    found = shape(LATENT)
    assert found.latent_rank == 96
    assert found.attention_parameters == query_down + query_up + down + up + output
    full_query = 512 * 4 * (32 + 64)
    whole = shape(LATENT | {"q_lora_rank": None})
    assert whole.attention_parameters == full_query + down + up + output


def norms(found: ModelShape) -> int:
    """Two in each layer and the last one: counted by makers, too few to matter here."""
    return (2 * found.layers + 1) * found.hidden


PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Meta-Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "01-ai/Yi-34B": 34_388_917_248,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
}
"""Sums over the tensors of the published checkpoints."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    entry = model_entry(name)
    found = model_shape(entry)
    small = norms(found)
    if entry.config["model_type"] == "qwen2":  # biases of queries, keys and values
        small += found.layers * found.head_dim * (found.heads + 2 * found.kv_heads)
    if entry.config["model_type"].startswith("qwen3"):  # norms of a head's query and key
        small += found.layers * 2 * found.head_dim
    assert found.parameters + small == PUBLISHED[name]


def test_every_shape_that_we_keep_ourselves_is_counted() -> None:
    assert set(common_models()) <= set(PUBLISHED)


def test_parameters_of_deepseek_v3_are_the_published_ones() -> None:
    found = model_shape(model_entry("deepseek-ai/DeepSeek-V3"))
    latent_norms = 61 * (1536 + 512)
    router_biases = 58 * 256
    assert found.parameters + norms(found) + latent_norms + router_biases == 671_026_419_200


@pytest.mark.parametrize(
    ("name", "layers", "experts", "published"),
    [
        ("openai/gpt-oss-20b", 24, 32, 20_914_757_184),
        ("openai/gpt-oss-120b", 36, 128, 116_829_156_672),
    ],
)
def test_parameters_of_gpt_oss_are_the_published_ones(
    name: str, layers: int, experts: int, published: int
) -> None:
    found = model_shape(model_entry(name))
    sinks, router_biases = 64, experts
    attention_biases = 64 * (64 + 2 * 8) + 2880
    expert_biases = experts * (2 * 2880 + 2880)
    small = layers * (sinks + router_biases + attention_biases + expert_biases)
    assert found.parameters + norms(found) + small == published


def test_parameters_of_llama_4_by_hand() -> None:
    found = model_shape(model_entry("meta-llama/Llama-4-Maverick-17B-128E-Instruct"))
    attention = 5120 * 128 * (40 + 2 * 8) + 40 * 128 * 5120
    dense = 3 * 5120 * 16_384
    expert = 3 * 5120 * 8192
    with_experts = (128 + 1) * expert + 5120 * 128  # one shared, and the router
    assert found.parameters == 48 * attention + 24 * dense + 24 * with_experts + 2 * 202_048 * 5120


@pytest.mark.parametrize(
    ("changes", "tensor_parallel", "element_bytes", "expected"),
    [
        ({}, 1, 2.0, 3 * 2 * 2 * 8 * 2),  # layers, keys and values, KV heads, width, bytes
        ({}, 1, 1.0, 3 * 2 * 2 * 8 * 1),
        ({}, 2, 2.0, 3 * 2 * 1 * 8 * 2),
        ({}, 4, 2.0, 3 * 2 * 1 * 8 * 2),  # a head is not cut: two ranks hold the same
        ({"kv_heads": 8}, 4, 2.0, 3 * 2 * 2 * 8 * 2),
        ({"kv_heads": 5}, 2, 2.0, 3 * 2 * 3 * 8 * 2),
        ({"latent_width": 160}, 1, 2.0, 3 * 160 * 2),
        ({"latent_width": 160}, 8, 2.0, 3 * 160 * 2),  # every rank holds all of it
        ({"latent_width": 160}, 8, 1.0, 3 * 160),
    ],
)
def test_cache_bytes_of_a_token(
    changes: dict[str, int], tensor_parallel: int, element_bytes: float, expected: int
) -> None:
    found = replace(shape(DENSE), **changes)
    assert found.kv_bytes_per_token(tensor_parallel, element_bytes) == expected


@pytest.mark.parametrize(
    ("name", "element_bytes"),
    [
        (None, 2.0),
        ("fp8", 1.0),
        ("FP8_BLOCK", 1.0),
        ("int8", 1.0),
        ("nvfp4", 0.5625),  # 4 bits and 8 bits of scale for each 16 weights
        ("nvfp4_wo", 0.5625),
        ("MXFP4", 0.53125),  # 8 bits of scale for each 32
        ("w4a16_mxfp4", 0.53125),
        ("int4", 0.515625),  # 16 bits of scale for each 128
        ("gptq", 0.515625),
        ("gptq_marlin", 0.515625),
        ("w4a16", 0.515625),
        ("w4afp8", 0.515625),
        ("awq", 0.51953125),  # and 4 bits of zero point
        ("awq_marlin", 0.51953125),
        ("int8_wo", 1.0),
        ("w8a16", 1.0),
        ("sq", 1.0),
        ("bfloat16", 2.0),
    ],
)
def test_bytes_of_a_weight_by_format(name: str | None, element_bytes: float) -> None:
    assert weight_element_bytes(name) == element_bytes


@pytest.mark.parametrize(
    ("name", "computing"),
    [
        (None, "bf16"),
        ("bfloat16", "bf16"),
        ("fp8", "fp8"),
        ("fp8_block", "fp8"),
        ("INT8", "int8"),
        ("sq", "int8"),
        ("w8a8", "int8"),
        ("w8a16", "bf16"),
        ("int8_wo", "bf16"),
        ("awq", "bf16"),
        ("gptq_marlin", "bf16"),
        ("int4", "bf16"),
        ("int4_wo", "bf16"),
        ("w4afp8", "fp8"),
        ("nvfp4", "fp4"),
        ("nvfp4_wo", "bf16"),
        ("w4a16_nvfp4", "bf16"),
        ("mxfp4", "bf16"),
        ("w4a16_mxfp4_cutlass", "bf16"),
        ("w4a8_mxfp4_mxfp8", "fp8"),
    ],
)
def test_what_products_with_a_format_compute_in(name: str | None, computing: str) -> None:
    assert compute_format(name) == computing
