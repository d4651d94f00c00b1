"""What every row of a trace must obey, checked column by column as the chunks come in.

Lengths are whole numbers of at least one token; hash ids cover the prompt; arrivals do not go back;
the first turn of a session has an arrival and no delay. State that spans chunks lives here, so that
chunk boundaries do not matter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan
from typing import NamedTuple

import numpy as np

from dynosim.records import NO_REQUEST, FloatArray, IntArray
from dynosim.workload.columns import (
    MISSING_TOKENS,
    TOKENS_MAX,
    Awaited,
    BoolArray,
    Columns,
    FieldNames,
)
from dynosim.workload.problems import RowProblem
from dynosim.workload.references import Edge, References

SPECULATIVE = "speculative_prefill"
PREFETCH = "prefetch"
_AHEAD_NAMES = {SPECULATIVE: "speculative prefill", PREFETCH: "prefetch"}
_Link = tuple[int, str | None, str | None, float, float, tuple[Awaited, ...] | None, str]
_CLOSED = "(a closed loop needs none: workload.concurrency, in a sweep load.vary: concurrency)"
LENGTHS_REMEDY = (
    " (--lengths-from-hash-ids, lengths_from_hash_ids: true, takes prompts to fill their blocks)"
)


class RowChecker:
    """Sorts the rows of one file into good and bad ones, and links the turns of sessions.

    Indices of requests count good rows in file order. With `sort` arrivals may go back between
    sessions, never inside one. Without `needs_arrival` (closed loop) rows may lack an arrival. With
    `lengths_from_hash_ids` a prompt whose length is not stated fills its blocks.
    """

    def __init__(
        self,
        names: Callable[[], FieldNames],
        *,
        block_tokens: int,
        sort: bool,
        needs_arrival: bool,
        needs_hash_ids: bool,
        lengths_from_hash_ids: bool = False,
    ) -> None:
        self._names = names
        self._block_tokens = block_tokens
        self._sort = sort
        self._needs_arrival = needs_arrival
        self._needs_hash_ids = needs_hash_ids
        self._assumes_lengths = lengths_from_hash_ids
        self._has_hash_ids: bool | None = True if needs_hash_ids else None
        self._latest_ms = -np.inf
        self._last_turn: dict[str, _Turn] = {}  # by session
        self._sent_ahead: dict[int, str] = {}  # no client's -> the field that says so
        self._references = References()
        self._num_good = 0

    def check(self, columns: Columns) -> "CheckedRows":
        """The good rows with their links, and what is wrong with the others."""
        problems = self._check_lengths(columns)
        columns = _without(columns, problems)
        late = self._check_order(columns)
        columns = _without(columns, late)
        checked = self._link(columns)
        self._num_good += len(checked.columns)
        checked.columns.trim_hash_ids(self._block_tokens)
        checked.problems += problems + late
        return checked

    def unmet_references(self) -> list[RowProblem]:
        """Rows that wait for one that is not there; asked when the whole file has been checked."""
        return self._references.problems()

    def _check_lengths(self, columns: Columns) -> list[RowProblem]:
        names = self._names()
        hashed = columns.hash_counts >= 0
        if self._has_hash_ids is None and len(columns):
            self._has_hash_ids = bool(hashed[0])
        covered = columns.hash_counts * self._block_tokens
        if self._assumes_lengths:
            columns.is_assumed = (columns.input_tokens == MISSING_TOKENS) & (covered > 0)
            columns.input_tokens = np.where(columns.is_assumed, covered, columns.input_tokens)
        found: dict[int, RowProblem] = {}

        def note(bad: BoolArray, field: str, message: Callable[[int], str]) -> None:
            for row in np.flatnonzero(bad).tolist():
                found.setdefault(row, RowProblem(int(columns.line[row]), field, message(row)))

        absent = columns.input_tokens == MISSING_TOKENS
        note(
            absent & (covered > 0), names.input_tokens, lambda row: f"missing field{LENGTHS_REMEDY}"
        )
        for field, values in (
            (names.input_tokens, columns.input_tokens),
            (names.output_tokens, columns.output_tokens),
        ):
            note(values == MISSING_TOKENS, field, lambda row: "missing field")
            note((values < 1) | (values >= TOKENS_MAX), field, _LengthMessage(values))
        note(hashed != self._has_hash_ids, names.hash_ids, self._mixed_message(hashed))
        note(
            hashed & (covered < columns.input_tokens), names.hash_ids, self._cover_message(columns)
        )
        delay_ms = columns.delay_ms
        if delay_ms is not None:
            note(delay_ms < 0, names.delay, lambda row: f"expected >= 0 ms, got {delay_ms[row]:g}")
        if columns.is_speculative is not None:
            note(
                columns.is_speculative & (columns.output_tokens != 1),
                names.output_tokens,
                lambda row: (
                    f"expected 1 of a {_ahead_name(columns, row)}, got "
                    f"{columns.output_tokens[row]}: only what it leaves in the caches is wanted"
                ),
            )
        return [found[row] for row in sorted(found)]

    def _mixed_message(self, hashed: BoolArray) -> Callable[[int], str]:
        if self._needs_hash_ids:
            return lambda row: "missing field: a trace without prefix information is format jsonl"
        return lambda row: (
            "given here but not in the first row: all rows need it or none"
            if hashed[row]
            else "missing field: the first row has it, so all rows need it"
        )

    def _cover_message(self, columns: Columns) -> Callable[[int], str]:
        def message(row: int) -> str:
            tokens, count = (int(columns.input_tokens[row]), int(columns.hash_counts[row]))
            return (
                f"{count} ids of {self._block_tokens} tokens cover {count * self._block_tokens} of "
                f"{tokens} prompt tokens: expected {-(-tokens // self._block_tokens)} ids, or "
                "another --trace-block-size (trace_block_size)"
            )

        return message

    def _check_order(self, columns: Columns) -> list[RowProblem]:
        """Rows that arrive before an earlier row of the file. A row without arrival never does."""
        if self._sort or not len(columns):
            return []
        stated = np.concatenate(([self._latest_ms], columns.arrival_ms))
        latest_ms = np.fmax.accumulate(stated)
        self._latest_ms = float(latest_ms[-1])
        return [
            RowProblem(
                int(columns.line[row]),
                self._names().arrival,
                f"goes back: {columns.arrival_ms[row]:g} ms after {latest_ms[row]:g} ms (--sort, "
                "sort: true, puts the rows in order)",
            )
            for row in np.flatnonzero(columns.arrival_ms < latest_ms[:-1]).tolist()
        ]

    def _link(self, columns: Columns) -> "CheckedRows":
        """Join the turns of each session; only traces that have sessions pay per row."""
        fields = (columns.session_ids, columns.delay_ms, columns.request_ids, columns.waits,
                  columns.is_speculative)  # fmt: skip
        if all(field is None for field in fields):
            absent = np.isnan(columns.arrival_ms) & self._needs_arrival
            problems = [
                RowProblem(line, self._names().arrival, f"missing field {_CLOSED}")
                for line in columns.line[absent].tolist()
            ]
            kept = _without(columns, problems)
            return CheckedRows(kept, np.full(len(kept), NO_REQUEST), np.zeros(len(kept)), problems)
        return self._link_rows(columns)

    def _link_rows(self, columns: Columns) -> "CheckedRows":
        problems: list[RowProblem] = []
        previous: list[int] = []
        delays: list[float] = []
        edges: list[tuple[Edge, ...]] = []
        unmet: list[int] = []
        row_of = self._references.row_of
        for link in _link_fields(columns):
            line, session, request, arrival_ms, delay_ms, waits, sent_ahead = link
            turn = None if session is None else self._last_turn.get(session)
            problem = self._turn_problem(
                line, turn, arrival_ms, delay_ms, request, waits
            ) or self._ahead_problem(line, turn, waits, sent_ahead)
            if columns.waits is not None:
                self._references.note(line, request, waits)
            if problem is not None:
                problems.append(problem)
                continue
            waited = self._awaited(link, turn)
            if waited is None:
                unmet.append(line)
                continue
            index = self._num_good + len(previous)
            if request is not None:
                row_of[request] = index
            if sent_ahead:
                self._sent_ahead[index] = sent_ahead
            elif session is not None:  # the next turn follows this one
                self._last_turn[session] = _Turn(index, arrival_ms, _later(turn, arrival_ms))
            edges.append(waited)
            if waited:
                previous.append(waited[0].row)
                delays.append(0.0)
            else:
                previous.append(NO_REQUEST if turn is None else turn.request_index)
                delays.append(0.0 if turn is None else _delay_ms(turn, arrival_ms, delay_ms))
        kept = _without(columns, problems)
        if unmet:
            kept = kept.take(~np.isin(kept.line, unmet))
        linked = (kept, np.array(previous, np.int64), np.array(delays), problems)
        return CheckedRows(*linked, edges if any(edges) else None)

    def _awaited(self, link: _Link, turn: "_Turn | None") -> tuple[Edge, ...] | None:
        """What a row waits for, other than its session's turn; None: for what is not there."""
        line, _, request, arrival_ms, delay_ms, waits, sent_ahead = link
        if sent_ahead and not waits and turn is not None:  # so that two wait for that turn
            return (Edge(turn.request_index, _delay_ms(turn, arrival_ms, delay_ms), False),)
        return self._references.edges(line, request, waits) if waits else ()

    def _turn_problem(
        self,
        line: int,
        turn: "_Turn | None",
        arrival_ms: float,
        delay_ms: float,
        request: str | None,
        waits: tuple[Awaited, ...] | None,
    ) -> RowProblem | None:
        names = self._names()
        if request is not None and request in self._references.row_of:
            return RowProblem(line, "request_id", f"{request!r} was given to an earlier row")
        if waits:
            if not isnan(delay_ms):
                message = "a row that states wait_for has its delays there (remove one of the two)"
                return RowProblem(line, names.delay, message)
        elif turn is None:
            if isnan(arrival_ms) and self._needs_arrival:
                message = f"missing field: no earlier turn to follow {_CLOSED}"
                return RowProblem(line, names.arrival, message)
            if not isnan(delay_ms) and delay_ms != 0.0:
                message = f"expected 0 on the first turn of a session, got {delay_ms:g}"
                return RowProblem(
                    line, names.delay, f"{message}: a first turn comes at its arrival"
                )
        elif arrival_ms < turn.latest_ms:
            message = f"goes back inside its session: {arrival_ms:g} ms after {turn.latest_ms:g} ms"
            return RowProblem(line, names.arrival, message)
        return None

    def _ahead_problem(
        self,
        line: int,
        turn: "_Turn | None",
        waits: tuple[Awaited, ...] | None,
        sent_ahead: str,
    ) -> RowProblem | None:
        """What is wrong with a row as one that is sent ahead, or as one that waits for such."""
        if sent_ahead == SPECULATIVE and not waits and turn is None:
            message = "follows no turn: state wait_for, or its session_id behind that turn's row"
            return RowProblem(line, sent_ahead, message)
        if self._sent_ahead and waits:
            for wait in waits:
                row = self._references.row_of.get(wait.request_id)
                if row is not None and row in self._sent_ahead:
                    name = _AHEAD_NAMES[self._sent_ahead[row]]
                    message = f"{wait.request_id!r} is a {name}, of whose end no client hears: "
                    return RowProblem(line, "wait_for", f"{message}wait for the turn before it")
        return None


