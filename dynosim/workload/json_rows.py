"""JSON Lines traces: bytes of whole lines in, `Columns` out. Two dialects, one decoder.

`mooncake` follows the Mooncake release and Dynamo's extensions: unknown fields are ignored, since
published files carry fields that a replay does not use. `jsonl` is this project's own plain format:
an unknown field there is a typing error. A field and its alias mean the same; stating both is an
error, and `null` is the same as leaving a field out.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import astuple

from dynosim.records import FloatArray, IntArray, Retention, Wishes
from dynosim.workers.wishes import WishError
from dynosim.workload.columns import MISSING_TOKENS, TOKENS_MAX, Awaited, BoolArray, Columns
from dynosim.workload.json_dialects import MooncakeRow, PlainRow, RowDialect
from dynosim.workload.json_messages import UNREADABLE, syntax_problem, type_problem
from dynosim.workload.lines import LineChunk
from dynosim.workload.problems import RowProblem
from dynosim.workload.rare_fields import may_have_rare_fields
from dynosim.workload.retention_fields import RETENTION_FIELDS, RetentionReader
from dynosim.workload.wait_fields import WaitError, read_waits
from dynosim.workload.wish_fields import WISH_FIELDS, WishReader

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1

_Row = MooncakeRow | PlainRow
_Numbered = tuple[int, _Row]
Values = tuple[Any, ...]
"""A field of each row."""


class JsonDecoder:
    """Decodes the chunks of one file; remembers whether its hash ids are signed.

    Hash ids are 64-bit numbers, signed or unsigned. Unsigned ones above int64 are kept by their bit
    pattern; a file with both negative ids and such large ones would be ambiguous and is refused.
    """

    def __init__(self, dialect: RowDialect) -> None:
        self._dialect = dialect
        self._decoder: msgspec.json.Decoder[_Row] = msgspec.json.Decoder(dialect.row)
        self._full_decoder: msgspec.json.Decoder[_Row] = msgspec.json.Decoder(dialect.full_row)
        self._wishes = WishReader()
        self._retention = RetentionReader()
        self._has_negative_ids = False
        self._has_large_ids = False
        self.names = dialect.names

    def decode(self, chunk: LineChunk) -> tuple[Columns, list[RowProblem]]:
        """The chunk's usable rows, and what is wrong with the others (at most one per line)."""
        numbered = self._decode_at_once(chunk)
        if numbered is not None:
            lines, rows = numbered
            try:
                return self._columns(lines, rows), []
            except (OverflowError, _BothNamesError, WishError, WaitError):
                pass
        good, problems = self._decode_by_line(chunk)
        lines = np.array([line for line, _ in good], dtype=np.int64)
        return self._columns(lines, [row for _, row in good]), problems

    def _decode_at_once(self, chunk: LineChunk) -> tuple[IntArray, Sequence[_Row]] | None:
        """All rows with their line numbers, or None if any line needs a closer look."""
        decoder = self._full_decoder if may_have_rare_fields(chunk.data) else self._decoder
        try:
            rows = decoder.decode_lines(chunk.data)
        except UNREADABLE:
            return None
        if len(rows) == chunk.num_lines:
            return chunk.first_line + np.arange(len(rows)), rows
        lines = [number for number, _ in chunk.numbered_lines()]
        if len(rows) != len(lines):
            return None
        return np.array(lines, dtype=np.int64), rows

    def _decode_by_line(self, chunk: LineChunk) -> tuple[list[_Numbered], list[RowProblem]]:
        good: list[_Numbered] = []
        problems: list[RowProblem] = []
        for number, line in chunk.numbered_lines():
            try:
                row = self._full_decoder.decode(line)
            except msgspec.ValidationError as error:
                problems.append(type_problem(number, line, str(error), self._dialect.full_row))
            except UNREADABLE as error:
                problems.append(syntax_problem(number, line, error))
            else:
                problem = self._range_problem(number, row)
                if problem is None:
                    good.append((number, row))
                else:
                    problems.append(problem)
        return good, problems

    def _range_problem(self, line: int, row: _Row) -> RowProblem | None:
        """What typed decoding cannot see: a field under both names, numbers beyond 64 bits."""
        dialect = self._dialect
        for names in (dialect.arrival, dialect.input_tokens, dialect.output_tokens, dialect.delay):
            if None not in (getattr(row, names[0]), getattr(row, names[1])):
                return RowProblem(
                    line, names[0], f"given twice, also as {names[1]}: keep one of them"
                )
        for name in (*dialect.input_tokens, *dialect.output_tokens, "priority"):
            value = getattr(row, name)
            if value is not None and not INT64_MIN <= value <= INT64_MAX:
                return RowProblem(
                    line, name, f"expected a number that fits in 64 bits, got {value}"
                )
        try:
            self._wishes.read(row)
            self._retention.read(row)
        except WishError as error:
            return RowProblem(line, error.key, error.message)
        if (problem := _graph_problem(line, row)) is not None:
            return problem
        given = [name for name in dialect.hash_ids if getattr(row, name) is not None]
        if len(given) > 1:
            return RowProblem(line, given[0], f"given twice, also as {given[1]}: keep one of them")
        ids: list[int] = getattr(row, given[0]) if given else []
        for index, value in enumerate(ids):
            if not INT64_MIN <= value <= UINT64_MAX:
                message = f"expected a number that fits in 64 bits, got {value}"
                return RowProblem(line, f"{given[0]}[{index}]", message)
        return self._sign_problem(line, given[0], min(ids), max(ids)) if ids else None

    def _sign_problem(self, line: int, field: str, low: int, high: int) -> RowProblem | None:
        has_negative = self._has_negative_ids or low < 0
        has_large = self._has_large_ids or high > INT64_MAX
        if has_negative and has_large:
            remedy = "write all of them as signed or all as unsigned 64-bit numbers"
            return RowProblem(line, field, f"negative ids beside ids of 2^63 and more: {remedy}")
        self._has_negative_ids, self._has_large_ids = has_negative, has_large
        return None

    def _columns(self, lines: IntArray, rows: Sequence[_Row]) -> Columns:
        """Raises: OverflowError if a number needs more than 64 bits, or one of our errors."""
        dialect = self._dialect
        names = type(rows[0]).__struct_fields__ if rows else ()
        given = dict(zip(names, zip(*map(astuple, rows), strict=True), strict=False))
        hash_lists = _either(given, dialect.hash_ids)
        hash_ids, hash_counts = self._hash_columns(hash_lists, len(rows))
        return Columns(
            line=lines,
            arrival_ms=_floats(_either(given, dialect.arrival), len(rows)),
            input_tokens=_lengths(_either(given, dialect.input_tokens), len(rows)),
            output_tokens=_lengths(_either(given, dialect.output_tokens), len(rows)),
            hash_ids=hash_ids,
            hash_counts=hash_counts,
            delay_ms=_optional_floats(_either(given, dialect.delay), len(rows)),
            priority=_priorities(_either(given, ("priority",))),
            session_ids=_texts(_either(given, ("session_id",))),
            request_ids=_texts(_either(given, ("request_id",))),
            wishes=self._wish_column(given, rows),
            waits=_waits(_either(given, ("wait_for",))),
            classes=_texts(_either(given, ("request_class",))),
            expected_output_tokens=_expected(_either(given, ("expected_output_tokens",))),
            is_speculative=_sent_ahead(given),
            is_prefetch=_flags(_either(given, ("prefetch",))),
            retention=self._retention_column(given, rows),
        )

    def _wish_column(
        self, given: Mapping[str, Values], rows: Sequence[_Row]
    ) -> list[Wishes | None] | None:
        """The wishes of each row; None if no row has any. Raises: WishError."""
        if not any(_is_used(given.get(name, ())) for name in WISH_FIELDS):
            return None
        return [self._wishes.read(row) for row in rows]

    def _retention_column(
        self, given: Mapping[str, Values], rows: Sequence[_Row]
    ) -> list[Retention | None] | None:
        """What each row says of its blocks; None if no row does. Raises: WishError."""
        if not any(_is_used(given.get(name, ())) for name in RETENTION_FIELDS):
            return None
        return [self._retention.read(row) for row in rows]

    def _hash_columns(self, lists: Values | None, num_rows: int) -> tuple[IntArray, IntArray]:
        """Ids end to end (sum,), and how many each row has (n,), -1 where it has no such field."""
        if lists is None:
            return np.empty(0, np.int64), np.full(num_rows, -1, np.int64)
        if None in lists:
            counts = np.array([-1 if ids is None else len(ids) for ids in lists], dtype=np.int64)
            lists = tuple(ids for ids in lists if ids is not None)
        else:
            counts = np.fromiter(map(len, lists), np.int64, num_rows)
        size = int(counts[counts > 0].sum())
        return self._hash_array(lists, size), counts

    def _hash_array(self, lists: Sequence[Any], size: int) -> IntArray:
        try:
            ids = np.fromiter(chain.from_iterable(lists), np.int64, size)
        except OverflowError:
            if self._has_negative_ids:
                raise
            # Raises again if some are negative; the lines are then looked at one by one.
            unsigned = np.fromiter(chain.from_iterable(lists), np.uint64, size)
            self._has_large_ids = True
            return unsigned.view(np.int64)
        if size and int(ids.min()) < 0:
            if self._has_large_ids:
                raise OverflowError
            self._has_negative_ids = True
        return ids


