"""Trace files into `Trace`: which formats there are, and the way from bytes to a checked trace.

Nothing is repaired unasked, and what is asked for is counted. A bad line is an error that names it,
or with `skip_bad_lines` is left out; arrivals that go back are an error, or with `sort` are put in
order; a prompt without a length is an error, or with `lengths_from_hash_ids` fills its blocks.
Memory beyond the finished columns is one chunk of text and its rows.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dynosim.errors import ConfigError, TraceError
from dynosim.records import Trace
from dynosim.workload.assemble import assemble
from dynosim.workload.columns import Columns, FieldNames
from dynosim.workload.lines import CHUNK_BYTES, LineChunk, line_chunks
from dynosim.workload.problems import ProblemLog, RowProblem
from dynosim.workload.recorded import RECORDED_FORMATS, read_recorded, recorded_format_of
from dynosim.workload.validate import CheckedRows, RowChecker

ROW_FORMATS = ("mooncake", "azure", "jsonl")
"""Formats that are rows in the order of a trace's."""
WRITTEN_FORMATS = (*ROW_FORMATS, "agentic_mooncake")
FORMATS = (*ROW_FORMATS, *RECORDED_FORMATS)
DEFAULT_BLOCK_TOKENS = 512
"""Prompt tokens behind one hash id in the Mooncake release."""


@dataclass(frozen=True, slots=True)
class ReadTrace:
    """A trace, and what reading it had to do."""

    trace: Trace
    format: str
    moved_rows: int  # rows that came after a later arrival, put in order by `sort`


class _Decoder(Protocol):
    names: FieldNames

    def decode(self, chunk: LineChunk) -> tuple[Columns, list[RowProblem]]: ...


def read_trace(
    path: Path,
    format: str | None = None,
    trace_block_size: int | None = None,
    limit: int | None = None,
    skip_bad_lines: bool = False,
    sort: bool = False,
    *,
    needs_arrival: bool = True,
    lengths_from_hash_ids: bool = False,
) -> Trace:
    """The workload of a trace file; see `read_trace_file` for the arguments and errors."""
    return read_trace_file(
        path,
        format=format,
        trace_block_size=trace_block_size,
        limit=limit,
        skip_bad_lines=skip_bad_lines,
        sort=sort,
        needs_arrival=needs_arrival,
        lengths_from_hash_ids=lengths_from_hash_ids,
    ).trace


def read_trace_file(
    path: Path,
    *,
    format: str | None = None,
    trace_block_size: int | None = None,
    limit: int | None = None,
    skip_bad_lines: bool = False,
    sort: bool = False,
    needs_arrival: bool = True,
    lengths_from_hash_ids: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> ReadTrace:
    """Read `path`, plain or gzipped.

    Args:
        format: one of `FORMATS`; None: by the file's first line or name.
        trace_block_size: prompt tokens behind one hash id; None: what the file says, or else
            `DEFAULT_BLOCK_TOKENS`.
        limit: read only the first `limit` usable rows of the file (before any sorting).
        skip_bad_lines: leave bad lines out and count them in `Trace.skipped_lines`.
        sort: put rows in order of arrival; turns of one session must be in order already.
        needs_arrival: refuse a first turn without an arrival; a closed loop does without.
        lengths_from_hash_ids: take a prompt whose length is not stated to fill the blocks of its
            hash ids, and count it in `Trace.assumed_lengths`.

    Raises: TraceError naming the first bad line, or the file if it cannot be read or holds no row;
    ConfigError for an unknown format, a limit or a block size below 1.
    """
    _require_positive("trace_block_size", trace_block_size)
    _require_positive("limit", limit)
    form = format or recorded_format_of(path) or format_of(path)
    if form in RECORDED_FORMATS:
        if lengths_from_hash_ids:
            raise ConfigError(f"lengths_from_hash_ids: {form} states all lengths (remove it)")
        with _collector_off():
            trace = read_recorded(
                form, path, block_tokens=trace_block_size, skip_bad_lines=skip_bad_lines
            )
        kept = trace if limit is None else trace.take(np.arange(min(limit, len(trace))))
        return ReadTrace(kept, form, 0)
    block_tokens = DEFAULT_BLOCK_TOKENS if trace_block_size is None else trace_block_size
    decoder = _decoder(form, path)
    checker = RowChecker(
        lambda: decoder.names,
        block_tokens=block_tokens,
        sort=sort,
        needs_arrival=needs_arrival,
        needs_hash_ids=form == "mooncake",
        lengths_from_hash_ids=lengths_from_hash_ids,
    )
    with _collector_off():
        parts, num_skipped = _checked_parts(
            path,
            decoder,
            checker,
            limit=limit,
            skip_bad_lines=skip_bad_lines,
            chunk_bytes=chunk_bytes,
        )
        trace, moved_rows = assemble(
            parts,
            block_tokens=block_tokens,
            sort=sort,
            source=str(path),
            skipped_lines=num_skipped,
        )
    return ReadTrace(trace, form, moved_rows)


def format_of(path: Path) -> str:
    """The format that the file's name stands for: `.csv` is azure, `.jsonl` is mooncake.

    Raises: ConfigError for another suffix.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".csv"):
        return "azure"
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return "mooncake"
    known = ", ".join(FORMATS)
    raise ConfigError(f"{path}: the name does not tell the format: state format, one of {known}")


def _decoder(form: str, path: Path) -> _Decoder:
    if form == "azure":
        from dynosim.workload.azure import AzureDecoder

        return AzureDecoder(str(path))
    if form in FORMATS:
        from dynosim.workload.json_dialects import MOONCAKE, PLAIN
        from dynosim.workload.json_rows import JsonDecoder

        return JsonDecoder(MOONCAKE if form == "mooncake" else PLAIN)
    raise ConfigError(
        f"format: unknown trace format {form!r}: expected one of {', '.join(FORMATS)}"
    )


def _checked_parts(
    path: Path,
    decoder: _Decoder,
    checker: RowChecker,
    *,
    limit: int | None,
    skip_bad_lines: bool,
    chunk_bytes: int,
) -> tuple[list[CheckedRows], int]:
    """Good rows of the file's chunks, and the number of bad lines among them."""
    parts: list[CheckedRows] = []
    log = ProblemLog()
    num_rows = 0
    for chunk in line_chunks(path, chunk_bytes):
        columns, problems = decoder.decode(chunk)
        checked = checker.check(columns)
        checked.problems += problems
        if limit is not None:
            checked.cut_after(limit - num_rows)
        log.add(checked.problems)
        num_rows += len(checked.columns)
        if len(checked.columns):
            parts.append(checked)
        if num_rows == limit:
            break
    else:
        log.add(checker.unmet_references())
    if log.num_lines and not skip_bad_lines:
        raise log.error(str(path))
    if not parts:
        why = f"all {log.num_lines} rows are bad" if log.num_lines else "the file has no row"
        raise TraceError(f"no requests: {why}", path=str(path))
    return parts, log.num_lines


@contextmanager
def _collector_off() -> Iterator[None]:
    """Garbage collection off: decoding makes many small objects that form no cycles (3x faster)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _require_positive(key: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"{key}: expected an integer >= 1, got {value}")
