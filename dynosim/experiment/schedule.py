"""A workload as rows that AIPerf sends: Mooncake's format, every request by itself.

AIPerf would put a session's earlier turns before each prompt, where our prompts hold them already.
So turns go as requests of their own, due when the twin sends them.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dynosim.build.workload import load_trace
from dynosim.config.schema import RunConfig
from dynosim.experiment.run import run
from dynosim.experiment.warm_up import without_warm_up
from dynosim.records import FloatArray, Trace
from dynosim.workload.writers import whole_file

BLOCK_TOKENS_MAX, BLOCK_TOKENS_MIN = 64, 16
"""Prompts share their beginnings to within so many tokens; smaller blocks make longer rows."""


def write_schedule(config: RunConfig, path: Path) -> int:
    """Write the rows of the configured workload; returns how many. A name in `.gz` is gzipped.

    Raises: TraceError, ConfigError, InfeasibleError.
    """
    trace = load_trace(config)
    rows = schedule_rows(trace, _due_ms(config, trace))
    encoder = msgspec.json.Encoder()
    with whole_file(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
                packed.write(encoder.encode_lines(rows))
        else:
            file.write(encoder.encode_lines(rows))
    return len(trace)


def schedule_rows(trace: Trace, due_ms: FloatArray | None) -> Iterator[dict[str, Any]]:
    """One row per request, by due time; without due times in the trace's order.

    To AIPerf an id is always as many tokens. So a block of the trace becomes several smaller ones,
    and of the prompt's end, which a later turn may go on with, only whole ones are named.
    """
    block_tokens = row_block_tokens(trace.trace_block_size)
    num_parts = trace.trace_block_size // block_tokens
    order = np.arange(len(trace)) if due_ms is None else np.argsort(due_ms, kind="stable")
    for index in order.tolist():
        row: dict[str, Any] = (
            {} if due_ms is None else {"timestamp": round(float(due_ms[index]), 3)}
        )
        row |= {
            "input_length": int(trace.input_tokens[index]),
            "output_length": int(trace.output_tokens[index]),
        }
        ids = trace.hash_ids[trace.hash_offsets[index] : trace.hash_offsets[index + 1]]
        parts = (ids[:, None] * num_parts + np.arange(num_parts)).ravel()
        parts = parts[: int(trace.input_tokens[index]) // block_tokens]
        yield row | ({"hash_ids": parts.tolist()} if len(parts) else {})


def row_block_tokens(trace_block_tokens: int) -> int:
    """Prompt tokens behind one hash id of a row: a divisor of those behind one of the trace's."""
    sizes = range(BLOCK_TOKENS_MAX, BLOCK_TOKENS_MIN - 1, -1)
    return next((size for size in sizes if trace_block_tokens % size == 0), trace_block_tokens)


def _due_ms(config: RunConfig, trace: Trace) -> FloatArray | None:
    """When each request is sent; None in a closed loop, where that is the client's business."""
    if config.workload.concurrency is not None:
        return None
    if trace.previous_turn is None:
        return trace.arrival_ms
    return run(without_warm_up(config), trace=trace).result.requests.arrival_ms
