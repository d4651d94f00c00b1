"""A measured load as a log that `dynosim calibrate --measurements` reads."""

from typing import Any

import orjson

from dynosim.config import RunConfig
from dynosim.fit.deployment import vllm_arguments
from dynosim.records import Trace
from dynosim_runtime.measure.load import LoadRun


def measurement_log(
    config: RunConfig, trace: Trace, run: LoadRun, *, num_gpu_blocks: int | None = None
) -> bytes | None:
    """JSON lines, the engine's set-up first; None where such a log would not be true.

    That is: with several workers (one engine is fitted), or if a request failed or was cut off.
    `num_gpu_blocks` is what the engine tells, for plans that leave it to the engine.
    """
    is_whole = all(record.status == "completed" for record in run.records)
    if config.cluster.workers != 1 or not is_whole or len(run.records) != len(trace):
        return None
    rows: list[dict[str, Any]] = [
        {
            "arrival_ms": record.arrival_ms,
            "input_tokens": record.input_tokens,
            "output_tokens": record.output_tokens,
            "first_token_ms": record.first_token_ms,
            "last_token_ms": record.finish_ms,
            f"hash_ids_{trace.trace_block_size}": _full_blocks(trace, index),
        }
        for index, record in enumerate(run.records)
    ]
    # Turns of a session come when their predecessors have ended, not in the order of the trace.
    rows.sort(key=lambda row: float(row["arrival_ms"]))
    lines = [orjson.dumps(row) for row in ({"setup": _setup(config, num_gpu_blocks)}, *rows)]
    return b"\n".join(lines) + b"\n"


def _setup(config: RunConfig, num_gpu_blocks: int | None) -> dict[str, Any]:
    engine = config.engine
    setup: dict[str, Any] = {"engine_kwargs": vllm_arguments(engine), "name": config.name}
    if engine.num_gpu_blocks == "auto" and num_gpu_blocks is not None:
        setup["num_gpu_blocks"] = num_gpu_blocks
    if isinstance(config.hardware, str):
        setup["hardware"] = config.hardware
    return setup


def _full_blocks(trace: Trace, index: int) -> list[int]:
    """Ids of the blocks that the prompt fills."""
    if not len(trace.hash_ids):
        return []
    first = int(trace.hash_offsets[index])
    count = int(trace.input_tokens[index]) // trace.trace_block_size
    ids: list[int] = trace.hash_ids[first : first + count].tolist()
    return ids
