"""The command line of a real engine that does what a configuration says.

One source for whoever starts engines: the live layer, and the scripts beside a sweep's winners.
Everything that the twin assumes of the scheduler is said, also where it is vLLM's default today, so
that another version cannot change it in silence. Tried with vLLM 0.32.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynosim.config.cluster import PoolRole
from dynosim.config.engine import EngineConfig
from dynosim.config.schema import RunConfig, is_path
from dynosim.engine.spec import KV_ROLES

KV_LEASE_S = 60
"""How long an engine holds KV that nobody fetches, from the prefill's end."""


def vllm_flags(engine: EngineConfig, *, served_model_name: str) -> list[str]:
    """Flags of vLLM's server, on whatever it runs; the model, address and devices are not in it."""
    # -1: as much of the model's context as the cache holds, which is what the twin assumes
    context = -1 if engine.max_model_len is None else engine.max_model_len
    flags = [
        "--served-model-name", served_model_name,
        "--max-model-len", str(context),
        # sampling defaults are the client's business, not the model folder's
        "--generation-config", "vllm",
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if engine.quantization is not None:
        flags += ["--quantization", engine.quantization]
    return [*flags, *_scheduler_flags(engine), *_cache_flags(engine)]


def vllm_gpu_flags(engine: EngineConfig) -> list[str]:
    """Flags that only an engine on GPUs has."""
    flags = [
        "--tensor-parallel-size", str(engine.tensor_parallel),
        "--gpu-memory-utilization", str(engine.memory_fraction),
    ]  # fmt: skip
    if engine.data_parallel > 1:
        flags += ["--data-parallel-size", str(engine.data_parallel)]
    if engine.expert_parallel:
        flags.append("--enable-expert-parallel")
    return flags


def kv_event_settings(
    endpoint: str, replay_endpoint: str | None, topic: str = ""
) -> dict[str, Any]:
    """What vLLM's `--kv-events-config` takes to publish there; SGLang takes the same."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": endpoint,
        "replay_endpoint": replay_endpoint,
        "topic": topic,
    }


def kv_transfer_settings(
    role: PoolRole, *, load_failure_policy: str, buffer_device: str = "cuda"
) -> dict[str, Any]:
    """What vLLM's `--kv-transfer-config` takes of an engine whose KV goes to others, or comes from
    them, over NIXL: from GPU to GPU, or through the memory of the CPU ("cpu")."""
    return {
        "kv_connector": "NixlConnector",
        "kv_role": KV_ROLES[role],
        "kv_buffer_device": buffer_device,
        "kv_load_failure_policy": load_failure_policy,
        "kv_connector_extra_config": {"kv_lease_duration": KV_LEASE_S},
    }


def name_for_clients(config: RunConfig, find_folder: Callable[[], Path | None]) -> str:
    """The model's name in requests: `live.served_model_name`, the model's, or its folder's."""
    if config.live.served_model_name is not None:
        return config.live.served_model_name
    if config.model is not None and not is_path(config.model):
        return config.model
    folder = find_folder()
    return folder.name if folder is not None else "mock"


def _scheduler_flags(engine: EngineConfig) -> list[str]:
    flags = [
        "--max-num-seqs", str(engine.max_num_seqs),
        "--max-num-batched-tokens", str(engine.max_num_batched_tokens),
        "--scheduling-policy", engine.policy,
        _switch("enable-chunked-prefill", engine.enable_chunked_prefill),
        _switch("async-scheduling", engine.is_async),
    ]  # fmt: skip
    # These came to vLLM one by one: said only where they differ from doing nothing.
    if engine.long_prefill_token_threshold:
        flags += ["--long-prefill-token-threshold", str(engine.long_prefill_token_threshold)]
    if engine.long_prefill_token_threshold_adaptive:
        flags.append("--long-prefill-token-threshold-adaptive")
    if engine.max_num_active_seqs is not None:
        flags += ["--max-num-active-seqs", str(engine.max_num_active_seqs)]
    if engine.watermark:
        flags += ["--watermark", str(engine.watermark)]
    if not engine.scheduler_reserve_full_isl:
        flags.append("--no-scheduler-reserve-full-isl")
    return flags


def _cache_flags(engine: EngineConfig) -> list[str]:
    flags = [
        "--block-size", str(engine.block_size),
        _switch("enable-prefix-caching", engine.enable_prefix_caching),
    ]  # fmt: skip
    if engine.num_gpu_blocks != "auto":
        flags += ["--num-gpu-blocks-override", str(engine.num_gpu_blocks)]
    if engine.kv_cache_dtype != "auto":
        flags += ["--kv-cache-dtype", engine.kv_cache_dtype]
    return flags


def _switch(name: str, is_on: bool) -> str:
    return f"--{name}" if is_on else f"--no-{name}"
