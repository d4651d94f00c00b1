"""How many KV cache blocks an engine has: given, or what its memory leaves.

`auto` takes memory_fraction * memory - weights - activations - runtime - communication buffers,
divided by the cache bytes of a block. Where aiconfigurator's tables know model and hardware its
estimate is used (kept on disk: importing the library takes a second), else our own of the same
form from the model's config and the hardware's data sheet.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError, InfeasibleError
from dynosim.timing.aiconfigurator import expert_sharding, quantisation_options
from dynosim.timing.architecture import ModelShape, model_shape, require_divisible
from dynosim.timing.cache import cache_folder, cache_key, load_or_build
from dynosim.timing.catalogue import ModelEntry, core_folder, core_version, model_entry
from dynosim.timing.hardware import GIB, hardware_sheet
from dynosim.timing.model import DERIVED, ESTIMATED
from dynosim.timing.protocols import EngineSettings

GIVEN = "given"
_ESTIMATE_FORMAT = 1

_RUNTIME_BYTES = int(3.5 * GIB)
"""CUDA context, graphs, workspace and allocator slack: what aiconfigurator reserves too."""
_COMMUNICATION_BYTES = 392 * 1024**2
"""NCCL buffers of a rank with peers: 342 MiB for two GPUs, 392 MiB for more."""
_ACTIVATION_WIDTHS = 18
"""Live activation elements per token, in hidden widths (aiconfigurator: 1.375 GiB for Qwen3-32B at
8192 tokens and tensor_parallel 1, which is 17.6 hidden widths of bf16)."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """`num_gpu_blocks` as vLLM prints it: one block is a placeholder, one fewer hold tokens."""

    num_gpu_blocks: int
    source: str  # given | derived (from aiconfigurator's memory model) | estimated
    breakdown: dict[str, int]  # bytes on one GPU; empty when given by hand

    @property
    def usable_blocks(self) -> int:
        return self.num_gpu_blocks - 1


def resolve_num_gpu_blocks(
    engine: EngineSettings,
    *,
    model: str | None,
    hardware: str | None,
    cache_dir: Path | str | None = None,
) -> Capacity:
    """The KV cache of one worker.

    Raises: InfeasibleError if the model, or one sequence of `max_model_len`, does not fit;
    ConfigError if `auto` lacks a model or hardware, or does not know how to count.
    """
    if isinstance(engine.num_gpu_blocks, int):
        capacity = Capacity(engine.num_gpu_blocks, GIVEN, {})
        _require_one_sequence(engine, capacity, model or "the model", hardware or "the GPU")
        return capacity
    if model is None or hardware is None:
        missing = "model" if model is None else "hardware"
        raise ConfigError(
            f"engine.num_gpu_blocks: auto needs `{missing}`; state it, or give a number of blocks"
        )
    entry = model_entry(model)
    shape = model_shape(entry)
    require_divisible(shape, engine.tensor_parallel)
    if shape.is_recurrent:
        raise ConfigError(_uncountable(entry, shape))
    memory = _library_estimate(engine, entry, shape, hardware, cache_dir)
    source = DERIVED
    if memory is None:
        memory, source = _own_estimate(engine, entry, shape, hardware), ESTIMATED
    available = memory["kv_cache_bytes"]
    blocks = available // (memory["kv_bytes_per_token"] * engine.block_size)
    if blocks < 2:
        raise InfeasibleError(_too_big(engine, memory, model, hardware))
    capacity = Capacity(int(blocks), source, memory)
    _require_one_sequence(engine, capacity, model, hardware)
    return capacity


def _uncountable(entry: ModelEntry, shape: ModelShape) -> str:
    return (
        f"engine.num_gpu_blocks: auto does not know the cache of {entry.name}"
        f" ({shape.obstacle}); give the number of blocks that the engine prints"
    )


def _too_big(engine: EngineSettings, memory: dict[str, int], model: str, hardware: str) -> str:
    budget = memory["gpu_bytes"] * engine.gpu_memory_utilization
    return (
        f"{model} does not fit {hardware}: each of {engine.tensor_parallel} GPU(s) would hold"
        f" {_gib(memory['weights_bytes'])} of weights and {_gib(_other_bytes(memory))} of"
        f" activations and buffers in {_gib(budget)}"
        f" ({engine.gpu_memory_utilization:.0%} of {_gib(memory['gpu_bytes'])});"
        f" raise engine.tensor_parallel above {engine.tensor_parallel}, choose a GPU with more"
        " memory, or quantise (engine.quantization)"
    )


def _other_bytes(memory: dict[str, int]) -> int:
    names = ("activations_bytes", "runtime_overhead_bytes", "comm_overhead_bytes")
    return sum(memory[name] for name in names)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _require_one_sequence(
    engine: EngineSettings, capacity: Capacity, model: str, hardware: str
) -> None:
    if capacity.num_gpu_blocks < 2:
        raise InfeasibleError(
            f"engine.num_gpu_blocks: {capacity.num_gpu_blocks} leaves no usable block"
            " (one is a placeholder); give at least 2"
        )
    if engine.max_model_len is None:
        return
    tokens = capacity.usable_blocks * engine.block_size
    if tokens < engine.max_model_len:
        raise InfeasibleError(
            f"{model} on {hardware} with tensor_parallel {engine.tensor_parallel}: the KV cache"
            f" holds {tokens:,} tokens, fewer than one sequence of max_model_len"
            f" {engine.max_model_len:,}; raise engine.tensor_parallel or"
            " engine.gpu_memory_utilization, or lower engine.max_model_len"
        )


def _library_estimate(
    engine: EngineSettings,
    entry: ModelEntry,
    shape: ModelShape,
    hardware: str,
    cache_dir: Path | str | None,
) -> dict[str, int] | None:
    """Bytes by aiconfigurator's memory model; None where it knows model or hardware not.

    It is asked for 100 % of the memory, so that one answer serves every memory fraction and
    tells weights from a cache that would be negative.
    """
    folder = core_folder()
    if folder is None or not (folder / "systems" / f"{hardware}.yaml").is_file():
        return None
    arguments: dict[str, Any] = {
        "system": hardware,
        "backend": "vllm",
        "backend_version": "current",
        "max_num_tokens": engine.max_num_batched_tokens,
        "max_batch_size": engine.max_num_seqs,
        "tp_size": engine.tensor_parallel,
        **quantisation_options(shape, engine),
        **expert_sharding(shape, engine.tensor_parallel)[0],
    }
    identity = {
        **arguments,
        "model": entry.fingerprint,
        "core": core_version(),
        "format": _ESTIMATE_FORMAT,
    }
    path = cache_folder(cache_dir) / f"memory-{cache_key(identity)}.json"
    answer = load_or_build(
        path,
        load=_load_estimate,
        build=lambda: _ask_library(entry, arguments),
        save=lambda value, file: _save_estimate(value, file),
    )
    if answer["gpu_bytes"] == 0:
        return None
    budget = int(answer["gpu_bytes"] * engine.gpu_memory_utilization)
    used = answer["weights_bytes"] + _other_bytes(answer)
    return answer | {"kv_cache_bytes": budget - used}


_ESTIMATE_KEYS = (
    "gpu_bytes",
    "kv_bytes_per_token",
    "weights_bytes",
    "activations_bytes",
    "runtime_overhead_bytes",
    "comm_overhead_bytes",
)


def _load_estimate(path: Path) -> dict[str, int]:
    data = json.loads(path.read_bytes())
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return {key: int(data[key]) for key in _ESTIMATE_KEYS}


def _save_estimate(value: dict[str, int], path: Path) -> None:
    path.write_text(json.dumps(value))


def _ask_library(entry: ModelEntry, arguments: dict[str, Any]) -> dict[str, int]:
    """The library's memory model; all zero where it has none for this engine.

    A GPU capacity far beyond any real one is passed, because the library gives no breakdown when
    nothing is left for the cache.
    """
    from dynosim.timing.silicon_extract import model_folder, quiet

    nothing = dict.fromkeys(_ESTIMATE_KEYS, 0)
    try:
        with quiet(), model_folder(entry) as folder:
            from aiconfigurator_core.sdk import estimate_kv_cache
            from aiconfigurator_core.sdk.perf_database import get_database

            database = get_database(
                arguments["system"], arguments["backend"], arguments["backend_version"]
            )
            if database is None:
                return nothing
            capacity = int(database.system_spec["gpu"]["mem_capacity"])
            answer = estimate_kv_cache(
                folder,
                memory_fraction_kind="of_total",
                memory_fraction_value=1.0,
                gpu_memory_capacity_bytes_override=2**46,
                **arguments,
            )
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError):
        # Not covered (each release says so with another exception): our own estimate takes over.
        return nothing
    if answer.get("source") != "native" or not answer["memory_breakdown"]:
        return nothing
    parts = answer["memory_breakdown"]
    return {
        "gpu_bytes": capacity,
        "kv_bytes_per_token": int(answer["kv_size_per_token_bytes"]),
        **{key: int(parts[key]) for key in _ESTIMATE_KEYS[2:]},
    }


def _own_estimate(
    engine: EngineSettings, entry: ModelEntry, shape: ModelShape, hardware: str
) -> dict[str, int]:
    if shape.obstacle is not None:
        raise ConfigError(_uncountable(entry, shape))
    sheet = hardware_sheet(hardware)
    tensor_parallel = engine.tensor_parallel
    element = 1.0 if (engine.kv_cache_dtype or "auto").startswith("fp8") else 2.0
    activations = engine.max_num_batched_tokens * shape.hidden * 2 * _ACTIVATION_WIDTHS
    memory = {
        "gpu_bytes": sheet.memory_bytes,
        "kv_bytes_per_token": shape.kv_bytes_per_token(tensor_parallel, element),
        "weights_bytes": shape.weight_bytes(engine.quantization) // tensor_parallel,
        "activations_bytes": activations // tensor_parallel,
        "runtime_overhead_bytes": _RUNTIME_BYTES,
        "comm_overhead_bytes": _COMMUNICATION_BYTES if tensor_parallel > 1 else 0,
    }
    used = memory["weights_bytes"] + _other_bytes(memory)
    budget = int(sheet.memory_bytes * engine.gpu_memory_utilization)
    return memory | {"kv_cache_bytes": budget - used}
