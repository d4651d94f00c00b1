"""SGLang's server: flags from a plan, capacity from its server information.

Written from SGLang's documentation and tried against answers in its form, not proven on hardware.
Its KV events are vLLM's, over ZMQ as well.
"""

import json
from typing import Literal

import msgspec

from dynosim.build.offload import refuse_tiers
from dynosim.config import RunConfig
from dynosim.config.engine import EngineConfig
from dynosim.errors import ConfigError
from dynosim_runtime.adapters.base import EngineFacts, LaunchSpec, Relay
from dynosim_runtime.adapters.engine_http import EngineCallError, EngineHttp
from dynosim_runtime.adapters.metrics import EngineLoad, parse_load
from dynosim_runtime.adapters.openai_models import max_model_len
from dynosim_runtime.adapters.vllm import kv_events_config
from dynosim_runtime.card import EngineKind

SERVER_INFO_PATHS = ("/server_info", "/get_server_info")  # the newer name, and the older


class _ServerInfo(msgspec.Struct):
    page_size: int
    max_total_num_tokens: int


class SglangAdapter:
    """SGLang from about version 0.5 on."""

    kind: EngineKind = "sglang"
    device: Literal["gpu", "cpu"] = "gpu"
    relay: Relay | None = None

    def command(self, spec: LaunchSpec) -> list[str]:
        """See `EngineAdapter`."""
        engine = spec.plan.engine
        _refuse_unsupported(engine)
        refuse_tiers(spec.plan, self.kind)
        return [
            str(spec.python), "-m", "sglang.launch_server",
            "--model-path", spec.model,
            "--served-model-name", spec.served_model_name,
            "--host", spec.host,
            "--port", str(spec.port),
            "--tp-size", str(engine.tensor_parallel),
            *(("--ep-size", str(engine.tensor_parallel)) if engine.expert_parallel else ()),
            "--sampling-defaults", "openai",
            "--enable-metrics",
            *_scheduler_flags(engine),
            *_cache_flags(engine),
            *_event_flags(spec),
        ]  # fmt: skip

    def environment(self, spec: LaunchSpec) -> dict[str, str]:
        """See `EngineAdapter`."""
        return {}

    async def facts(self, http: EngineHttp, plan: RunConfig) -> EngineFacts:
        """See `EngineAdapter`. Its padding page comes on top of the tokens it tells."""
        info = await _server_info(http)
        return EngineFacts(
            block_size=info.page_size,
            total_kv_blocks=info.max_total_num_tokens // info.page_size,
            max_model_len=await max_model_len(http),
        )

    async def load(self, http: EngineHttp) -> EngineLoad:
        """See `EngineAdapter`."""
        return parse_load(self.kind, await http.get_text("/metrics"))


async def _server_info(http: EngineHttp) -> _ServerInfo:
    error: Exception | None = None
    for path in SERVER_INFO_PATHS:
        try:
            return msgspec.json.decode(await http.get_text(path), type=_ServerInfo)
        except (EngineCallError, msgspec.MsgspecError) as failure:
            error = failure
    raise EngineCallError(f"{http.shown_url} does not tell SGLang's server information: {error}")


def _refuse_unsupported(engine: EngineConfig) -> None:
    """Raises: ConfigError for spec of the twin's vLLM scheduler that SGLang has not."""
    set_keys = [
        key
        for key, is_set in (
            ("long_prefill_token_threshold", engine.long_prefill_token_threshold > 0),
            ("max_num_active_seqs", engine.max_num_active_seqs is not None),
            ("watermark", engine.watermark > 0),
        )
        if is_set
    ]
    if set_keys:
        raise ConfigError(f"engine.{set_keys[0]}: SGLang has no such setting (remove it)")


def _scheduler_flags(engine: EngineConfig) -> list[str]:
    chunk = engine.max_num_batched_tokens if engine.enable_chunked_prefill else -1
    flags = [
        "--max-running-requests", str(engine.max_num_seqs),
        "--max-prefill-tokens", str(engine.max_num_batched_tokens),
        "--chunked-prefill-size", str(chunk),
        "--schedule-policy", "fcfs",
    ]  # fmt: skip
    if engine.max_model_len is not None:
        flags += ["--context-length", str(engine.max_model_len)]
    if engine.policy == "priority":
        flags += ["--enable-priority-scheduling", "--schedule-low-priority-values-first"]
    if not engine.is_async:
        flags.append("--disable-overlap-schedule")
    return flags


def _cache_flags(engine: EngineConfig) -> list[str]:
    flags = [
        "--page-size", str(engine.block_size),
        "--mem-fraction-static", str(engine.memory_fraction),
    ]  # fmt: skip
    if engine.num_gpu_blocks != "auto":
        # the plan counts as vLLM does, with one block that never holds KV
        num_tokens = (engine.num_gpu_blocks - 1) * engine.block_size
        flags += ["--max-total-tokens", str(num_tokens)]
    if not engine.enable_prefix_caching:
        flags.append("--disable-radix-cache")
    if engine.kv_cache_dtype == "fp8":
        flags += ["--kv-cache-dtype", "fp8_e4m3"]
    if engine.quantization is not None:
        flags += ["--quantization", engine.quantization]
    return flags


def _event_flags(spec: LaunchSpec) -> list[str]:
    if not spec.event_sources:
        return []
    config = kv_events_config(spec.event_sources[0])
    del config["enable_kv_cache_events"]  # to SGLang, having a publisher says that
    return ["--kv-events-config", json.dumps(config)]
