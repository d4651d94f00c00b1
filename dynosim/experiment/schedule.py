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
from dynosim.records import FloatArray, Trace
from dynosim.workload.writers import whole_file


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
    """One row per request, by due time; without due times in the trace's order."""
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
        yield row | ({"hash_ids": ids.tolist()} if len(ids) else {})


def _due_ms(config: RunConfig, trace: Trace) -> FloatArray | None:
    """When each request is sent; None in a closed loop, where that is the client's business."""
    if config.workload.concurrency is not None:
        return None
    if trace.previous_turn is None:
        return trace.arrival_ms
    return run(config, trace=trace).result.requests.arrival_ms
