"""How many KV cache blocks an engine has: given, or what its memory leaves (`auto`)."""

from dataclasses import dataclass, replace

from dynosim.engine.room import require_room_for
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.timing.protocols import TimedEngine

GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Capacity:
    """`num_gpu_blocks` as vLLM prints it: one block is a placeholder, one fewer hold tokens."""

    num_gpu_blocks: int
    source: str  # given | derived (on a kind of GPU that it was tried on) | estimated
    breakdown: dict[str, int]  # bytes on one GPU; empty when given by hand
    low: int  # blocks that the engine has at least, as sure as the estimate is
    high: int
    basis: str  # where number and interval come from
    warning: str | None = None  # what must be said of the number

    @property
    def usable_blocks(self) -> int:
        return self.num_gpu_blocks - 1

    def report_keys(self) -> dict[str, str | int]:
        """What a report says of it beside the number."""
        return {
            "kv_capacity_source": self.source,
            "kv_capacity_basis": self.basis,
            "kv_capacity_low_blocks": self.low,
            "kv_capacity_high_blocks": self.high,
        }


def given_capacity(num_gpu_blocks: int) -> Capacity:
    """Blocks that somebody told."""
    return Capacity(num_gpu_blocks, GIVEN, {}, num_gpu_blocks, num_gpu_blocks, "as given")


def resolve_num_gpu_blocks(
    engine: TimedEngine, *, model: str | None, hardware: str | None
) -> Capacity:
    """The KV cache of one rank of a worker.

    Raises: InfeasibleError if the model, or one sequence of `max_model_len`, does not fit;
    ConfigError if `auto` lacks a model or hardware, or does not know how to count.
    """
    if isinstance(engine.num_gpu_blocks, int):
        capacity = given_capacity(engine.num_gpu_blocks)
        _require_one_request(engine, capacity, model or "the model", hardware or "the GPU")
        return capacity
    model, hardware = _both(model, hardware)
    from dynosim.silicon.auto_capacity import auto_capacity, too_big

    capacity = auto_capacity(engine, model, hardware)
    if capacity.num_gpu_blocks < 2:
        raise too_big(engine, capacity, model, hardware)
    _require_one_request(engine, capacity, model, hardware)
    return capacity


def capacity_of_running(
    engine: TimedEngine,
    *,
    model: str | None,
    hardware: str | None,
    longest_tokens: int = 1,
    is_eager: bool = False,
) -> Capacity:
    """The KV cache of an engine that did run, as a log or a measurement shows.

    Where the estimate has no room for one request of `max_model_len` (of `longest_tokens`, the
    longest that was seen, if that is not stated), the engine had at least that much: it is taken,
    with a warning: vLLM refuses to start with less.

    Raises: ConfigError if there is no model or hardware, or the cache cannot be counted.
    """
    if isinstance(engine.num_gpu_blocks, int):
        return given_capacity(engine.num_gpu_blocks)
    model, hardware = _both(model, hardware)
    from dynosim.silicon.auto_capacity import auto_capacity

    capacity = auto_capacity(engine, model, hardware, is_eager=is_eager)
    longest = max(engine.max_model_len or 0, longest_tokens)
    least = -(-longest // engine.block_size) + 1
    if capacity.num_gpu_blocks >= least:
        return replace(capacity, low=max(capacity.low, least))
    taken = max(capacity.low, least)
    return replace(
        capacity,
        num_gpu_blocks=taken,
        low=taken,
        high=max(capacity.high, taken),
        warning=(
            f"KV capacity: by our estimate {model} leaves {max(capacity.num_gpu_blocks, 0):,}"
            f" blocks on {hardware}, yet the engine ran: {taken:,} are taken, the least that hold"
            f" one request of {longest:,} tokens; the real number may be far higher (state it as"
            " the engine prints it)"
        ),
    )


def _both(model: str | None, hardware: str | None) -> tuple[str, str]:
    if model is None or hardware is None:
        missing = "model" if model is None else "hardware"
        raise ConfigError(
            f"engine.num_gpu_blocks: auto needs `{missing}`; state it, or give a number of blocks"
        )
    return model, hardware


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
        room = (capacity.high - 1) * engine.block_size
        if room >= engine.max_model_len:
            remedy += (
                f". It may just fit: within the estimate's margin there is room for {room:,}"
                " tokens; if such an engine starts, give engine.num_gpu_blocks as it prints it"
            )
    require_room_for(
        engine.max_model_len,
        usable_blocks=capacity.usable_blocks,
        block_size=engine.block_size,
        where=where,
        remedy=remedy,
    )
