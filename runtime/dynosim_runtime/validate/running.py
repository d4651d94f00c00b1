"""The plan of an engine that runs, although our estimate says that it does not fit."""

from dynosim.config import RunConfig
from dynosim.records import Trace
from dynosim.silicon import capacity_of_running
from dynosim.silicon.catalogue import model_entry
from dynosim.timing.architecture import context_length


def plan_of_running(config: RunConfig, trace: Trace) -> tuple[RunConfig, list[str]]:
    """The plan to predict, and what must be said of it: where the memory estimate has no room for
    one request, the KV blocks that the engine has at least, and as much context as they hold.

    Raises: ConfigError if `auto` lacks a model or hardware, or does not know how to count.
    """
    engine, model, hardware = config.engine, config.model_source, config.hardware_source
    if engine.num_gpu_blocks != "auto":
        return config, []
    longest = int((trace.input_tokens + trace.output_tokens).max()) + 1
    capacity = capacity_of_running(engine, model=model, hardware=hardware, longest_tokens=longest)
    room = capacity.usable_blocks * engine.block_size
    context = engine.max_model_len
    if context is None and model is not None:
        context = min(room, context_length(model_entry(model).config) or room)
    if capacity.warning is None and context != room:
        return config, []
    update = {"num_gpu_blocks": capacity.num_gpu_blocks, "max_model_len": context}
    said = capacity.warning or f"max_model_len: the {room:,} tokens that the cache holds"
    return config.model_copy(update={"engine": engine.model_copy(update=update)}), [said]
