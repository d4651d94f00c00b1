"""The Azure LLM inference trace: CSV of arrival, prompt tokens and output tokens.

Two headers are known: `arrived_at,num_prefill_tokens,num_decode_tokens` (seconds), the form used by
simulators, and `TIMESTAMP,ContextTokens,GeneratedTokens` (date and time, UTC), the public release.
Columns may stand in any order; there is no prefix information.
"""

import math
import re

import numpy as np

from dynosim.errors import TraceError
from dynosim.records import FloatArray
from dynosim.workload.columns import Columns, FieldNames
from dynosim.workload.lines import LineChunk
from dynosim.workload.problems import RowProblem

SECONDS_NAMES = FieldNames("arrived_at", "num_prefill_tokens", "num_decode_tokens")
RELEASE_NAMES = FieldNames("TIMESTAMP", "ContextTokens", "GeneratedTokens")

_DATE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|[+]00:?00)?")
_INTEGER = re.compile(r"[+-]?\d{1,18}")


class AzureDecoder:
    """Decodes the chunks of one file; the header of the first chunk says which release it is."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._order: list[int] | None = None  # columns of arrival, prompt, output; header unread
        self._num_columns = 0
        self._first_time: np.datetime64 | None = None
        self.names = SECONDS_NAMES

    def decode(self, chunk: LineChunk) -> tuple[Columns, list[RowProblem]]:
        """The chunk's usable rows, and what is wrong with the others (at most one per line)."""
        numbered = [
            (number, line.decode("utf-8", "replace")) for number, line in chunk.numbered_lines()
        ]
        if self._order is None and numbered:
            self._read_header(*numbered.pop(0))
        good: list[tuple[int, float, int, int]] = []
        problems: list[RowProblem] = []
        for number, line in numbered:
            row = self._row(number, line.rstrip("\r").split(","))
            if isinstance(row, RowProblem):
                problems.append(row)
            else:
                good.append(row)
        lines, arrivals, prompts, outputs = zip(*good, strict=True) if good else ((), (), (), ())
        arrival_ms: FloatArray = np.array(arrivals, dtype=np.float64)
        return Columns(
            line=np.array(lines, dtype=np.int64),
            arrival_ms=arrival_ms,
            input_tokens=np.array(prompts, dtype=np.int64),
            output_tokens=np.array(outputs, dtype=np.int64),
            hash_ids=np.empty(0, np.int64),
            hash_counts=np.full(len(good), -1, np.int64),
        ), problems

    def _read_header(self, line: int, text: str) -> None:
        """Raises: TraceError if the columns of neither release are there."""
        columns = [name.strip() for name in text.split(",")]
        for names in (SECONDS_NAMES, RELEASE_NAMES):
            wanted = [names.arrival, names.input_tokens, names.output_tokens]
            if all(name in columns for name in wanted):
                self.names = names
                self._order = [columns.index(name) for name in wanted]
                self._num_columns = len(columns)
                return
        known = " or ".join(
            f"{names.arrival},{names.input_tokens},{names.output_tokens}"
            for names in (SECONDS_NAMES, RELEASE_NAMES)
        )
        message = f"expected a header with the columns {known}, got {text[:80]!r}"
        raise TraceError(message, path=self._path, line=line)

    def _row(self, line: int, cells: list[str]) -> tuple[int, float, int, int] | RowProblem:
        if len(cells) != self._num_columns:
            return RowProblem(line, "", f"expected {self._num_columns} columns, got {len(cells)}")
        assert self._order is not None
        arrival, prompt, output = (cells[index].strip() for index in self._order)
        arrival_ms = self._arrival_ms(arrival)
        if arrival_ms is None:
            wanted = "seconds" if self.names is SECONDS_NAMES else "a date and time in UTC"
            return RowProblem(line, self.names.arrival, f"expected {wanted}, got {arrival!r}")
        for name, text in ((self.names.input_tokens, prompt), (self.names.output_tokens, output)):
            if not _INTEGER.fullmatch(text):
                return RowProblem(line, name, f"expected an integer, got {text!r}")
        return line, arrival_ms, int(prompt), int(output)

    def _arrival_ms(self, text: str) -> float | None:
        """Milliseconds since the file's first row or since zero; None if `text` is no such time."""
        if self.names is SECONDS_NAMES:
            try:
                arrival_ms = float(text) * 1000.0
            except ValueError:
                return None
            return arrival_ms if math.isfinite(arrival_ms) else None
        found = _DATE_TIME.fullmatch(text)
        if found is None:
            return None
        try:
            moment = np.datetime64(f"{found[1]}T{found[2]}", "ns")
        except ValueError:
            return None
        if self._first_time is None:
            self._first_time = moment
        return float((moment - self._first_time) / np.timedelta64(1, "ns")) / 1e6
