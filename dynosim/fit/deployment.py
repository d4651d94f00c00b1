"""The engine that a log was recorded on, from its set-up: scheduler, graphs, memory.

Set-ups are read as vLLM's arguments are named; null is as good as left out. What a set-up leaves
out is vLLM's default, and said so.
"""

from dataclasses import dataclass
from typing import Any

from dynosim.build.engine import KNOBS, engine_spec
from dynosim.build.ranks import ranks_of
from dynosim.config.engine import EngineConfig
from dynosim.engine.ranks import RankSpec
from dynosim.engine.vllm.versions import graph_sizes, is_async, is_version
from dynosim.errors import ConfigError, DynosimError
from dynosim.fit.replay import Engines
from dynosim.records import Trace
from dynosim.silicon import Capacity, capacity_of_running
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.hardware import form_note, hardware_sheet, usual_name
from dynosim.timing.architecture import context_length, model_shape

_LARGE_GPU_GIB, _HUGE_GPU_GIB = 70, 160
"""From so much memory on (A100s do not count) vLLM's server puts more into a step by default."""

_OWN_FORMAT = ("compressed-tensors", "modelopt", "fbgemm_fp8")
"""vLLM's names for quantised checkpoints: their own config tells the number format."""

_NUMBER_FORMATS = {
    "awq_marlin": "awq",
    "gptq_marlin": "gptq",
    "modelopt_fp4": "nvfp4",
    "bitsandbytes": "int4",
}
"""vLLM's names for number formats by ours, where they differ."""

_RENAMED = {
    "policy": "scheduling_policy",
    "tensor_parallel": "tensor_parallel_size",
    "data_parallel": "data_parallel_size",
    "expert_parallel": "enable_expert_parallel",
}
"""vLLM's arguments by our keys, where they differ."""

_SAME_NAME = (
    *(knob for knob in KNOBS if knob not in _RENAMED and knob != "kind"),
    "max_model_len",
    "gpu_memory_utilization",
)


CPU = "cpu"
"""As hardware: no tables, no graphs; reading weights and computing do not overlap."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One engine as far as the twin needs to know it."""

    model: str | None
    hardware: str | None
    engine: EngineConfig  # `num_gpu_blocks` is `auto` where the set-up does not tell
    graph_sizes: tuple[int, ...]
    assumed: tuple[str, ...]  # what the set-up does not tell
    is_loop_told: bool = False  # whether the set-up tells how the scheduler runs
    is_eager: bool = False  # without CUDA graphs
    is_model_given: bool = False  # by the user, not by the set-up
    hardware_note: str | None = None  # which of several cards its name is taken for

    @property
    def is_cpu(self) -> bool:
        """Whether it is said to compute on a CPU, whichever."""
        return self.hardware == CPU

    @property
    def loops(self) -> tuple[bool, ...]:
        """Scheduling loops that may have run: asynchronous or not, the likely one first."""
        is_async = self.engine.is_async
        return (is_async,) if self.is_loop_told else (is_async, not is_async)

    @property
    def given_blocks(self) -> int | None:
        """KV blocks that the recorded engine had, if known."""
        blocks = self.engine.num_gpu_blocks
        return blocks if isinstance(blocks, int) else None

    def engines(
        self, trace: Trace, num_gpu_blocks: int, *, is_async: bool | None = None
    ) -> Engines:
        """What replays it, with so many blocks."""
        engine = self.engine
        if is_async is not None:
            engine = engine.model_copy(update={"async_scheduling": is_async})
        length = engine.max_model_len or self._context_length(trace)
        capacity = (num_gpu_blocks - 1) * engine.block_size
        spec = engine_spec(
            engine, num_gpu_blocks=num_gpu_blocks, max_model_len=min(length, capacity)
        )
        return Engines(spec, self.ranks)

    @property
    def ranks(self) -> RankSpec:
        """The data-parallel ranks: in lock step if the model is known to have experts."""
        model = self._known_model()
        engine = self.engine
        if model is None:  # nothing can be said of its experts
            engine = engine.model_copy(update={"expert_parallel": False})
        return ranks_of(engine, model=model)

    def _known_model(self) -> str | None:
        """The model, unless it is one that nothing is known of: its ranks count as independent."""
        if self.model is None:
            return None
        try:
            model_shape(model_entry(self.model))
        except DynosimError:
            return None
        return self.model

    def _context_length(self, trace: Trace) -> int:
        longest = int((trace.input_tokens + trace.output_tokens).max()) + 1
        if self.model is None:
            return longest
        try:
            length = context_length(model_entry(self.model).config)
        except DynosimError:
            return longest  # a model of the user's own; nothing else needs to know it
        return longest if length is None else max(length, longest)

    def blind_capacity(self, longest_tokens: int = 1) -> Capacity | None:
        """KV cache of each engine as it follows from model and hardware; None where either is not
        known, or the model's cache cannot be counted.

        The engine ran, so there is room for `longest_tokens`, see `capacity_of_running`.
        """
        if self.model is None or self.hardware is None or self.is_cpu:
            return None
        engine = self.engine.model_copy(update={"num_gpu_blocks": "auto"})
        try:
            return capacity_of_running(
                engine,
                model=self.model,
                hardware=self.hardware,
                longest_tokens=longest_tokens,
                is_eager=self.is_eager,
            )
        except ConfigError:
            return None

    def blind_blocks(self, longest_tokens: int = 1) -> int | None:
        """KV blocks of `blind_capacity`."""
        capacity = self.blind_capacity(longest_tokens)
        return None if capacity is None else capacity.num_gpu_blocks


