"""KV blocks by hand: every part of a GPU's memory, and the limits of what fits.

A GPU keeps weights, activations (18 hidden widths in 16 bits for each token of the largest step,
split over the ranks), 3.5 GiB for the runtime and its graphs, and buffers for its peers. What is
left of the memory fraction holds KV blocks.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from timing_support import engine

from dynosim.errors import ConfigError, InfeasibleError
from dynosim.silicon import Capacity, resolve_num_gpu_blocks

GIB = 1024**3
RUNTIME_B = 3_758_096_384  # 3.5 GiB
TWO_GPUS_B = 342 * 1024 * 1024
MORE_GPUS_B = 392 * 1024 * 1024
FIGURES = "memory_gb_per_s: 1\nbf16_tflops: 1\nfp8_tflops: 1\nlink_gb_per_s: 1\n"


@pytest.fixture
def gpu(tmp_path: Path) -> Any:
    """Data sheets of GPUs that nothing is known of but their memory."""

    def of(memory_gib: float) -> str:
        path = tmp_path / "gpu.yaml"
        path.write_text(f"memory_gib: {memory_gib}\n{FIGURES}")
        return str(path)

    return of


def blocks_of(**keys: Any) -> Capacity:
    model, hardware = keys.pop("model"), keys.pop("hardware")
    return resolve_num_gpu_blocks(engine(**keys), model=model, hardware=hardware)


LLAMA_8B = "meta-llama/Meta-Llama-3-8B"
LLAMA_8B_MATRICES = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
LLAMA_8B_EMBEDDINGS = 2 * 128_256 * 4096


@pytest.mark.parametrize(
    ("ranks", "buffers_b"), [(1, 0), (2, TWO_GPUS_B), (4, MORE_GPUS_B), (8, MORE_GPUS_B)]
)
@pytest.mark.parametrize(
    ("weights", "cache", "weight_b", "element_b"),
    [(None, "auto", 2, 2), (None, None, 2, 2), ("fp8", "fp8", 1, 1), ("fp8", "fp8_e4m3", 1, 1)],
)
def test_a_dense_models_memory(
    gpu: Any,
    ranks: int,
    buffers_b: int,
    weights: str | None,
    cache: str | None,
    weight_b: int,
    element_b: int,
) -> None:
    capacity = blocks_of(
        model=LLAMA_8B,
        hardware=gpu(24),
        tensor_parallel=ranks,
        quantization=weights,
        kv_cache_dtype=cache,
        max_num_batched_tokens=4096,
    )
    weights_b = (weight_b * LLAMA_8B_MATRICES + 2 * LLAMA_8B_EMBEDDINGS) // ranks
    activations_b = 4096 * 4096 * 2 * 18 // ranks
    budget_b = int(24 * GIB * 0.9)
    cache_b = budget_b - weights_b - activations_b - RUNTIME_B - buffers_b
    token_b = 32 * 2 * (8 // ranks) * 128 * element_b
    assert capacity == Capacity(
        num_gpu_blocks=cache_b // (token_b * 16),
        source="estimated",
        breakdown={
            "gpu_bytes": 24 * GIB,
            "kv_bytes_per_token": token_b,
            "weights_bytes": weights_b,
            "activations_bytes": activations_b,
            "runtime_overhead_bytes": RUNTIME_B,
            "comm_overhead_bytes": buffers_b,
            "kv_cache_bytes": cache_b,
        },
    )
    assert capacity.usable_blocks == capacity.num_gpu_blocks - 1


@pytest.mark.parametrize(("ranks", "buffers_b"), [(1, 0), (2, TWO_GPUS_B)])
def test_a_model_with_experts_in_fp8(gpu: Any, ranks: int, buffers_b: int) -> None:
    capacity = blocks_of(
        model="Qwen/Qwen3-30B-A3B",
        hardware=gpu(48),
        tensor_parallel=ranks,
        quantization="fp8",
        block_size=32,
        gpu_memory_utilization=0.85,
    )
    attention = 2 * 2048 * 4096 + 2 * 2048 * 512
    experts = 128 * 3 * 2048 * 768 + 2048 * 128  # and the router
    embeddings = 2 * 151_936 * 2048
    weights_b = (48 * (attention + experts) + 2 * embeddings) // ranks
    activations_b = 8192 * 2048 * 2 * 18 // ranks
    token_b = 48 * 2 * (4 // ranks) * 128 * 2
    cache_b = int(48 * GIB * 0.85) - weights_b - activations_b - RUNTIME_B - buffers_b
    assert capacity.breakdown == {
        "gpu_bytes": 48 * GIB,
        "kv_bytes_per_token": token_b,
        "weights_bytes": weights_b,
        "activations_bytes": activations_b,
        "runtime_overhead_bytes": RUNTIME_B,
        "comm_overhead_bytes": buffers_b,
        "kv_cache_bytes": cache_b,
    }
    assert capacity.num_gpu_blocks == cache_b // (token_b * 32)


@pytest.mark.parametrize(
    ("hardware", "gpu_bytes"), [("h200_sxm", 141 * 2**30), ("l40s", 48_305_799_168)]
)
@pytest.mark.parametrize(("ranks", "buffers_b"), [(2, TWO_GPUS_B), (4, MORE_GPUS_B)])
def test_the_librarys_parts_make_the_cache_as_ours_do(
    tmp_path: Path, hardware: str, gpu_bytes: int, ranks: int, buffers_b: int
) -> None:
    capacity = resolve_num_gpu_blocks(
        engine(tensor_parallel=ranks, gpu_memory_utilization=0.93),
        model="Qwen/Qwen3-32B",
        hardware=hardware,
        cache_dir=tmp_path,
    )
    found = capacity.breakdown
    assert capacity.source == "derived"
    assert found["gpu_bytes"] == gpu_bytes
    assert found["kv_bytes_per_token"] == 64 * 2 * (8 // ranks) * 128 * 2
    assert (found["runtime_overhead_bytes"], found["comm_overhead_bytes"]) == (RUNTIME_B, buffers_b)
    assert found["kv_cache_bytes"] == (
        int(gpu_bytes * 0.93)
        - found["weights_bytes"]
        - found["activations_bytes"]
        - RUNTIME_B
        - buffers_b
    )
    assert capacity.num_gpu_blocks == found["kv_cache_bytes"] // (found["kv_bytes_per_token"] * 16)


SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}
BLOCK_B = 16 * 2 * 2 * 64 * 2  # tokens, layers, keys and values, width, bytes


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    return str(path)


def with_room_for(blocks: float, small: str, gpu: Any, **keys: Any) -> Capacity:
    """The capacity of a GPU that has just so much room for the cache."""
    weights_b = 2 * (2 * (4 * 64 * 64 + 3 * 64 * 128) + 2 * 100 * 64)
    activations_b = 64 * 64 * 2 * 18
    memory_b = weights_b + activations_b + RUNTIME_B + blocks * BLOCK_B
    return blocks_of(
        model=small,
        hardware=gpu(memory_b / GIB),
        gpu_memory_utilization=1.0,
        max_num_batched_tokens=64,
        **keys,
    )


@pytest.mark.parametrize(("room", "blocks"), [(2, 2), (2.999, 2), (3, 3), (100.5, 100)])
def test_part_of_a_block_is_no_block(small: str, gpu: Any, room: float, blocks: int) -> None:
    assert with_room_for(room, small, gpu).num_gpu_blocks == blocks


@pytest.mark.parametrize("room", [-50, 0, 1, 1.999])
def test_a_model_without_room_for_a_usable_block_does_not_fit(
    small: str, gpu: Any, room: float
) -> None:
    # One block is a placeholder: two are the least.
    with pytest.raises(InfeasibleError, match="does not fit") as caught:
        with_room_for(room, small, gpu)
    assert "0.0 GiB of weights and 3.5 GiB of activations and buffers in 3.5 GiB" in str(
        caught.value
    )
    assert "(100% of 3.5 GiB); raise engine.tensor_parallel above 1" in str(caught.value)


@pytest.mark.parametrize(("length", "fits"), [(143, True), (144, True), (145, False)])
def test_one_sequence_must_fit_the_usable_blocks_that_were_found(
    small: str, gpu: Any, length: int, fits: bool
) -> None:
    if fits:
        assert with_room_for(10, small, gpu, max_model_len=length).usable_blocks == 9
    else:
        with pytest.raises(InfeasibleError, match="hold 144 tokens, fewer than one request of"):
            with_room_for(10, small, gpu, max_model_len=length)


@pytest.mark.parametrize(("length", "fits"), [(143, True), (144, True), (145, False)])
def test_one_sequence_must_fit_the_usable_blocks_that_were_given(length: int, fits: bool) -> None:
    settings = engine(num_gpu_blocks=10, max_model_len=length)
    if fits:
        assert resolve_num_gpu_blocks(settings, model=None, hardware=None) == Capacity(
            10, "given", {}
        )
    else:
        with pytest.raises(InfeasibleError) as caught:
            resolve_num_gpu_blocks(settings, model=None, hardware=None)
        assert (
            "9 usable blocks of 16 hold 144 tokens, fewer than one request of max_model_len 145"
            in (str(caught.value))
        )


@pytest.mark.parametrize(("blocks", "fits"), [(2, True), (1, False), (0, False)])
def test_one_of_the_given_blocks_is_a_placeholder(blocks: int, fits: bool) -> None:
    settings = engine(num_gpu_blocks=blocks)
    if fits:
        found = resolve_num_gpu_blocks(settings, model=None, hardware=None)
        assert (found.num_gpu_blocks, found.usable_blocks) == (2, 1)
    else:
        with pytest.raises(InfeasibleError, match=f"{blocks} leaves no usable block"):
            resolve_num_gpu_blocks(settings, model=None, hardware=None)


@pytest.mark.parametrize(
    ("model", "hardware", "missing"), [(None, "l4", "model"), ("m", None, "hardware")]
)
def test_auto_says_what_is_missing(model: str | None, hardware: str | None, missing: str) -> None:
    with pytest.raises(ConfigError, match=f"auto needs `{missing}`"):
        resolve_num_gpu_blocks(engine(), model=model, hardware=hardware)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"layers_block_type": ["mamba", "attention"]}, "it has recurrent layers"),
        ({"index_topk": 2048}, "its attention is sparse"),
    ],
)
def test_caches_that_we_cannot_count_are_refused(
    tmp_path: Path, gpu: Any, config: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL | config))
    with pytest.raises(ConfigError, match=f"auto does not know the cache of .*{reason}"):
        blocks_of(model=str(path), hardware=gpu(24))


def test_ranks_that_do_not_divide_the_heads_are_refused(small: str, gpu: Any) -> None:
    with pytest.raises(ConfigError, match="3 does not divide the model's 4 attention heads"):
        blocks_of(model=small, hardware=gpu(24), tensor_parallel=3)
