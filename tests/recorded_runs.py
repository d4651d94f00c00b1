"""Logs as a real engine would leave them, made by the twin with constants that are known."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.engine.spec import EngineSpec
from dynosim.fit.replay import Engines, replay
from dynosim.records import Trace
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters

TRUE = FittedParameters(
    overhead_ms=2.0,
    weights_ms=8.0,
    per_token_ms=0.04,
    prompt_step_ms=0.5,
    per_decode_ms=0.02,
    per_context_token_ms=8e-5,
    mixed_context_token_ms=3e-5,
    per_pair_ms=1e-6,
)
SETUP: dict[str, Any] = {
    "engine_kwargs": {"max_num_seqs": 32, "max_num_batched_tokens": 1024, "enforce_eager": True}
}


def workload(count: int, *, seed: int = 0, rate_rps: float = 6.0) -> Trace:
    """Poisson arrivals; every third prompt shares four blocks."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(60, 1200, count)
    ids: list[int] = []
    offsets = [0]
    fresh = 100
    for row, tokens in enumerate(inputs.tolist()):
        blocks = -(-tokens // 16)
        shared = list(range(1, 4)) if row % 3 == 0 else []
        ids += shared + list(range(fresh, fresh + blocks - len(shared)))
        fresh += blocks
        offsets.append(len(ids))
    arrivals = np.cumsum(rng.exponential(1000 / rate_rps, count))
    return Trace(
        arrival_ms=arrivals - arrivals[0],
        input_tokens=inputs,
        output_tokens=rng.integers(20, 200, count),
        hash_ids=np.array(ids),
        hash_offsets=np.array(offsets),
        trace_block_size=16,
    )


def engines(*, is_async: bool = False, num_gpu_blocks: int = 20_000) -> Engines:
    """The engine of `SETUP` with ample memory."""
    engine = EngineSpec(
        num_gpu_blocks=num_gpu_blocks,
        max_model_len=2048,
        max_num_seqs=32,
        max_num_batched_tokens=1024,
        async_scheduling=is_async,
    )
    return Engines(engine)


def rows(
    trace: Trace,
    parameters: FittedParameters = TRUE,
    *,
    clock: str = "engine",
    is_async: bool = False,
    jitter_ms: float = 0.0,
    seed: int = 1,
) -> list[dict[str, Any]]:
    """One log row per request; arrivals are logged before their jitter."""
    rng = np.random.default_rng(seed)
    moved = trace.arrival_ms + rng.uniform(0, jitter_ms, len(trace)) if jitter_ms else None
    if moved is not None:
        moved = np.maximum.accumulate(moved)
    model = FittedModel(Fit(parameters=parameters, knee=2.5))
    run = replay(
        trace,
        engines(is_async=is_async),
        model,
        "engine" if clock == "engine" else "clients",
        arrival_ms=moved,
    )
    log = []
    for row in range(len(trace)):
        start, end = trace.hash_offsets[row : row + 2]
        full = int(trace.input_tokens[row]) // 16
        line: dict[str, Any] = {
            "id": f"r{row}",
            "arrival_ms": float(trace.arrival_ms[row]),
            "input_tokens": int(trace.input_tokens[row]),
            "output_tokens": int(trace.output_tokens[row]),
            "hash_ids_16": trace.hash_ids[start:end].tolist()[:full],
        }
        if clock == "engine":
            line |= {"queue_ms": 0.0, "ttft_ms": run.ttft_ms[row], "decode_ms": run.decode_ms[row]}
        else:
            first = line["arrival_ms"] + run.ttft_ms[row]
            line |= {"first_token_ms": first, "last_token_ms": first + run.decode_ms[row]}
        log.append(line)
    return log


def write(path: Path, log: list[dict[str, Any]], setup: dict[str, Any] | None = None) -> Path:
    """JSON lines, gzipped where the name says so, the set-up first."""
    lines = [json.dumps({"setup": SETUP if setup is None else setup}), *map(json.dumps, log)]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
