"""How many KV cache blocks an engine's memory leaves.

memory_fraction * memory - weights - activations - runtime - communication buffers, divided by the
cache bytes of a block. Where aiconfigurator's tables know model and hardware its estimate is used
(kept on disk: importing the library takes a second), else our own of the same form from the model's
config and the hardware's data sheet.
"""

from pathlib import Path

from dynosim.errors import ConfigError, InfeasibleError
from dynosim.silicon.capacity import Capacity
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.hardware import hardware_sheet
from dynosim.silicon.library_memory import library_memory, overhead_bytes
from dynosim.timing.architecture import (
    ModelEntry,
    ModelShape,
    model_shape,
    require_divisible,
    weight_element_bytes,
)
from dynosim.timing.model import DERIVED, ESTIMATED
from dynosim.timing.protocols import TimedEngine
from dynosim.timing.sheets import GIB

_RUNTIME_BYTES = int(3.5 * GIB)
"""CUDA context, graphs, workspace and allocator slack: what aiconfigurator reserves too."""
_COMMUNICATION_BYTES = {1: 0, 2: 342 * 1024**2}
_COMMUNICATION_BYTES_OF_MORE = 392 * 1024**2
"""NCCL buffers of a rank, by the number of GPUs: what aiconfigurator reserves too."""
_ACTIVATION_WIDTHS = 18
"""Live activation elements per token, in hidden widths (aiconfigurator: 1.375 GiB for Qwen3-32B at
8192 tokens and tensor_parallel 1, which is 17.6 hidden widths of bf16)."""


def auto_capacity(
    engine: TimedEngine, model: str, hardware: str, cache_dir: Path | str | None
) -> Capacity:
    """What one worker's memory leaves.

    Raises: InfeasibleError if the model does not fit; ConfigError if it cannot be counted.
    """
    entry = model_entry(model)
    shape = model_shape(entry)
    require_divisible(shape, engine.tensor_parallel)
    if shape.is_recurrent:
        raise ConfigError(_uncountable(entry, shape))
    memory = library_memory(engine, entry, shape, hardware, cache_dir)
    source = DERIVED
    if memory is None:
        memory, source = _own_estimate(engine, entry, shape, hardware), ESTIMATED
    available = memory["kv_cache_bytes"]
    blocks = available // (memory["kv_bytes_per_token"] * engine.block_size)
    if blocks < 2:
        raise InfeasibleError(_too_big(engine, memory, model, hardware))
    return Capacity(int(blocks), source, memory)


def _uncountable(entry: ModelEntry, shape: ModelShape) -> str:
    return (
        f"engine.num_gpu_blocks: auto does not know the cache of {entry.name}"
        f" ({shape.obstacle}); give the number of blocks that the engine prints"
    )


def _too_big(engine: TimedEngine, memory: dict[str, int], model: str, hardware: str) -> str:
    budget = memory["gpu_bytes"] * engine.gpu_memory_utilization
    return (
        f"{model} does not fit {hardware}: each of {engine.tensor_parallel} GPU(s) would hold"
        f" {_gib(memory['weights_bytes'])} of weights and {_gib(overhead_bytes(memory))} of"
        f" activations and buffers in {_gib(budget)}"
        f" ({engine.gpu_memory_utilization:.0%} of {_gib(memory['gpu_bytes'])});"
        f" raise engine.tensor_parallel above {engine.tensor_parallel}, choose a GPU with more"
        " memory, or quantise (engine.quantization)"
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _weight_bytes(engine: TimedEngine, shape: ModelShape) -> int:
    """Weights on one GPU: experts are spread over all ranks, the rest over those of one."""
    element = weight_element_bytes(engine.quantization or shape.quantisation)
    experts = shape.expert_layers * shape.experts * shape.expert_parameters * element
    elsewhere = experts - experts / engine.data_parallel
    return int(shape.weight_bytes(engine.quantization) - elsewhere) // engine.tensor_parallel


def _own_estimate(
    engine: TimedEngine, entry: ModelEntry, shape: ModelShape, hardware: str
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
        "weights_bytes": _weight_bytes(engine, shape),
        "activations_bytes": activations // tensor_parallel,
        "runtime_overhead_bytes": _RUNTIME_BYTES,
        "comm_overhead_bytes": _COMMUNICATION_BYTES.get(
            tensor_parallel, _COMMUNICATION_BYTES_OF_MORE
        ),
    }
    used = memory["weights_bytes"] + overhead_bytes(memory)
    budget = int(sheet.memory_bytes * engine.gpu_memory_utilization)
    return memory | {"kv_cache_bytes": budget - used}
