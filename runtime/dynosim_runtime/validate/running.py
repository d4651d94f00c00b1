"""The plan of an engine that runs, although our estimate says that it does not fit."""

from dynosim.config import RunConfig
from dynosim.errors import InfeasibleError
from dynosim.records import Trace
from dynosim.silicon import capacity_of_running, resolve_num_gpu_blocks
from dynosim_runtime.validate.judge import with_capacity


def plan_of_running(config: RunConfig, trace: Trace) -> tuple[RunConfig, list[str]]:
    """The plan to predict, and what must be said of it: where the memory estimate has no room for
    one request, the KV blocks that the engine has at least.

    Raises: ConfigError if `auto` lacks a model or hardware, or does not know how to count.
    """
    engine, model, hardware = config.engine, config.model_source, config.hardware_source
    if engine.num_gpu_blocks != "auto":
        return config, []
    try:
        resolve_num_gpu_blocks(engine, model=model, hardware=hardware)
    except InfeasibleError:
        longest = int((trace.input_tokens + trace.output_tokens).max()) + 1
        capacity = capacity_of_running(
            engine, model=model, hardware=hardware, longest_tokens=longest
        )
        said = [] if capacity.warning is None else [capacity.warning]
        return with_capacity(config, capacity.num_gpu_blocks), said
    return config, []
