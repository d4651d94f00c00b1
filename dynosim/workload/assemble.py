"""Checked rows of a whole file into one `Trace`: order, shift, dense hash ids, links."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dynosim.errors import TraceError
from dynosim.records import (
    NO_REQUEST,
    Dependencies,
    FloatArray,
    IntArray,
    Trace,
    gather_runs,
)
from dynosim.workload.columns import BoolArray, Columns
from dynosim.workload.references import FIELD
from dynosim.workload.validate import CheckedRows

_COMPACT_SLACK = 1024

T = TypeVar("T")


def intern_hash_ids(hash_ids: IntArray) -> IntArray:
    """Ids 0, 1, 2, ... in order of first appearance, or `hash_ids` itself if already compact.

    Compact means that a table indexed by id is small: none negative, the largest below twice the
    number of ids (plus a little).
    """
    size = len(hash_ids)
    if not size:
        return hash_ids
    if int(hash_ids.min()) >= 0 and int(hash_ids.max()) < 2 * size + _COMPACT_SLACK:
        return hash_ids
    return first_appearance_ids(hash_ids)


def first_appearance_ids(keys: IntArray) -> IntArray:
    """Each key's rank (n,) among the distinct keys in order of first appearance."""
    order = np.argsort(keys)
    ordered = keys[order]
    is_new = np.append(True, ordered[1:] != ordered[:-1])[: len(keys)]
    first = np.minimum.reduceat(order, np.flatnonzero(is_new))
    number = np.cumsum(is_new) - 1  # among the distinct keys by value
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = rank[number]
    return ranks


@dataclass(frozen=True, slots=True)
class _Rows:
    """All good rows of the file, in file order."""

    columns: Columns
    previous_turn: IntArray
    delay_ms: FloatArray
    dependencies: Dependencies | None


def assemble(
    parts: Sequence[CheckedRows], *, block_tokens: int, sort: bool, source: str, skipped_lines: int
) -> tuple[Trace, int]:
    """The trace, and how many rows sorting moved: those that came after a later arrival.

    Rows keep the file's order, or with `sort` get the order of their arrivals (ties: file order). A
    later turn without an arrival is placed at the latest arrival before it, in the file or, with
    `sort`, in its session. The first arrival becomes 0.
    """
    rows = _concatenate(parts)
    columns = rows.columns
    previous, delay_ms, dependencies = rows.previous_turn, rows.delay_ms, rows.dependencies
    arrival_ms = _fill_arrivals(columns.arrival_ms, previous, in_session=sort)
    moved = 0
    if sort:
        moved = int(np.count_nonzero(arrival_ms < np.maximum.accumulate(arrival_ms)))
        if moved:
            order = np.argsort(arrival_ms, kind="stable")
            place = np.empty(len(order) + 1, np.int64)
            place[order] = np.arange(len(order))
            place[NO_REQUEST] = NO_REQUEST  # the last place, so that -1 maps to itself
            columns = _permute(columns, order)
            arrival_ms, delay_ms = arrival_ms[order], delay_ms[order]
            previous = place[previous[order]]
            if dependencies is not None:
                dependencies = dependencies.take(order, len(order))
                _require_order(dependencies, columns, source)
            source = f"{source} (sorted, {moved} rows moved)"
    has_links = bool((previous != NO_REQUEST).any())
    priority = columns.priority
    return Trace(
        arrival_ms=arrival_ms - arrival_ms[0],
        input_tokens=columns.input_tokens,
        output_tokens=columns.output_tokens,
        hash_ids=intern_hash_ids(columns.hash_ids),
        hash_offsets=np.concatenate(([0], np.cumsum(np.maximum(columns.hash_counts, 0)))),
        trace_block_size=block_tokens,
        previous_turn=previous if has_links else None,
        delay_ms=delay_ms if has_links else None,
        priority=priority if priority is not None and priority.any() else None,
        session_ids=_session_names(columns),
        request_ids=_request_names(columns),
        wishes=_stated(columns.wishes),
        retention=_stated(columns.retention),
        dependencies=dependencies,
        classes=_class_names(columns),
        expected_output_tokens=columns.expected_output_tokens,
        is_speculative=columns.is_speculative,
        is_prefetch=columns.is_prefetch,
        source=source,
        skipped_lines=skipped_lines,
        assumed_lengths=sum(
            int(part.columns.is_assumed.sum())
            for part in parts
            if part.columns.is_assumed is not None
        ),
    ), moved


