"""Start-ups of vLLM that others published, which nothing here was fitted on: GiB left for the cache.

H100: the accuracy report of llm-d-planner for vLLM 0.15 to 0.19 (80 GB, fraction 0.95, a server's
limits of 1,024 requests and 8,192 tokens); RTX 4090 and A100: start-up logs in vLLM's issues and in
public repositories. Constants per version and of the sampler were read off the first source's
activation and non-torch columns, so what it tests is that parts add up, and TP and formats.
"""

from typing import Any

import pytest

from dynosim.config.schema import EngineConfig
from dynosim.silicon.auto_capacity import auto_capacity

GIB = 1024**3
SERVER: dict[str, Any] = {"gpu_memory_utilization": 0.95, "max_num_seqs": 1024}
LLAMA8, LLAMA70 = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.3-70B-Instruct"


@pytest.mark.parametrize(
    ("model", "hardware", "keys", "gib", "within"),
    [
        ("Qwen/Qwen3-14B", "h100_sxm", SERVER | {"version": "0.15.0"}, 41.94, 0.002),
        ("Qwen/Qwen3-14B", "h100_sxm", SERVER | {"version": "0.17.0"}, 45.34, 0.002),
        ("Qwen/Qwen3-14B", "h100_sxm", SERVER | {"version": "0.18.0"}, 45.23, 0.002),
        (LLAMA8, "h100_sxm", SERVER | {"version": "0.19.0"}, 58.11, 0.002),
        (LLAMA8, "h100_sxm", SERVER | {"version": "0.19.0", "quantization": "fp8"}, 64.61, 0.002),
        ("Qwen/Qwen2.5-7B", "h100_sxm", SERVER | {"version": "0.19.0"}, 58.53, 0.002),
        (LLAMA70, "h100_sxm",
         SERVER | {"version": "0.19.0", "quantization": "fp8"}, 5.01, 0.02),
        (LLAMA70, "h100_sxm",
         SERVER | {"version": "0.19.0", "quantization": "fp8", "tensor_parallel": 2}, 37.28, 0.004),
        (LLAMA70, "h100_sxm",
         SERVER | {"version": "0.19.0", "quantization": "fp8", "tensor_parallel": 4}, 54.08, 0.004),
        ("Qwen/Qwen3-8B", "rtx_4090",
         {"version": "0.10.2", "gpu_memory_utilization": 0.8, "max_num_seqs": 256,
          "max_num_batched_tokens": 2048, "quantization": "fp8"}, 8.60, 0.02),
        (LLAMA8, "a100_sxm",
         {"version": "0.32.0", "max_num_seqs": 256, "max_num_batched_tokens": 2048}, 56.21, 0.01),
    ],
)  # fmt: skip
def test_what_is_left_for_the_cache(
    model: str, hardware: str, keys: dict[str, Any], gib: float, within: float
) -> None:
    found = auto_capacity(EngineConfig.of({"max_num_batched_tokens": 8192} | keys), model, hardware)
    assert found.breakdown["kv_cache_bytes"] / GIB == pytest.approx(gib, rel=within)
    block_gib = found.breakdown["kv_bytes_per_token"] * 16 / GIB
    assert found.low * block_gib <= gib <= found.high * block_gib
