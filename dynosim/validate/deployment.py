"""The engine that a log was recorded on, from its set-up: scheduler, graphs, memory.

What a set-up leaves out is vLLM's default, and said so.
"""

from dataclasses import dataclass
from typing import Any

from dynosim.config.schema import EngineConfig
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError, DynosimError
from dynosim.records import Trace
from dynosim.runner import engine_spec
from dynosim.silicon import resolve_num_gpu_blocks
from dynosim.silicon.catalogue import model_entry
from dynosim.timing.fitted import vllm_graph_sizes

_ASYNC_SINCE = (0, 14)
"""The first vLLM that schedules asynchronously unless told not to."""

_SAME_NAME = (
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
    "gpu_memory_utilization",
    "quantization",
    "async_scheduling",
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One engine as far as the twin needs to know it."""

    model: str | None
    hardware: str | None
    engine: EngineConfig  # `num_gpu_blocks` is `auto` where the set-up does not tell
    graph_sizes: tuple[int, ...]
    assumed: tuple[str, ...]  # what the set-up does not tell

    @property
    def given_blocks(self) -> int | None:
        """KV blocks that the recorded engine had, if known."""
        blocks = self.engine.num_gpu_blocks
        return blocks if isinstance(blocks, int) else None

    def spec(
        self, trace: Trace, num_gpu_blocks: int, *, is_async: bool | None = None
    ) -> EngineSpec:
        """The scheduler's configuration with so many blocks."""
        engine = self.engine
        if is_async is not None:
            engine = engine.model_copy(update={"async_scheduling": is_async})
        length = engine.max_model_len or self._context_length(trace)
        capacity = (num_gpu_blocks - 1) * engine.block_size
        return engine_spec(
            engine, num_gpu_blocks=num_gpu_blocks, max_model_len=min(length, capacity)
        )

    def _context_length(self, trace: Trace) -> int:
        longest = int((trace.input_tokens + trace.output_tokens).max()) + 1
        if self.model is None:
            return longest
        try:
            config = model_entry(self.model).config
        except DynosimError:
            return longest  # a model of the user's own; nothing else needs to know it
        length = config.get("text_config", config).get("max_position_embeddings")
        return max(length, longest) if isinstance(length, int) else longest

    def blind_blocks(self) -> int | None:
        """KV blocks predicted from model and hardware; None if either is not known."""
        if self.model is None or self.hardware is None:
            return None
        engine = self.engine.model_copy(update={"num_gpu_blocks": "auto"})
        try:
            capacity = resolve_num_gpu_blocks(engine, model=self.model, hardware=self.hardware)
        except DynosimError:
            return None
        return capacity.num_gpu_blocks

    def ample_blocks(self, trace: Trace) -> int:
        """Blocks for all requests at once: stands in where the capacity is not known."""
        block = self.engine.block_size
        return int((-(-(trace.input_tokens + trace.output_tokens) // block)).sum()) + 2


def deployment_of(
    setup: dict[str, Any],
    *,
    model: str | None = None,
    hardware: str | None = None,
    num_gpu_blocks: int | None = None,
) -> Deployment:
    """The engine of a set-up; arguments win over what it says. Raises: ConfigError."""
    kwargs = setup.get("engine_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    _refuse_many_engines(kwargs)
    values = {key: kwargs[key] for key in _SAME_NAME if kwargs.get(key) is not None}
    values["tensor_parallel"] = kwargs.get("tensor_parallel_size") or 1
    if str(kwargs.get("kv_cache_dtype", "auto")).startswith("fp8"):
        values["kv_cache_dtype"] = "fp8"
    blocks = num_gpu_blocks or kwargs.get("num_gpu_blocks_override") or setup.get("num_gpu_blocks")
    if blocks is not None:
        values["num_gpu_blocks"] = blocks
    assumed = [key for key in ("max_num_seqs", "max_num_batched_tokens") if key not in values]
    if "async_scheduling" not in values:
        values["async_scheduling"] = _is_async_by_default(setup)
    try:
        engine = EngineConfig.model_validate(values)
    except ValueError as error:
        raise ConfigError(f"setup.engine_kwargs: {error}") from None
    hardware = hardware or setup.get("hardware")
    return Deployment(
        model=model or kwargs.get("model") or setup.get("model"),
        hardware=hardware,
        engine=engine,
        graph_sizes=_graph_sizes(kwargs, hardware, engine.max_num_seqs),
        assumed=tuple(assumed),
    )


def _refuse_many_engines(kwargs: dict[str, Any]) -> None:
    for key in ("data_parallel_size", "pipeline_parallel_size"):
        if kwargs.get(key) not in (None, 1):
            raise ConfigError(
                f"setup.engine_kwargs.{key}: {kwargs[key]}; one engine is replayed: record one"
            )


def _graph_sizes(kwargs: dict[str, Any], hardware: str | None, seqs: int) -> tuple[int, ...]:
    is_eager = bool(kwargs.get("enforce_eager")) or (hardware or "cpu").startswith("cpu")
    return () if is_eager else vllm_graph_sizes(seqs)


def _is_async_by_default(setup: dict[str, Any]) -> bool:
    parts = str(setup.get("vllm_version", "")).split(".")
    try:
        return tuple(int(part) for part in parts[:2]) >= _ASYNC_SINCE
    except ValueError:
        return False
