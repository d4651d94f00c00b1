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
    version: str | None,
    num_gpu_blocks: int | None,
    source: str,
) -> Twin:
    """Its twin, with the KV blocks that are predicted unless they are given.

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
        "cluster": {"workers": deployment.num_engines},
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


def setup_words(deployment: Deployment, version: str) -> dict[str, str]:
    """What ran on what, for the matrix."""
    layout = f"TP {deployment.engine.tensor_parallel}"
    if deployment.num_engines > 1:
        layout += f" x {deployment.num_engines}"
    return {
        "model": deployment.model or "",
        "hardware": deployment.hardware or "",
        "version": version,
        "layout": layout,
    }
