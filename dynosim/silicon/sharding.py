"""How the experts of a model are spread over a worker's GPUs, in aiconfigurator's words."""

from dynosim.timing.architecture import ModelShape
from dynosim.timing.protocols import TimedEngine


def expert_sharding(shape: ModelShape, engine: TimedEngine) -> list[dict[str, int]]:
    """Ways to ask for the engine's layout, the true one first, then what may stand in for it.

    vLLM splits every expert over all tensor x data parallel GPUs, or with expert parallelism gives
    whole ones to each. Where the tables have no parts of experts, whole ones stand in.
    """
    if not shape.experts:
        return [{}]
    gpus = engine.tensor_parallel * engine.data_parallel
    ranks = {"attention_dp_size": engine.data_parallel} if engine.data_parallel > 1 else {}
    whole = {"moe_tp_size": 1, "moe_ep_size": gpus} | ranks
    if engine.expert_parallel:
        return [whole]
    parts = {"moe_tp_size": gpus, "moe_ep_size": 1} | ranks
    return [parts] if gpus == 1 else [parts, whole]
