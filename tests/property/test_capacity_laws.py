"""Laws of the KV capacity: what gives an engine more room does not cost it blocks."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynosim.config.engine import EngineConfig
from dynosim.silicon.auto_capacity import auto_capacity
from dynosim.silicon.capacity import Capacity, capacity_of_running

MODELS = (
    "Qwen/Qwen3-8B",
    "meta-llama/Meta-Llama-3.1-70B",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mixtral-8x7B-v0.1",
    "deepseek-ai/DeepSeek-V3",
    "Qwen/Qwen3-32B-FP8",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
)
HARDWARE = ("h100_sxm", "h200_sxm", "a100_sxm", "l40s", "rtx_4090", "rtx_pro_6000_server")
VERSIONS = ("0.10.0", "0.15.1", "0.17.0", "0.19.0", "0.32.0", None)

ENGINES = st.fixed_dictionaries(
    {
        "version": st.sampled_from(VERSIONS),
        "tensor_parallel": st.sampled_from([1, 2, 4]),
        "max_num_batched_tokens": st.sampled_from([512, 2048, 8192]),
        "max_num_seqs": st.sampled_from([16, 128, 512]),
        "gpu_memory_utilization": st.sampled_from([0.5, 0.8, 0.9, None]),
        "quantization": st.sampled_from([None, "fp8"]),
        "data_parallel": st.sampled_from([1, 2]),
        "expert_parallel": st.booleans(),
    }
)
CASES = st.tuples(st.sampled_from(MODELS), st.sampled_from(HARDWARE), ENGINES)


def capacity(model: str, hardware: str, keys: dict[str, Any]) -> Capacity:
    return auto_capacity(EngineConfig(**keys), model, hardware)


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_the_estimate_is_within_its_interval(case: tuple[str, str, dict[str, Any]]) -> None:
    found = capacity(*case)
    assert found.low <= found.num_gpu_blocks <= found.high
    parts = found.breakdown
    assert all(size >= 0 for name, size in parts.items() if name != "kv_cache_bytes")


@pytest.mark.parametrize(
    ("key", "less_room", "more_room"),
    [
        ("gpu_memory_utilization", 0.6, 0.9),
        ("max_num_batched_tokens", 8192, 2048),
        ("max_num_seqs", 512, 64),
        ("kv_cache_dtype", "auto", "fp8"),
        ("quantization", None, "fp8"),
    ],
)
@settings(max_examples=10, deadline=None)
@given(case=CASES)
def test_more_room_is_not_fewer_blocks(
    key: str, less_room: Any, more_room: Any, case: tuple[str, str, dict[str, Any]]
) -> None:
    model, hardware, keys = case
    less, more = (capacity(model, hardware, keys | {key: to}) for to in (less_room, more_room))
    assume(more.num_gpu_blocks >= 0)
    assert more.num_gpu_blocks >= less.num_gpu_blocks
    assert more.high >= less.high


@settings(max_examples=20, deadline=None)
@given(CASES)
def test_more_gpus_of_a_rank_are_not_fewer_blocks(case: tuple[str, str, dict[str, Any]]) -> None:
    """Beyond two: the first peer costs buffers that a small model does not win back."""
    model, hardware, keys = case
    two, four = (capacity(model, hardware, keys | {"tensor_parallel": n}) for n in (2, 4))
    assume(two.num_gpu_blocks >= 0)
    assert four.num_gpu_blocks >= two.num_gpu_blocks


@settings(max_examples=20, deadline=None)
@given(CASES, st.integers(1, 40_000))
def test_an_engine_that_ran_has_room_for_its_longest_request(
    case: tuple[str, str, dict[str, Any]], longest: int
) -> None:
    model, hardware, keys = case
    found = capacity_of_running(
        EngineConfig(**keys), model=model, hardware=hardware, longest_tokens=longest
    )
    estimate = capacity(model, hardware, keys).num_gpu_blocks
    assert found.usable_blocks * 16 >= longest
    assert found.low <= found.num_gpu_blocks <= found.high
    if found.warning is None:
        assert found.num_gpu_blocks == estimate
    else:
        assert found.num_gpu_blocks > estimate
