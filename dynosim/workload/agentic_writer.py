"""`Trace` into agentic Mooncake, version 2: what the replay of others reads as a graph of calls."""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from dynosim.records import NO_REQUEST, Trace
from dynosim.workload.agentic_mooncake import SCHEMA, VERSION
from dynosim.workload.trees import tree_numbers

MODEL = "model"
"""What every call names: a replay is told its own model."""


def agentic_lines(trace: Trace) -> Iterator[dict[str, Any]]:
    """The header, then a call for each row; a tree is a play."""
    source = {"format": "dynosim", "digest": trace.source or "trace"}
    yield {
        "schema": SCHEMA, "version": VERSION, "block_size": trace.trace_block_size,
        "hash_id_scope": "local", "source": source,
    }  # fmt: skip
    names = trace.request_ids or tuple(map(str, range(len(trace))))
    plays = tree_numbers(trace).tolist()
    sessions = trace.session_ids
    ids, ends = trace.hash_ids.tolist(), trace.hash_offsets.tolist()
    for row, waits in enumerate(_waits(trace)):
        play = f"play-{plays[row]}"
        own = play if sessions is None else sessions[row] or play
        call = {
            "request_id": names[row],
            "play_id": play,
            "session_id": own,
            "model": MODEL,
            "input_length": int(trace.input_tokens[row]),
            "output_length": int(trace.output_tokens[row]),
            "hash_ids": ids[ends[row] : ends[row + 1]],
            "not_before_ms": 0.0 if waits else float(trace.arrival_ms[row]),
            "dependencies": [
                {
                    "request_id": names[other],
                    "trigger": "dispatch" if from_start else "completion",
                    "delay_ms": delay_ms,
                    "relation": _relation(trace, row, other, from_start, len(waits)),
                }
                for other, delay_ms, from_start in waits
            ],
        }
        if trace.priority is not None:
            call["priority"] = int(trace.priority[row])
        yield call


def agentic_blocks(trace: Trace, rows_at_a_time: int) -> Iterator[bytes]:
    """The lines as text."""
    encoder = msgspec.json.Encoder()
    lines: list[dict[str, Any]] = []
    for line in agentic_lines(trace):
        lines.append(line)
        if len(lines) == rows_at_a_time:
            yield encoder.encode_lines(lines)
            lines = []
    yield encoder.encode_lines(lines)


def _waits(trace: Trace) -> Iterator[list[tuple[int, float, bool]]]:
    """What each row waits for: which, how long after it, and whether from its start."""
    size, graph = len(trace), trace.dependencies
    previous = np.full(size, NO_REQUEST) if trace.previous_turn is None else trace.previous_turn
    delay_ms = np.zeros(size) if trace.delay_ms is None else trace.delay_ms
    starts = [0] * (size + 1) if graph is None else graph.offsets.tolist()
    for row, (before, pause_ms) in enumerate(
        zip(previous.tolist(), delay_ms.tolist(), strict=True)
    ):
        if graph is not None and starts[row] < starts[row + 1]:
            edges = range(starts[row], starts[row + 1])
            yield [
                (int(graph.rows[e]), float(graph.delay_ms[e]), bool(graph.from_start[e]))
                for e in edges
            ]
        else:
            yield [] if before == NO_REQUEST else [(before, pause_ms, False)]


def _relation(trace: Trace, row: int, other: int, from_start: bool, num_waits: int) -> str:
    """What the format calls it that one call waits for another."""
    sessions = trace.session_ids
    if from_start:
        return "spawn"
    if sessions is None or sessions[row] == sessions[other]:
        return "sequence"
    return "join" if num_waits > 1 else "spawn"
