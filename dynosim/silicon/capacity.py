"""How many KV cache blocks an engine has: given, or what its memory leaves (`auto`)."""

from dataclasses import dataclass
from pathlib import Path

from dynosim.engine.room import require_room_for
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.timing.protocols import TimedEngine

GIVEN = "given"


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
    engine: TimedEngine,
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
        _require_one_request(engine, capacity, model or "the model", hardware or "the GPU")
        return capacity
    if model is None or hardware is None:
        missing = "model" if model is None else "hardware"
        raise ConfigError(
            f"engine.num_gpu_blocks: auto needs `{missing}`; state it, or give a number of blocks"
        )
    from dynosim.silicon.auto_capacity import auto_capacity

    capacity = auto_capacity(engine, model, hardware, cache_dir)
    _require_one_request(engine, capacity, model, hardware)
    return capacity


def _require_one_request(
    engine: TimedEngine, capacity: Capacity, model: str, hardware: str
) -> None:
    if capacity.num_gpu_blocks < 2:
        raise InfeasibleError(
            f"engine.num_gpu_blocks: {capacity.num_gpu_blocks} leaves no usable block"
            " (one is a placeholder); give at least 2"
        )
    if engine.max_model_len is None:
        return
    where, remedy = "engine.num_gpu_blocks", "raise it, or lower engine.max_model_len"
    if engine.num_gpu_blocks == "auto":
        where = f"{model} on {hardware} with tensor_parallel {engine.tensor_parallel}"
        remedy = (
            "raise engine.tensor_parallel or engine.gpu_memory_utilization, or lower"
            " engine.max_model_len"
        )
    require_room_for(
        engine.max_model_len,
        usable_blocks=capacity.usable_blocks,
        block_size=engine.block_size,
        where=where,
        remedy=remedy,
    )
