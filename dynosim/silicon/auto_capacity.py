"""How many KV cache blocks an engine's memory leaves: vLLM's own rule, from config and data sheet.

fraction x total memory - weights - activations - runtime - CUDA graphs, divided by the cache bytes
of a block. With data parallelism the number is each rank's.
"""

from dynosim.engine.vllm.versions import memory_fraction
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.silicon.capacity import Capacity
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.cuda_totals import CUDA_TOTAL_GIB
from dynosim.silicon.engine_memory import activation_bytes, graph_bytes, runtime_bytes
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.architecture import ModelEntry, ModelShape, model_shape, require_divisible
from dynosim.timing.model import DERIVED, ESTIMATED
from dynosim.timing.protocols import TimedEngine
from dynosim.timing.sheets import GIB, HardwareSheet
from dynosim.timing.weights import gpu_weights

_CALIBRATED = ("h100_sxm", "h100_nvl", "h100_pcie", "h200_sxm", "gh200")
"""Hopper GPUs: what formulas leave open was measured on one of them."""

_OVERHEADS = ("activations_bytes", "runtime_bytes", "cuda_graphs_bytes")


def auto_capacity(
    engine: TimedEngine, model: str, hardware: str, *, is_eager: bool = False
) -> Capacity:
    """What one rank's memory leaves; fewer than 2 blocks where the engine does not fit.

    `is_eager`: it neither compiles the model nor captures CUDA graphs.

    Raises: ConfigError if it cannot be counted.
    """
    entry = model_entry(model)
    shape = model_shape(entry)
    require_divisible(shape, engine.tensor_parallel)
    if shape.obstacle is not None:
        raise ConfigError(
            f"engine.num_gpu_blocks: auto does not know the cache of {entry.name}"
            f" ({shape.obstacle}); give the number of blocks that the engine prints"
        )
    sheet = hardware_sheet(hardware)
    memory = _memory(engine, entry, shape, sheet, is_eager=is_eager)
    block_bytes = memory["kv_bytes_per_token"] * engine.block_size
    is_calibrated = sheet.name in _CALIBRATED
    unsure = _unsure_bytes(memory, sheet, is_calibrated)
    blocks = memory["kv_cache_bytes"] // block_bytes
    return Capacity(
        int(blocks),
        DERIVED if is_calibrated else ESTIMATED,
        memory,
        low=int((memory["kv_cache_bytes"] - unsure) // block_bytes),
        high=int((memory["kv_cache_bytes"] + unsure) // block_bytes),
        basis=_basis(sheet, is_calibrated),
    )


def too_big(engine: TimedEngine, capacity: Capacity, model: str, hardware: str) -> InfeasibleError:
    """What to say of an engine that does not fit."""
    memory = capacity.breakdown
    fraction = memory_fraction(engine.version, engine.gpu_memory_utilization)
    nearly = (
        f" It may just fit: within the estimate's margin {capacity.high:,} blocks are possible; if"
        " such an engine starts, give engine.num_gpu_blocks as it prints it."
        if capacity.high >= 2
        else ""
    )
    return InfeasibleError(
        f"{model} does not fit {hardware}: each of {engine.tensor_parallel} GPU(s) would hold"
        f" {_gib(memory['weights_bytes'])} of weights and"
        f" {_gib(sum(memory[name] for name in _OVERHEADS))} of activations and buffers in"
        f" {_gib(memory['gpu_bytes'] * fraction)} ({fraction:.0%} of"
        f" {_gib(memory['gpu_bytes'])}); raise engine.tensor_parallel above"
        f" {engine.tensor_parallel}, choose a GPU with more memory, or quantise"
        f" (engine.quantization).{nearly}"
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _memory(
    engine: TimedEngine,
    entry: ModelEntry,
    shape: ModelShape,
    sheet: HardwareSheet,
    *,
    is_eager: bool,
) -> dict[str, int]:
    """Bytes on one GPU; the cache's are below 0 where the rest does not fit."""
    element = 1.0 if (engine.kv_cache_dtype or "auto").startswith("fp8") else 2.0
    weights = gpu_weights(entry, shape, engine, engine.quantization)
    memory = {
        "gpu_bytes": int(sheet.cuda_total_gib * GIB),
        "kv_bytes_per_token": shape.kv_bytes_per_token(engine.tensor_parallel, element),
        "weights_bytes": sum(weights.values()),
        "activations_bytes": activation_bytes(entry, shape, engine, is_eager=is_eager),
        "runtime_bytes": runtime_bytes(shape, engine, sheet),
        "cuda_graphs_bytes": 0 if is_eager else graph_bytes(shape, engine),
    }
    fraction = memory_fraction(engine.version, engine.gpu_memory_utilization)
    used = memory["weights_bytes"] + sum(memory[name] for name in _OVERHEADS)
    return memory | {"kv_cache_bytes": int(memory["gpu_bytes"] * fraction) - used}


def _unsure_bytes(memory: dict[str, int], sheet: HardwareSheet, is_calibrated: bool) -> int:
    """How far the cache may be from the estimate, in bytes.

    On Hopper twice the largest error of the 13 H100 start-ups (0.04 GiB; 0.03 GiB for what the
    formulas were not tried on), and the spread of published start-ups: a tenth of activations,
    runtime and graphs. Elsewhere nothing was calibrated: a hundredth of the weights, and half of
    what is not weights. A total that nobody published is uncertain by its own derivation.
    """
    overheads = sum(memory[name] for name in _OVERHEADS)
    if is_calibrated:
        unsure = 0.1 * GIB + overheads / 10
    else:
        unsure = 0.1 * GIB + memory["weights_bytes"] / 100 + overheads / 2
    if sheet.name not in CUDA_TOTAL_GIB:
        unsure += 0.3 * GIB
    return int(unsure)


def _basis(sheet: HardwareSheet, is_calibrated: bool) -> str:
    if is_calibrated:
        return "vLLM's memory rule, open terms from start-ups on H100"
    return f"vLLM's memory rule, open terms from start-ups on H100, not tried on {sheet.name}"