@dataclass(slots=True)
class CheckedRows:
    """Good rows of one chunk (n of them), each with its previous turn, and the problems found."""

    columns: Columns
    previous_turn: IntArray  # (n,) index among the good rows of the file, NO_REQUEST: none
    delay_ms: FloatArray  # (n,) 0 where there is no previous turn
    problems: list[RowProblem]
    edges: list[tuple[Edge, ...]] | None = None  # (n,) what each waits for, if not as `previous`

    def cut_after(self, num_rows: int) -> None:
        """Keep the first `num_rows` good rows and only what was found before the last of them."""
        if len(self.columns) < num_rows:
            return
        last_line = int(self.columns.line[num_rows - 1])
        self.columns = self.columns.take(self.columns.line <= last_line)
        self.previous_turn = self.previous_turn[:num_rows]
        self.delay_ms = self.delay_ms[:num_rows]
        self.edges = None if self.edges is None else self.edges[:num_rows]
        self.problems = [problem for problem in self.problems if problem.line < last_line]


class _Turn(NamedTuple):
    """The latest turn of a session. Times are NaN while none was stated."""

    request_index: int
    arrival_ms: float
    latest_ms: float  # over all its turns so far


def _link_fields(columns: Columns) -> Iterator[_Link]:
    """Line, session, request id, arrival, stated delay, what it waits for and the field that says
    that it is sent ahead ("": it is not), of each row."""
    size = len(columns)
    ahead = [""] * size
    if columns.is_speculative is not None:
        for row in np.flatnonzero(columns.is_speculative).tolist():
            ahead[row] = _ahead_field(columns, row)
    delay_ms = np.full(size, np.nan) if columns.delay_ms is None else columns.delay_ms
    return zip(
        columns.line.tolist(),
        columns.session_ids or [None] * size,
        columns.request_ids or [None] * size,
        columns.arrival_ms.tolist(),
        delay_ms.tolist(),
        columns.waits or [None] * size,
        ahead,
        strict=True,
    )