def _graph_problem(line: int, row: _Row) -> RowProblem | None:
    """What is wrong with what a row waits for, or expects."""
    try:
        read_waits(getattr(row, "wait_for", None))
    except WaitError as error:
        place, _, message = str(error).partition(": ")
        return RowProblem(line, f"wait_for{place}", message)
    expected = getattr(row, "expected_output_tokens", None)
    if expected is not None and not 1 <= expected < TOKENS_MAX:
        message = f"expected a number of tokens >= 1, got {expected}"
        return RowProblem(line, "expected_output_tokens", message)
    if getattr(row, "prefetch", None) and getattr(row, "speculative_prefill", None):
        return RowProblem(line, *_BOTH_KINDS)
    return None


_BOTH_KINDS = ("prefetch", "a speculative prefill, too: keep one of the two")


class _BothNamesError(Exception):
    """Some row states a field under both of its names."""


def _either(given: Mapping[str, Values], names: tuple[str, ...]) -> Values | None:
    """The field of each row under whichever name it has; None if no row has it."""
    used = [given[name] for name in names if _is_used(given.get(name, ()))]
    if len(used) < 2:
        return used[0] if used else None
    first, second = used
    if any(a is not None and b is not None for a, b in zip(first, second, strict=True)):
        raise _BothNamesError
    return tuple(b if a is None else a for a, b in zip(first, second, strict=True))