def deployment_of(
    setup: dict[str, Any],
    *,
    model: str | None = None,
    hardware: str | None = None,
    num_gpu_blocks: int | None = None,
) -> Deployment:
    """The engine of a set-up; arguments win over what it says. Raises: ConfigError."""
    stated = setup.get("engine_kwargs")
    stated = stated if isinstance(stated, dict) else {}
    kwargs = {key: value for key, value in stated.items() if value is not None}
    _refuse_pipelines(kwargs)
    hardware = hardware or setup.get("hardware")
    hardware_note = form_note(hardware) if hardware else None
    hardware = usual_name(hardware) if hardware else None
    values = _engine_values(kwargs)
    blocks = num_gpu_blocks or kwargs.get("num_gpu_blocks_override")
    blocks = blocks or kwargs.get("num_gpu_blocks") or setup.get("num_gpu_blocks")
    if blocks is not None:
        values["num_gpu_blocks"] = blocks
    defaults = {**_version_defaults(setup), **_batch_defaults(hardware)}
    assumed = [key for key in ("max_num_seqs", "max_num_batched_tokens") if key not in values]
    try:
        engine = EngineConfig.of(defaults | values)
    except ValueError as error:
        raise ConfigError(f"setup.engine_kwargs: {error}") from None
    return Deployment(
        model=model or kwargs.get("model") or setup.get("model"),
        hardware=hardware,
        engine=engine,
        graph_sizes=_graph_sizes(kwargs, hardware, engine),
        assumed=tuple(assumed),
        is_loop_told="async_scheduling" in values,
        is_eager=bool(kwargs.get("enforce_eager")),
        is_model_given=model is not None,
        hardware_note=hardware_note,
    )


def vllm_arguments(engine: EngineConfig) -> dict[str, Any]:
    """An engine as a set-up tells of it, under the names of vLLM's arguments."""
    stated = engine.model_dump(mode="json", exclude_none=True)
    keys = (*_SAME_NAME, "quantization", "kv_cache_dtype")
    arguments = {key: stated[key] for key in keys if key in stated}
    arguments |= {theirs: stated[ours] for ours, theirs in _RENAMED.items()}
    arguments["async_scheduling"] = engine.is_async
    if isinstance(engine.num_gpu_blocks, int):
        arguments["num_gpu_blocks_override"] = engine.num_gpu_blocks
    return arguments


def hardware_notes(deployment: Deployment) -> list[str]:
    """What a report must say of a GPU name that several cards share."""
    return [deployment.hardware_note] if deployment.hardware_note else []


def rank_notes(deployment: Deployment) -> list[str]:
    """What a report must say of data parallelism."""
    number = deployment.engine.data_parallel
    if number == 1:
        return []
    ranks = deployment.ranks
    how = "in lock step" if ranks.in_lock_step else "that do not wait for each other"
    note = f"{number} ranks {how}, each with these limits, behind vLLM's own balancer"
    if deployment.model is None:
        note += "; the log names no model: one with experts would step them together"
    return [note]


def _engine_values(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What vLLM's arguments say of our engine's."""
    values = {key: kwargs[key] for key in _SAME_NAME if key in kwargs}
    if values.get("max_model_len") in ("auto", -1):
        del values["max_model_len"]
    values |= {ours: kwargs[theirs] for ours, theirs in _RENAMED.items() if theirs in kwargs}
    if str(kwargs.get("kv_cache_dtype", "auto")).startswith("fp8"):
        values["kv_cache_dtype"] = "fp8"
    quantisation = kwargs.get("quantization")
    if quantisation is not None and quantisation not in _OWN_FORMAT:
        values["quantization"] = _NUMBER_FORMATS.get(quantisation, quantisation)
    return values


def _batch_defaults(hardware: str | None) -> dict[str, int]:
    """vLLM's server's limits of a step where the set-up has none."""
    try:
        sheet = hardware_sheet(hardware) if hardware else None
    except ConfigError:
        return {}  # refused where step times are looked for
    if sheet is None:
        return {}
    if sheet.memory_gib < _LARGE_GPU_GIB or sheet.name.startswith("a100"):
        return {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
    tokens = 16384 if sheet.memory_gib >= _HUGE_GPU_GIB else 8192
    return {"max_num_seqs": 1024, "max_num_batched_tokens": tokens}


def _refuse_pipelines(kwargs: dict[str, Any]) -> None:
    number = kwargs.get("pipeline_parallel_size", 1)
    if number != 1:
        raise ConfigError(
            f"setup.engine_kwargs.pipeline_parallel_size: {number}; engines of one stage are"
            " replayed: record one"
        )


def _graph_sizes(
    kwargs: dict[str, Any], hardware: str | None, engine: EngineConfig
) -> tuple[int, ...]:
    """Batch sizes that the engine captured graphs of: its own list, or vLLM's default."""
    if kwargs.get("enforce_eager") or hardware in (None, CPU):
        return ()
    compilation = kwargs.get("compilation_config")
    own = kwargs.get("cudagraph_capture_sizes") or kwargs.get("cuda_graph_sizes")
    if isinstance(compilation, dict):
        own = own or compilation.get("cudagraph_capture_sizes")
        if str(compilation.get("cudagraph_mode", "")).upper() == "NONE":
            return ()
    if isinstance(own, list) and own and all(type(size) is int and size > 0 for size in own):
        return tuple(sorted(set(own)))
    return graph_sizes(engine.version, engine.max_num_seqs)


def _version_defaults(setup: dict[str, Any]) -> dict[str, Any]:
    """The engine's version and its loop; a set-up without a version is taken for an old one."""
    version = str(setup.get("vllm_version", ""))
    if not is_version(version):
        return {"async_scheduling": False}
    return {"version": version, "async_scheduling": is_async(version, None)}
