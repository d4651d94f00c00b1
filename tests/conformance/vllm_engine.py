"""vLLM's V1 scheduler with its block pool, made from a scenario's engine section; no model."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    KVEventsConfig,
    KVTransferConfig,
    ModelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm_copies import transfer_config
from vllm_drafts import speculative_config

Json = dict[str, Any]
DEFAULTS: Json = {
    "enable_prefix_caching": True,
    "enable_chunked_prefill": True,
    "long_prefill_token_threshold": 0,
    "long_prefill_token_threshold_adaptive": False,
    "policy": "fcfs",
    "watermark": 0.0,
    "scheduler_reserve_full_isl": True,
    "max_num_active_seqs": None,
    "async_scheduling": False,
    "remote": None,
    "offload": None,
    "spec": None,
}
NOT_OF_THE_SCHEDULER = (
    "num_gpu_blocks",
    "block_size",
    "enable_prefix_caching",
    "remote",
    "offload",
    "spec",
)
DEFAULT_REMOTE: Json = {"role": "kv_both", "failure_policy": "recompute"}


class CountingPublisher:
    """In the place of the one that sends KV events."""

    def __init__(self) -> None:
        self.blocks = {"BlockStored": 0, "BlockRemoved": 0}

    def publish(self, batch: Any) -> None:
        """Count the blocks that a batch of events tells of."""
        for event in batch.events:
            if str(event.medium).upper() == "CPU":
                continue  # of the tier in host memory
            self.blocks[type(event).__name__] += len(event.block_hashes)

    def shutdown(self) -> None:
        """Nothing to end."""


class Watched:
    """Mixed into a scheduler: tells what its output does not.

    That is preemptions in their order, local hits, and how many blocks those hold that have loaded.
    """

    preempted: list[str]
    local_hits: dict[str, int]
    back: dict[str, int]

    def _update_waiting_for_remote_kv(self, request: Request) -> None:
        super()._update_waiting_for_remote_kv(request)  # type: ignore[misc]
        manager = self.kv_cache_manager.coordinator.single_type_managers[0]  # type: ignore[attr-defined]
        self.back[request.request_id] = len(manager.req_to_blocks.get(request.request_id, ()))

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        found = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        self.local_hits[request.request_id] = found[1]
        self.back.pop(request.request_id, None)
        return found

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self.preempted.append(request.request_id)
        return super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]


class WatchedScheduler(Watched, Scheduler):
    """vLLM's scheduler, watched."""


class WatchedAsyncScheduler(Watched, AsyncScheduler):
    """vLLM's asynchronous scheduler, watched."""


@cache
def model_folder() -> str:
    """A folder with the config of a small model, which is all that is ever read of it."""
    folder = Path(tempfile.mkdtemp(prefix="scenario-model-"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1 << 22,
        "vocab_size": 128,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def vllm_config(engine: Json) -> VllmConfig:
    """The engine section of a scenario as vLLM's configuration."""
    caching, length = engine["enable_prefix_caching"], engine["max_model_len"]
    transfers = None
    if engine["offload"] is not None:
        transfers = transfer_config(engine["offload"], engine["block_size"])
    if engine["remote"] is not None:
        remote = DEFAULT_REMOTE | engine["remote"]
        transfers = KVTransferConfig(
            kv_connector="PullConnector",
            kv_connector_module_path="vllm_transfers",
            kv_role=remote["role"],
            kv_load_failure_policy=remote["failure_policy"],
        )
    limits = {k: v for k, v in engine.items() if k not in NOT_OF_THE_SCHEDULER}
    model = ModelConfig(
        model=model_folder(), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=length
    )
    spec, drafting = engine["spec"], None
    if spec is not None:
        drafting = speculative_config(spec, model, model_folder())
    config = VllmConfig(
        model_config=model,
        speculative_config=drafting,
        scheduler_config=SchedulerConfig(
            **{**limits, "async_scheduling": False, "is_encoder_decoder": False}
        ),
        cache_config=CacheConfig(block_size=engine["block_size"], enable_prefix_caching=caching),
        device_config=DeviceConfig("cpu"),
        kv_events_config=KVEventsConfig(enable_kv_cache_events=caching, publisher="null"),
        kv_transfer_config=transfers,
    )
    if drafting is not None and spec.get("method") == "eagle":
        drafting.method = "eagle"
    # The platform has opinions on some of these; the scenario decides.
    config.cache_config.block_size = engine["block_size"]
    config.cache_config.num_gpu_blocks = engine["num_gpu_blocks"]
    config.cache_config.enable_prefix_caching = caching
    for name, value in limits.items():
        if name != "max_model_len":
            setattr(config.scheduler_config, name, value)
    return config


def make_scheduler(engine: Json) -> tuple[Any, Any]:
    """The scheduler, and what hashes the blocks of its requests."""
    config, block_size = vllm_config(engine), engine["block_size"]
    layer = FullAttentionSpec(
        block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    kind = WatchedAsyncScheduler if engine["async_scheduling"] else WatchedScheduler
    scheduler = kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=engine["num_gpu_blocks"],
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
    )
    scheduler.kv_event_publisher = CountingPublisher()
    scheduler.preempted, scheduler.local_hits, scheduler.back = [], {}, {}
    if not engine["enable_prefix_caching"]:
        return scheduler, None
    hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    init_none_hash(hash_function)
    return scheduler, get_request_block_hasher(block_size, hash_function)