def _ahead_field(columns: Columns, row: int) -> str:
    """By which field a row is no client's."""
    prefetch = columns.is_prefetch
    return PREFETCH if prefetch is not None and prefetch[row] else SPECULATIVE


def _ahead_name(columns: Columns, row: int) -> str:
    return _AHEAD_NAMES[_ahead_field(columns, row)]


def _later(turn: _Turn | None, arrival_ms: float) -> float:
    return turn.latest_ms if turn is not None and isnan(arrival_ms) else arrival_ms


def _delay_ms(turn: _Turn, arrival_ms: float, stated_ms: float) -> float:
    """The stated delay, else the distance of the two arrivals, else 0."""
    if not isnan(stated_ms):
        return stated_ms
    distance_ms = arrival_ms - turn.arrival_ms
    return 0.0 if isnan(distance_ms) else distance_ms


def _without(columns: Columns, problems: list[RowProblem]) -> Columns:
    if not problems:
        return columns
    bad = [problem.line for problem in problems]
    return columns.take(~np.isin(columns.line, bad))


class _LengthMessage:
    """Says what is wrong with a length, in the words that fit the value."""

    def __init__(self, values: IntArray) -> None:
        self._values = values

    def __call__(self, row: int) -> str:
        value = int(self._values[row])
        if value == 0:
            return "expected an integer >= 1, got 0: an engine refuses an empty prompt or answer"
        if value >= TOKENS_MAX:
            return f"expected fewer than {TOKENS_MAX} tokens, got {value}"
        return f"expected an integer >= 1, got {value}"