def _concatenate(parts: Sequence[CheckedRows]) -> _Rows:
    if len(parts) == 1:
        one = parts[0]
        return _Rows(one.columns, one.previous_turn, one.delay_ms, _dependencies(parts))
    chunks = [part.columns for part in parts]
    has_priority = any(chunk.priority is not None for chunk in chunks)
    has_sessions = any(chunk.session_ids is not None for chunk in chunks)
    has_requests = any(chunk.request_ids is not None for chunk in chunks)
    has_wishes = any(chunk.wishes is not None for chunk in chunks)
    has_retention = any(chunk.retention is not None for chunk in chunks)
    columns = Columns(
        line=np.concatenate([chunk.line for chunk in chunks]),
        arrival_ms=np.concatenate([chunk.arrival_ms for chunk in chunks]),
        input_tokens=np.concatenate([chunk.input_tokens for chunk in chunks]),
        output_tokens=np.concatenate([chunk.output_tokens for chunk in chunks]),
        hash_ids=np.concatenate([chunk.hash_ids for chunk in chunks]),
        hash_counts=np.concatenate([chunk.hash_counts for chunk in chunks]),
    )
    if has_priority:
        columns.priority = np.concatenate(
            [np.zeros(len(c), np.int64) if c.priority is None else c.priority for c in chunks]
        )
    if has_sessions:
        columns.session_ids = [name for c in chunks for name in c.session_ids or [None] * len(c)]
    if has_requests:
        columns.request_ids = [name for c in chunks for name in c.request_ids or [None] * len(c)]
    if any(chunk.classes is not None for chunk in chunks):
        columns.classes = [name for c in chunks for name in c.classes or [None] * len(c)]
    expected = [chunk.expected_output_tokens for chunk in chunks]
    if any(part is not None for part in expected):
        columns.expected_output_tokens = np.concatenate(
            [
                np.zeros(len(c), np.int64) if part is None else part
                for c, part in zip(chunks, expected, strict=True)
            ]
        )
    columns.is_speculative = _flags(chunks, [chunk.is_speculative for chunk in chunks])
    columns.is_prefetch = _flags(chunks, [chunk.is_prefetch for chunk in chunks])
    if has_wishes:
        columns.wishes = [wish for c in chunks for wish in c.wishes or [None] * len(c)]
    if has_retention:
        columns.retention = [said for c in chunks for said in c.retention or [None] * len(c)]
    return _Rows(
        columns,
        np.concatenate([part.previous_turn for part in parts]),
        np.concatenate([part.delay_ms for part in parts]),
        _dependencies(parts),
    )


def _flags(chunks: Sequence[Columns], given: Sequence[BoolArray | None]) -> BoolArray | None:
    """A column of all chunks, no where one has it not; None where none has."""
    if all(part is None for part in given):
        return None
    return np.concatenate(
        [
            np.zeros(len(chunk), np.bool_) if part is None else part
            for chunk, part in zip(chunks, given, strict=True)
        ]
    )


def _dependencies(parts: Sequence[CheckedRows]) -> Dependencies | None:
    """What the rows wait for, where any states more than its session; indices of the whole file."""
    if all(part.edges is None for part in parts):
        return None
    rows = [edges for part in parts for edges in part.edges or [()] * len(part.columns)]
    edges = [edge for waited in rows for edge in waited]
    return Dependencies(
        offsets=np.cumsum([0, *(len(waited) for waited in rows)]),
        rows=np.array([edge.row for edge in edges], np.int64),
        delay_ms=np.array([edge.delay_ms for edge in edges], np.float64),
        from_start=np.array([edge.from_start for edge in edges], np.bool_),
    )


