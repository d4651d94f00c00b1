"""Qwen-Bailian's anonymous traces: chats whose turns name their parent, blocks of 16 tokens.

A turn waits for the end of its parent and then as long as the two arrivals lie apart, as a session
of any other trace does whose delays are not stated. The kind of a request (text, search, image,
file) is its class.
"""

from dataclasses import replace
from math import isfinite
from pathlib import Path

import msgspec

from dynosim.records import Trace
from dynosim.workload.calls import RecordedCall, trace_of_calls
from dynosim.workload.columns import Awaited
from dynosim.workload.recorded_lines import RecordedLines, require_block_size

BLOCK_TOKENS = 16
MS_PER_S = 1000.0
NO_PARENT = -1


class _Turn(msgspec.Struct, gc=False, frozen=True):
    """A request. Times in seconds."""

    chat_id: int
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]
    parent_chat_id: int = NO_PARENT
    type: str = ""


def read_bailian(path: Path, *, block_tokens: int | None, skip_bad_lines: bool) -> Trace:
    """The trace of a Bailian file. Raises: TraceError."""
    require_block_size(BLOCK_TOKENS, block_tokens, path=str(path), line=0)
    rows = RecordedLines(path, _Turn, skip_bad_lines=skip_bad_lines)
    turns: dict[int, RecordedCall] = {}
    for line, row in rows:
        if not _is_good(rows, line, row):
            continue
        call = _call(line, row, turns.get(row.parent_chat_id))
        if row.parent_chat_id != NO_PARENT and row.parent_chat_id not in turns:
            rows.refuse(
                line,
                "parent_chat_id",
                f"no earlier row is chat {row.parent_chat_id}: a turn follows one of the file",
            )
        elif row.chat_id in turns:
            first = turns[row.chat_id].line
            rows.refuse(line, "chat_id", f"{row.chat_id} was given in line {first}")
        else:
            turns[row.chat_id] = call
    rows.finish()
    trace = trace_of_calls(list(turns.values()), block_tokens=BLOCK_TOKENS, path=str(path))
    return replace(trace, skipped_lines=rows.num_skipped)


def _is_good(rows: RecordedLines[_Turn], line: int, row: _Turn) -> bool:
    if not rows.are_lengths(line, input_length=row.input_length, output_length=row.output_length):
        return False
    if not isfinite(row.timestamp):
        rows.refuse(line, "timestamp", f"expected seconds, got {row.timestamp:g}")
        return False
    whole = row.input_length // BLOCK_TOKENS
    if not whole <= len(row.hash_ids) <= -(-row.input_length // BLOCK_TOKENS):
        rows.refuse(
            line,
            "hash_ids",
            f"{len(row.hash_ids)} ids, but {row.input_length} tokens are {whole} whole blocks of "
            f"{BLOCK_TOKENS}",
        )
        return False
    return True


def _call(line: int, row: _Turn, parent: RecordedCall | None) -> RecordedCall:
    ids: list[object] = list(row.hash_ids)
    if len(ids) * BLOCK_TOKENS < row.input_length:
        ids.append(("end", row.chat_id))  # an end that is named by no id is shared with nobody
    call = RecordedCall(
        str(row.chat_id),
        line,
        row.input_length,
        row.output_length,
        ids,
        arrival_ms=row.timestamp * MS_PER_S,
        kind=row.type,
        session=str(row.chat_id) if parent is None else parent.session,
    )
    if parent is not None:
        apart_ms = max(0.0, call.arrival_ms - parent.arrival_ms)
        call.waits = [Awaited(parent.name, apart_ms, False)]
    return call
