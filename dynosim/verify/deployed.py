"""The twin of a deployment that a recording's set-up tells."""

from dataclasses import replace

from dynosim.fit.deployment import Deployment
from dynosim.fit.measurements import Clock
from dynosim.records import Trace
from dynosim.verify.twin import Twin, blind_twin


def deployed_twin(
    deployment: Deployment,
    clock: Clock,
    *,
    trace: Trace,
    workers: int,
    version: str | None,
    num_gpu_blocks: int | None,
    source: str,
) -> Twin:
    """Its twin, so many equal ones behind a balancer, with the KV blocks that are predicted unless
    they are given.

    Raises: ConfigError, InfeasibleError.
    """
    engine = deployment.engine.model_dump(exclude_unset=True)
    engine["num_gpu_blocks"] = "auto" if num_gpu_blocks is None else num_gpu_blocks
    if version is not None:
        engine["version"] = version
    data = {
        "model": deployment.model,
        "hardware": deployment.hardware,
        "workload": {"trace": source},
        "engine": engine,
        "cluster": {"workers": workers},
        "router": {"mode": "least-loaded"},
    }
    longest = int((trace.input_tokens + trace.output_tokens).max())
    twin = blind_twin(
        data,
        clock,
        source=source,
        longest_tokens=longest,
        graph_sizes=deployment.graph_sizes,
    )
    taken = tuple(
        f"{key} is not recorded: {getattr(deployment.engine, key)} is taken"
        for key in deployment.assumed
    )
    return replace(twin, notes=(*taken, *twin.notes))


def setup_words(deployment: Deployment, version: str, workers: int) -> dict[str, str]:
    """What ran on what, for the matrix."""
    engine = deployment.engine
    layout = f"TP {engine.tensor_parallel}"
    layout += f" DP {engine.data_parallel}" if engine.data_parallel > 1 else ""
    layout += " EP" if engine.expert_parallel else ""
    layout += f" x {workers}" if workers > 1 else ""
    return {
        "model": deployment.model or "",
        "hardware": deployment.hardware or "",
        "version": version,
        "layout": layout,
    }
