"""vLLM's OpenAI server, on GPUs or on its CPU backend: its start, its capacity from /metrics."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from dynosim.build.engine_command import (
    kv_event_settings,
    vllm_flags,
    vllm_gpu_flags,
)
from dynosim.build.offload import check_vllm_tiers, connector_settings
from dynosim.config import RunConfig
from dynosim.config.engine import EngineConfig
from dynosim.errors import ConfigError
from dynosim_runtime.adapters.base import EngineFacts, LaunchSpec, Relay
from dynosim_runtime.adapters.engine_http import EngineCallError, EngineHttp
from dynosim_runtime.adapters.metrics import EngineLoad, metric_labels, parse_load
from dynosim_runtime.adapters.openai_models import max_model_len
from dynosim_runtime.card import EngineKind, EventSource

CPU_BLOCK_SIZE_STEP = 32  # tokens; vLLM 0.32, CPU_ATTN
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 and Arm
CPU_KV_CACHE_GIB = "1"  # when the plan does not fix the number of blocks


class VllmAdapter:
    """vLLM, from about version 0.12 on; tried with 0.32."""

    kind: EngineKind = "vllm"
    relay: Relay | None = None

    def __init__(self, *, on_cpu: bool = False) -> None:
        self._on_cpu = on_cpu
        self.device: Literal["gpu", "cpu"] = "cpu" if on_cpu else "gpu"

    def command(self, spec: LaunchSpec) -> list[str]:
        """See `EngineAdapter`."""
        engine = spec.plan.engine
        if self._on_cpu:
            _check_cpu_engine(engine)
        check_vllm_tiers(spec.plan, on_cpu=self._on_cpu)
        return [
            str(spec.python), "-m", "vllm.entrypoints.openai.api_server",
            "--host", spec.host,
            "--port", str(spec.port),
            "--model", spec.model,
            *vllm_flags(engine, served_model_name=spec.served_model_name),
            *(_cpu_flags() if self._on_cpu else vllm_gpu_flags(engine)),
            *_event_flags(spec.event_sources),
            *self._connector_flags(spec),
        ]  # fmt: skip

    def environment(self, spec: LaunchSpec) -> dict[str, str]:
        """See `EngineAdapter`. What the user has set for the CPU backend stays."""
        variables = {"VLLM_NO_USAGE_STATS": "1"}
        if os.path.isdir(spec.model):
            variables["HF_HUB_OFFLINE"] = "1"
        if self._on_cpu:
            given = {
                # With the model in the scheduler's process none of them has to wait for the other;
                # a scheduler that waits spins, and takes a core from the model.
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                # GiB. Where the plan fixes the number of blocks, that counts and this does not,
                # but that it is set spares the engine a warm-up that only measures memory.
                "VLLM_CPU_KVCACHE_SPACE": CPU_KV_CACHE_GIB,
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": str(_num_threads(spec.plan)),
            }
            variables |= {name: os.environ.get(name, value) for name, value in given.items()}
        if spec.exchange is not None:
            variables |= {
                "VLLM_NIXL_SIDE_CHANNEL_HOST": spec.exchange.host,
                "VLLM_NIXL_SIDE_CHANNEL_PORT": str(spec.exchange.port),
            }
        return variables

    def _connector_flags(self, spec: LaunchSpec) -> list[str]:
        exchange = spec.exchange
        settings = connector_settings(
            spec.plan,
            None if exchange is None else exchange.role,
            load_failure_policy="fail" if exchange is None else exchange.load_failure_policy,
            buffer_device="cpu" if self._on_cpu else "cuda",
        )
        return [] if settings is None else ["--kv-transfer-config", json.dumps(settings)]

    async def facts(self, http: EngineHttp, plan: RunConfig) -> EngineFacts:
        """See `EngineAdapter`. One of vLLM's blocks is a placeholder that never holds KV."""
        labels = cache_config(await http.get_text("/metrics"))
        num_gpu_blocks = labels.get("num_gpu_blocks", "None")
        return EngineFacts(
            block_size=int(labels["block_size"]),
            total_kv_blocks=int(num_gpu_blocks) - 1 if num_gpu_blocks.isdigit() else None,
            max_model_len=await max_model_len(http),
            kv_dtype=labels.get("cache_dtype"),
        )

    async def load(self, http: EngineHttp) -> EngineLoad:
        """See `EngineAdapter`."""
        return parse_load(self.kind, await http.get_text("/metrics"))


def cache_config(metrics: str) -> dict[str, str]:
    """The labels in which vLLM tells its cache's configuration. Raises: EngineCallError."""
    try:
        labels = metric_labels(metrics, "vllm:cache_config_info")
        int(labels["block_size"])
    except (KeyError, ValueError) as error:
        raise EngineCallError(
            f"/metrics does not tell vLLM's cache configuration: {error}"
        ) from None
    return labels


def _check_cpu_engine(engine: EngineConfig) -> None:
    """Raises: ConfigError for what vLLM's CPU backend refuses, after half a minute of loading."""
    if engine.tensor_parallel > 1:
        raise ConfigError(
            f"engine.tensor_parallel: {engine.tensor_parallel}, but --engine vllm-cpu runs "
            "unsharded models only (add --set engine.tensor_parallel=1)"
        )
    if engine.expert_parallel:
        raise ConfigError(
            "engine.expert_parallel: --engine vllm-cpu keeps all experts together (leave it out)"
        )
    if engine.block_size % CPU_BLOCK_SIZE_STEP:
        raise ConfigError(
            f"engine.block_size: {engine.block_size}, but vLLM's attention on CPUs takes multiples "
            f"of {CPU_BLOCK_SIZE_STEP} tokens (add --set engine.block_size={CPU_BLOCK_SIZE_STEP})"
        )


def _cpu_flags() -> list[str]:
    # Compiling takes minutes on a CPU.
    return [
        "--enforce-eager",
        "--dtype", cpu_dtype(Path("/proc/cpuinfo")),
        "--distributed-executor-backend", "uni",
    ]  # fmt: skip


def cpu_dtype(cpu_info: Path) -> str:
    """bfloat16 where the CPU has instructions for it; without, it is several times slower.

    `cpu_info` is Linux's description of the CPUs; where there is none, bfloat16.
    """
    try:
        flags = set(cpu_info.read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return "bfloat16"
    return "bfloat16" if flags & BFLOAT16_FLAGS else "float32"


def _event_flags(sources: tuple[EventSource, ...]) -> list[str]:
    if not sources:
        return []
    return ["--kv-events-config", json.dumps(kv_events_config(sources[0]))]


def kv_events_config(source: EventSource) -> dict[str, Any]:
    """vLLM's configuration for publishing where `source` says; SGLang takes the same."""
    return kv_event_settings(source.endpoint, source.replay_endpoint, source.topic)


def _num_threads(plan: RunConfig) -> int:
    """Cores of one CPU worker, with one left for the frontend and who else is there."""
    return max(1, ((os.cpu_count() or 1) - 1) // plan.cluster.workers)
