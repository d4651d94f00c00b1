"""TensorRT-LLM's server: flags from a plan, figures from its iteration statistics.

Written from TensorRT-LLM's documentation and tried against answers in its form, not proven on
hardware. Its KV events are fetched over HTTP, see `trtllm_events`.
"""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from dynosim.build.offload import refuse_tiers
from dynosim.config import RunConfig
from dynosim.config.engine import EngineConfig
from dynosim.errors import ConfigError
from dynosim.timing.architecture import context_length
from dynosim_runtime.adapters.base import EngineFacts, LaunchSpec, Relay
from dynosim_runtime.adapters.engine_http import EngineCallError, EngineHttp
from dynosim_runtime.adapters.metrics import EngineLoad, parse_load
from dynosim_runtime.adapters.trtllm_events import relay_events
from dynosim_runtime.card import EngineKind

EVENT_BUFFER = 65_536  # events it keeps between two fetches


class _KvCacheStats(msgspec.Struct, rename="camel"):
    max_num_blocks: int
    tokens_per_block: int


class _Iteration(msgspec.Struct, rename="camel"):
    kv_cache_stats: _KvCacheStats | None = None


class TrtllmAdapter:
    """TensorRT-LLM from about version 1.1 on, with its PyTorch backend."""

    kind: EngineKind = "trtllm"
    device: Literal["gpu", "cpu"] = "gpu"
    relay: Relay | None = staticmethod(relay_events)

    def command(self, spec: LaunchSpec) -> list[str]:
        """See `EngineAdapter`. Most spec go through a file in the scratch folder."""
        engine = spec.plan.engine
        _refuse_unsupported(engine)
        refuse_tiers(spec.plan, self.kind)
        options = spec.scratch / "trtllm.yaml"
        options.write_text(yaml.safe_dump(llm_options(engine), sort_keys=False), encoding="utf-8")
        context = engine.max_model_len
        return [
            str(spec.python), "-m", "tensorrt_llm.commands.serve", spec.model,
            "--host", spec.host,
            "--port", str(spec.port),
            "--backend", "pytorch",
            "--tp_size", str(engine.tensor_parallel),
            *(("--ep_size", str(engine.tensor_parallel)) if engine.expert_parallel else ()),
            "--max_batch_size", str(engine.max_num_seqs),
            "--max_num_tokens", str(engine.max_num_batched_tokens),
            *(() if context is None else ("--max_seq_len", str(context))),
            "--extra_llm_api_options", str(options),
        ]  # fmt: skip

    def environment(self, spec: LaunchSpec) -> dict[str, str]:
        """See `EngineAdapter`."""
        return {}

    async def facts(self, http: EngineHttp, plan: RunConfig) -> EngineFacts:
        """See `EngineAdapter`.

        It tells its blocks only after its first iteration: before, the plan's block size, which
        is on its command line, stands. It never tells its context length.
        """
        stats = _last_kv_stats(await http.get_text("/metrics"))
        return EngineFacts(
            block_size=plan.engine.block_size if stats is None else stats.tokens_per_block,
            total_kv_blocks=None if stats is None else stats.max_num_blocks,
            max_model_len=_context_length(plan),
        )

    async def load(self, http: EngineHttp) -> EngineLoad:
        """See `EngineAdapter`."""
        return parse_load(self.kind, await http.get_text("/prometheus/metrics"))


def llm_options(engine: EngineConfig) -> dict[str, Any]:
    """The options that TensorRT-LLM reads from a file."""
    cache: dict[str, Any] = {
        "enable_block_reuse": engine.enable_prefix_caching,
        "enable_partial_reuse": False,  # whole blocks, as the router counts
        "tokens_per_block": engine.block_size,
        "free_gpu_memory_fraction": engine.memory_fraction,
        "event_buffer_max_size": EVENT_BUFFER if engine.enable_prefix_caching else 0,
    }
    if engine.num_gpu_blocks != "auto":
        # the plan counts as vLLM does, with one block that never holds KV
        cache["max_tokens"] = (engine.num_gpu_blocks - 1) * engine.block_size
    if engine.kv_cache_dtype != "auto":
        cache["dtype"] = engine.kv_cache_dtype
    return {
        "kv_cache_config": cache,
        "enable_chunked_prefill": engine.enable_chunked_prefill,
        "disable_overlap_scheduler": not engine.is_async,
        "enable_iter_perf_stats": True,
        "return_perf_metrics": True,  # its Prometheus page
    }


def _refuse_unsupported(engine: EngineConfig) -> None:
    """Raises: ConfigError for spec of the twin's vLLM scheduler that TensorRT-LLM has not."""
    set_keys = [
        key
        for key, is_set in (
            ("policy", engine.policy != "fcfs"),
            ("long_prefill_token_threshold", engine.long_prefill_token_threshold > 0),
            ("max_num_active_seqs", engine.max_num_active_seqs is not None),
            ("watermark", engine.watermark > 0),
            ("quantization", engine.quantization is not None),
        )
        if is_set
    ]
    if set_keys:
        raise ConfigError(
            f"engine.{set_keys[0]}: TensorRT-LLM's server has no such setting (remove it)"
        )


def _last_kv_stats(text: str) -> _KvCacheStats | None:
    try:
        iterations = msgspec.json.decode(text, type=list[_Iteration | str])
        told = [msgspec.json.decode(i, type=_Iteration) if isinstance(i, str) else i
                for i in iterations]  # fmt: skip
    except msgspec.MsgspecError as error:
        raise EngineCallError(
            f"/metrics is not TensorRT-LLM's list of iterations: {error}"
        ) from None
    stats = [iteration.kv_cache_stats for iteration in told if iteration.kv_cache_stats]
    return stats[-1] if stats else None


def _context_length(plan: RunConfig) -> int:
    """The plan's, or that of the model's folder. Raises: EngineCallError if neither tells it."""
    if plan.engine.max_model_len is not None:
        return plan.engine.max_model_len
    source = plan.model_source
    if source is not None and source != plan.model:
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        length = context_length(json.loads(path.read_text(encoding="utf-8")))
        if length is not None:
            return length
    raise EngineCallError(
        "TensorRT-LLM does not tell its context length (set engine.max_model_len)"
    )
