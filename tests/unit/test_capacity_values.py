"""KV blocks by hand: what the memory fraction leaves, the interval, and the limits of what fits."""

import json
from pathlib import Path
from typing import Any

import pytest
from timing_support import engine

from dynosim.errors import ConfigError, InfeasibleError
from dynosim.silicon import Capacity, capacity_of_running, resolve_num_gpu_blocks
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.engine_memory import activation_bytes, graph_bytes, runtime_bytes
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.architecture import model_shape
from dynosim.timing.weights import gpu_weights

GIB = 1024**3
RUNTIME_B = int(0.25 * GIB)  # since vLLM 0.18
GRAPHS_B = (51 + 35) * 2 * 1024**2 // 4  # of 256 requests and two layers
FIGURES = "memory_gb_per_s: 1\nbf16_tflops: 1\nfp8_tflops: 1\nlink_gb_per_s: 1\n"


@pytest.fixture
def gpu(tmp_path: Path) -> Any:
    """Data sheets of GPUs that nothing is known of but their memory."""

    def of(memory_gib: float) -> str:
        path = tmp_path / "gpu.yaml"
        path.write_text(f"memory_gib: {memory_gib + 1}\ncuda_total_gib: {memory_gib}\n{FIGURES}")
        return str(path)

    return of


def blocks_of(**keys: Any) -> Capacity:
    model, hardware = keys.pop("model"), keys.pop("hardware")
    return resolve_num_gpu_blocks(engine(**keys), model=model, hardware=hardware)


@pytest.mark.parametrize(
    ("version", "stated", "fraction"),
    [("0.15.1", None, 0.9), ("0.21.0", None, 0.92), (None, None, 0.92), ("0.15.1", 0.7, 0.7)],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_parts_make_the_cache(
    version: str | None, stated: float | None, fraction: float, ranks: int
) -> None:
    settings = engine(version=version, gpu_memory_utilization=stated, tensor_parallel=ranks)
    found = resolve_num_gpu_blocks(settings, model="Qwen/Qwen3-8B", hardware="h100_sxm")
    entry, sheet = model_entry("Qwen/Qwen3-8B"), hardware_sheet("h100_sxm")
    shape = model_shape(entry)
    parts = {
        "gpu_bytes": int(79.18 * GIB),
        "kv_bytes_per_token": 36 * 2 * (8 // ranks) * 128 * 2,
        "weights_bytes": sum(gpu_weights(entry, shape, settings, None).values()),
        "activations_bytes": activation_bytes(entry, shape, settings),
        "runtime_bytes": runtime_bytes(shape, settings, sheet),
        "cuda_graphs_bytes": graph_bytes(shape, settings),
    }
    used = sum(parts[name] for name in list(parts)[2:])
    cache_b = int(parts["gpu_bytes"] * fraction) - used
    assert found.breakdown == parts | {"kv_cache_bytes": cache_b}
    assert found.num_gpu_blocks == cache_b // (parts["kv_bytes_per_token"] * 16)
    assert found.usable_blocks == found.num_gpu_blocks - 1
    assert found.source == "derived" and "H100" in found.basis


@pytest.mark.parametrize("cache", ["fp8", "fp8_e4m3"])
def test_a_cache_of_half_the_width_has_twice_the_blocks(gpu: Any, cache: str) -> None:
    wide, narrow = (
        blocks_of(model="Qwen/Qwen3-4B", hardware=gpu(40), kv_cache_dtype=dtype, block_size=32)
        for dtype in ("auto", cache)
    )
    assert narrow.num_gpu_blocks // 2 == wide.num_gpu_blocks


def test_an_estimate_for_a_gpu_that_nothing_was_tried_on_is_wider() -> None:
    found = {
        hardware: blocks_of(model="Qwen/Qwen3-8B", hardware=hardware)
        for hardware in ("h100_sxm", "a100_sxm")
    }
    widths = {name: (one.high - one.low) / one.num_gpu_blocks for name, one in found.items()}
    assert widths["a100_sxm"] > 1.5 * widths["h100_sxm"] > 0
    for one in found.values():
        assert one.low < one.num_gpu_blocks < one.high
    assert found["a100_sxm"].source == "estimated"
    assert found["a100_sxm"].basis.endswith("not tried on a100_sxm")


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


def memory_gib(blocks: float, small: str) -> float:
    """Memory with just so much room for the cache."""
    entry = model_entry(small)
    shape = model_shape(entry)
    settings = engine(max_num_batched_tokens=64)
    weights_b = sum(gpu_weights(entry, shape, settings, None).values())
    activations_b = activation_bytes(entry, shape, settings)
    return (weights_b + activations_b + RUNTIME_B + GRAPHS_B + blocks * BLOCK_B) / GIB


def with_room_for(blocks: float, small: str, gpu: Any, **keys: Any) -> Capacity:
    """The capacity of a GPU that has just so much room for the cache."""
    return blocks_of(
        model=small,
        hardware=gpu(memory_gib(blocks, small)),
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
    assert "0.0 GiB of weights and 0.4 GiB of activations and buffers in 0.4 GiB" in str(
        caught.value
    )
    assert "(100% of 0.4 GiB); raise engine.tensor_parallel above 1" in str(caught.value)
    assert "It may just fit: within the estimate's margin" in str(caught.value)


def test_a_model_that_is_far_too_big_does_not_nearly_fit() -> None:
    with pytest.raises(InfeasibleError, match=r"61\.0 GiB of weights") as caught:
        blocks_of(model="Qwen/Qwen3-32B", hardware="l40s")
    assert "may just fit" not in str(caught.value)


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
            10, "given", {}, 10, 10, "as given"
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


@pytest.mark.parametrize(
    ("room", "length", "longest", "blocks"),
    [
        (50, None, 40, 50),  # as estimated
        (50, 640, 1, 50),
        (5, None, 40, 5),
        (5, None, 160, 11),  # its longest request fitted
        (5, 640, 160, 41),  # one request of its context fitted, or it would not have started
        (-900, 640, 160, 41),
        (1, None, 1, 2),
    ],
)
def test_an_engine_that_ran_has_room_for_a_request(
    small: str, gpu: Any, room: float, length: int | None, longest: int, blocks: int
) -> None:
    settings = engine(gpu_memory_utilization=1.0, max_num_batched_tokens=64, max_model_len=length)
    hardware = gpu(memory_gib(room + 0.5, small))
    found = capacity_of_running(settings, model=small, hardware=hardware, longest_tokens=longest)
    assert found.num_gpu_blocks == blocks
    assert found.low <= blocks <= found.high
    assert (found.warning is None) == (blocks == int(room))
    if found.warning is not None:
        assert f"{blocks} are taken" in found.warning


def test_an_engine_that_ran_with_blocks_that_were_told() -> None:
    found = capacity_of_running(engine(num_gpu_blocks=7), model=None, hardware=None)
    assert (found.num_gpu_blocks, found.source, found.warning) == (7, "given", None)
    with pytest.raises(ConfigError, match="auto needs `model`"):
        capacity_of_running(engine(), model=None, hardware="l4")
