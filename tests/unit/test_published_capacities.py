"""Start-ups of vLLM that others published: GiB left for the cache.

The accuracy report of llm-d-planner for vLLM 0.15 to 0.19 (H100 of 80 GB, fraction 0.95, a server's
limits of 1,024 requests and 8,192 tokens). The constants by version and of the sampler were read
off its columns of activations and memory outside of PyTorch, so this tests that the parts add up,
and how they are split and stored.
"""

from typing import Any

import pytest

from dynosim.config.engine import EngineConfig
from dynosim.silicon.auto_capacity import auto_capacity

GIB = 1024**3
SERVER: dict[str, Any] = {"gpu_memory_utilization": 0.95, "max_num_seqs": 1024}
LLAMA8, LLAMA70 = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.3-70B-Instruct"


@pytest.mark.parametrize(
    ("model", "keys", "gib", "within"),
    [
        ("Qwen/Qwen3-14B", SERVER | {"version": "0.15.0"}, 41.94, 0.002),
        ("Qwen/Qwen3-14B", SERVER | {"version": "0.17.0"}, 45.34, 0.002),
        ("Qwen/Qwen3-14B", SERVER | {"version": "0.18.0"}, 45.23, 0.002),
        (LLAMA8, SERVER | {"version": "0.19.0"}, 58.11, 0.002),
        (LLAMA8, SERVER | {"version": "0.19.0", "quantization": "fp8"}, 64.61, 0.002),
        ("Qwen/Qwen2.5-7B", SERVER | {"version": "0.19.0"}, 58.53, 0.002),
        (LLAMA70,
         SERVER | {"version": "0.19.0", "quantization": "fp8"}, 5.01, 0.02),
        (LLAMA70,
         SERVER | {"version": "0.19.0", "quantization": "fp8", "tensor_parallel": 2}, 37.28, 0.004),
        (LLAMA70,
         SERVER | {"version": "0.19.0", "quantization": "fp8", "tensor_parallel": 4}, 54.08, 0.004),
    ],
)  # fmt: skip
def test_what_is_left_for_the_cache(
    model: str, keys: dict[str, Any], gib: float, within: float
) -> None:
    found = auto_capacity(
        EngineConfig.of({"max_num_batched_tokens": 8192} | keys), model, "h100_sxm"
    )
    assert found.breakdown["kv_cache_bytes"] / GIB == pytest.approx(gib, rel=within)
    block_gib = found.breakdown["kv_bytes_per_token"] * 16 / GIB
    assert found.low * block_gib <= gib <= found.high * block_gib