def _require_order(dependencies: Dependencies | None, columns: Columns, source: str) -> None:
    """Raises: TraceError if sorting has put a row before one that it waits for."""
    if dependencies is None:
        return
    waiting = dependencies.waiting()
    wrong = np.flatnonzero(dependencies.rows >= waiting)
    if len(wrong):
        row, other = int(waiting[wrong[0]]), int(dependencies.rows[wrong[0]])
        raise TraceError(
            f"waits for line {columns.line[other]}, which arrives later (leave its arrival out, or "
            "mend one of the two)",
            path=source.partition(" (sorted")[0], line=int(columns.line[row]), field=FIELD,
        )  # fmt: skip


def _fill_arrivals(arrival_ms: FloatArray, previous: IntArray, *, in_session: bool) -> FloatArray:
    """Arrivals (n,) without NaN: a later turn that states none gets the latest one before it."""
    absent = np.isnan(arrival_ms)
    if not absent.any():
        return arrival_ms
    filled = arrival_ms.copy()
    if in_session:
        for row in np.flatnonzero(absent & (previous != NO_REQUEST)).tolist():
            filled[row] = filled[previous[row]]
    latest_ms = np.fmax.accumulate(filled)
    return np.nan_to_num(np.where(np.isnan(filled), latest_ms, filled), nan=0.0)


def _permute(columns: Columns, order: IntArray) -> Columns:
    counts = np.maximum(columns.hash_counts, 0)
    starts = np.cumsum(counts) - counts
    expected, speculative = columns.expected_output_tokens, columns.is_speculative
    return Columns(
        line=columns.line[order],
        arrival_ms=columns.arrival_ms[order],
        input_tokens=columns.input_tokens[order],
        output_tokens=columns.output_tokens[order],
        hash_ids=gather_runs(columns.hash_ids, starts[order], counts[order]),
        hash_counts=columns.hash_counts[order],
        priority=None if columns.priority is None else columns.priority[order],
        session_ids=_permute_list(columns.session_ids, order),
        request_ids=_permute_list(columns.request_ids, order),
        wishes=_permute_list(columns.wishes, order),
        classes=_permute_list(columns.classes, order),
        expected_output_tokens=None if expected is None else expected[order],
        is_speculative=None if speculative is None else speculative[order],
        is_prefetch=None if columns.is_prefetch is None else columns.is_prefetch[order],
        retention=_permute_list(columns.retention, order),
    )


def _permute_list(values: list[T] | None, order: IntArray) -> list[T] | None:
    return None if values is None else [values[index] for index in order.tolist()]


def _stated(values: list[T | None] | None) -> tuple[T | None, ...] | None:
    """A column; None where no row says anything."""
    return tuple(values) if values is not None and any(values) else None


def _session_names(columns: Columns) -> tuple[str, ...] | None:
    """Session of each row, "" where it has none; equal names share one string. None: no sessions.

    The column may be there for rows that were left out.
    """
    if columns.session_ids is None or _is_empty(columns.session_ids):
        return None
    names: dict[str, str] = {}
    return tuple(
        "" if name is None else names.setdefault(name, name) for name in columns.session_ids
    )


def _class_names(columns: Columns) -> tuple[str, ...] | None:
    if columns.classes is None or _is_empty(columns.classes):
        return None
    return tuple(name or "" for name in columns.classes)


def _request_names(columns: Columns) -> tuple[str, ...] | None:
    if columns.request_ids is None or _is_empty(columns.request_ids):
        return None
    pairs = zip(columns.request_ids, columns.line.tolist(), strict=True)
    return tuple(f"line-{line}" if name is None else name for name, line in pairs)


def _is_empty(values: list[str | None]) -> bool:
    return all(value is None for value in values)
