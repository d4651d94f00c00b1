"""Agentic Mooncake, version 2: a header, then calls that name the calls they wait for.

The header states the block size. A call waits for the dispatch or the completion of others of its
play and comes `delay_ms` after the last of them, not before `not_before_ms` after its play's first
call. Hash ids are exactly as many as the prompt has blocks, the last one perhaps part-full.
"""

from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Literal

import msgspec

from dynosim.errors import TraceError
from dynosim.records import Trace
from dynosim.workload.calls import RecordedCall, trace_of_calls
from dynosim.workload.columns import Awaited
from dynosim.workload.recorded_lines import RecordedLines, require_block_size

SCHEMA, VERSION = "dynamo.agentic_mooncake", 2


class _Dependency(msgspec.Struct, gc=False, frozen=True):
    request_id: str
    trigger: Literal["dispatch", "completion"] = "completion"
    delay_ms: float = 0.0
    relation: Literal["sequence", "spawn", "join", "replay_barrier"] = "sequence"


class _Line(msgspec.Struct, gc=False, frozen=True):
    """The header, or a call: told apart by `schema`."""

    schema: str | None = None
    version: int | None = None
    block_size: int | None = None
    request_id: str | None = None
    play_id: str = ""
    session_id: str = ""
    input_length: int = 0
    output_length: int = 0
    hash_ids: list[int] = []
    not_before_ms: float = 0.0
    priority: int = 0
    dependencies: list[_Dependency] = []


def read_agentic_mooncake(path: Path, *, block_tokens: int | None, skip_bad_lines: bool) -> Trace:
    """The trace of an agentic Mooncake file. Raises: TraceError."""
    rows = RecordedLines(path, _Line, skip_bad_lines=skip_bad_lines)
    size: int | None = None
    calls: list[RecordedCall] = []
    plays: dict[str, RecordedCall] = {}  # the first call of each that waits for none
    for line, row in rows:
        if size is None:
            size = _block_size(row, block_tokens, str(path), line)
        elif _is_good(rows, line, row, size):
            calls.append(_call(line, row, plays))
    if size is None and not rows.has_problems:
        raise TraceError("no requests: the file has no row", path=str(path))
    rows.finish()
    trace = trace_of_calls(
        calls, block_tokens=size or 1, path=str(path), waits_field="dependencies"
    )
    return replace(trace, skipped_lines=rows.num_skipped)


def _block_size(row: _Line, declared: int | None, path: str, line: int) -> int:
    if row.schema != SCHEMA or row.block_size is None:
        raise TraceError(
            f'expected the header {{"schema": "{SCHEMA}", "version": {VERSION}, '
            '"block_size": ...} first (rows of version 1 have none and are not read)',
            path=path,
            line=line,
        )
    if row.version != VERSION:
        raise TraceError(
            f"expected {VERSION}, got {row.version}", path=path, line=line, field="version"
        )
    require_block_size(row.block_size, declared, path=path, line=line)
    return row.block_size


def _is_good(rows: RecordedLines[_Line], line: int, row: _Line, size: int) -> bool:
    if row.request_id is None:
        rows.refuse(line, "request_id", "missing field")
        return False
    if not rows.are_lengths(line, input_length=row.input_length, output_length=row.output_length):
        return False
    needed = -(-row.input_length // size)
    if len(row.hash_ids) != needed:
        rows.refuse(
            line,
            "hash_ids",
            f"{len(row.hash_ids)} ids, but {row.input_length} tokens are {needed} blocks of {size}",
        )
        return False
    times = [row.not_before_ms, *(one.delay_ms for one in row.dependencies)]
    if not all(isfinite(ms) and ms >= 0 for ms in times):
        rows.refuse(line, "not_before_ms", "delays and times are at least 0 ms")
        return False
    return True


def _call(line: int, row: _Line, plays: dict[str, RecordedCall]) -> RecordedCall:
    assert row.request_id is not None
    waits = [
        Awaited(one.request_id, one.delay_ms, one.trigger == "dispatch") for one in row.dependencies
    ]
    call = RecordedCall(
        row.request_id,
        line,
        row.input_length,
        row.output_length,
        row.hash_ids,
        waits=waits,
        session=row.session_id,
        priority=row.priority,
    )
    if not waits:
        call.arrival_ms = row.not_before_ms
        first = plays.setdefault(row.play_id, call)
        later_ms = row.not_before_ms - first.arrival_ms
    else:
        play = plays.get(row.play_id)
        later_ms = 0.0 if play is None else row.not_before_ms - play.arrival_ms
    first_name = plays[row.play_id].name if row.play_id in plays else call.name
    if later_ms > 0 and first_name != call.name and row.play_id:
        call.waits.append(Awaited(first_name, later_ms, True))
    return call