def _is_used(column: Values) -> bool:
    """Whether any row has the field. The first one tells, nearly always: comparing is slow."""
    return bool(column) and (column[0] is not None or column.count(None) < len(column))


def _floats(values: Values | None, num_rows: int) -> FloatArray:
    return np.full(num_rows, np.nan) if values is None else np.array(values, dtype=np.float64)


def _optional_floats(values: Values | None, num_rows: int) -> FloatArray | None:
    return None if values is None else _floats(values, num_rows)


def _lengths(values: Values | None, num_rows: int) -> IntArray:
    if values is None:
        return np.full(num_rows, MISSING_TOKENS, np.int64)
    try:
        return np.fromiter(values, np.int64, len(values))
    except TypeError:  # some are None
        stated = [MISSING_TOKENS if value is None else value for value in values]
        return np.array(stated, dtype=np.int64)


def _priorities(values: Values | None) -> IntArray | None:
    return None if values is None else np.array([value or 0 for value in values], dtype=np.int64)


def _waits(values: Values | None) -> list[tuple[Awaited, ...] | None] | None:
    """Raises: WaitError."""
    return None if values is None else [read_waits(value) for value in values]


def _expected(values: Values | None) -> IntArray | None:
    """Raises: OverflowError for what is no number of tokens."""
    if values is None:
        return None
    expected = np.array([value or 0 for value in values], dtype=np.int64)
    if (expected < 0).any() or (expected >= TOKENS_MAX).any() or 0 in values:
        raise OverflowError
    return expected


def _flags(values: Values | None) -> BoolArray | None:
    """Which rows say yes; None where none does."""
    return np.array(values, dtype=np.bool_) if values is not None and any(values) else None


def _sent_ahead(given: Mapping[str, Values]) -> BoolArray | None:
    """Which rows are no client's, of either kind; None where none is. Raises: WishError."""
    speculative = _flags(_either(given, ("speculative_prefill",)))
    prefetch = _flags(_either(given, ("prefetch",)))
    if speculative is None or prefetch is None:
        return prefetch if speculative is None else speculative
    if (speculative & prefetch).any():
        raise WishError(*_BOTH_KINDS)
    return np.asarray(speculative | prefetch)


def _texts(values: Values | None) -> list[str | None] | None:
    return None if values is None else [None if value is None else str(value) for value in values]
