"""Reads logs of requests that a real engine has served.

JSON lines (gzipped or plain), or CSV with a header. A first JSON line `{"setup": {...}}` may tell
the engine. Each request has `arrival_ms`, `input_tokens`, `output_tokens`, and its times in one of
two ways:

* `queue_ms`, `ttft_ms`, `decode_ms`: on the engine's clock, from the moment its scheduler took the
  request: to its first step, its first token, and from there to its last token;
* `first_token_ms` and `last_token_ms` (on the clock of `arrival_ms`), or `ttft_ms` and `decode_ms`
  without `queue_ms`: as the client saw them.

`hash_ids_N` lists chained ids of the prompt's full blocks of N tokens. `status` or `error` tell
failed requests. Nothing is repaired: what cannot be used is refused with its line and a remedy.
"""

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.errors import TraceError
from dynosim.files.user_text import parse_json
from dynosim.fit.measurements import Measurements
from dynosim.workload.lines import line_chunks

Row = tuple[int, dict[str, Any]]  # line, fields

_HASHES = re.compile(r"hash_ids_(\d+)")
_DONE = ("", "completed", "success", "ok", "stop", "length", "200")
_JUMP_FACTOR = 50.0
"""A request whose tokens came so many times slower than the median's: no load does that, a clock
that was set, or a machine that slept, does."""
_TOLERANCE_MS = 1e-6


def read_measurements(path: Path) -> Measurements:
    """The requests of a log. Raises: TraceError naming line, field and remedy."""
    setup, rows = _rows(path)
    if not rows:
        raise TraceError("no requests; record some first", path=str(path))
    reader = _RowReader(path)
    clock = reader.clock(rows[0])
    parsed = [reader.request(line, row, clock) for line, row in rows]
    columns = np.array([values[:5] for values in parsed], np.float64)
    reader.check_order(columns[:, 0], [line for line, _ in rows])
    reader.check_jumps(columns, [line for line, _ in rows])
    return Measurements(
        source=str(path),
        setup=setup,
        clock="engine" if clock == "engine" else "clients",
        arrival_ms=columns[:, 0] - columns[0, 0],
        input_tokens=columns[:, 1].astype(np.int64),
        output_tokens=columns[:, 2].astype(np.int64),
        ttft_ms=columns[:, 3],
        decode_ms=columns[:, 4],
        block_tokens=reader.block_tokens,
        hashes=tuple(values[5] for values in parsed),
    )


def _rows(path: Path) -> tuple[dict[str, Any], list[Row]]:
    lines = [pair for chunk in line_chunks(path) for pair in chunk.numbered_lines()]
    if lines and not lines[0][1].lstrip().startswith(b"{"):
        return {}, list(_csv_rows(path, lines))
    setup: dict[str, Any] = {}
    rows: list[Row] = []
    for number, text in lines:
        try:
            row = parse_json(text)
        except ValueError as error:
            raise TraceError(f"not JSON: {error}", path=str(path), line=number) from None
        if not isinstance(row, dict):
            raise TraceError("expected a JSON object", path=str(path), line=number)
        if "setup" in row and not rows:
            setup = row["setup"] if isinstance(row["setup"], dict) else {}
        else:
            rows.append((number, row))
    return setup, rows


def _csv_rows(path: Path, lines: list[tuple[int, bytes]]) -> Iterator[Row]:
    text = [line.decode("utf-8", "replace") for _, line in lines]
    for (number, _), row in zip(lines[1:], csv.DictReader(text), strict=False):
        yield number, {key: _cell(value) for key, value in row.items() if value not in ("", None)}


def _cell(value: Any) -> Any:
    try:
        return parse_json(value)
    except (ValueError, TypeError):
        return value


class _RowReader:
    """Reads the fields of one file's rows; remembers the size of prefix blocks."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self.block_tokens = 0

    def _fail(self, line: int, name: str, message: str) -> TraceError:
        return TraceError(message, path=self._path, line=line, field=name)

    def clock(self, first: Row) -> str:
        """Which times the rows have, judged by the first: engine, clients or absolute."""
        line, row = first
        if "first_token_ms" in row:
            return "absolute"
        if "ttft_ms" in row:
            return "engine" if "queue_ms" in row else "clients"
        raise self._fail(
            line,
            "first_token_ms",
            "missing; a request needs first_token_ms and last_token_ms, or ttft_ms and decode_ms"
            f" (it has {', '.join(map(str, row))})",
        )

    def request(
        self, line: int, row: dict[str, Any], clock: str
    ) -> tuple[float, int, int, float, float, tuple[int, ...]]:
        """Arrival, input and output tokens, time to first token and on to the last, hashes."""
        self._check_done(line, row)
        arrival = self._number(line, row, "arrival_ms")
        inputs, outputs = (self._count(line, row, f"{kind}_tokens") for kind in ("input", "output"))
        if clock == "absolute":
            first = self._number(line, row, "first_token_ms")
            name = "last_token_ms" if "last_token_ms" in row else "finish_ms"
            ttft, decode = first - arrival, self._number(line, row, name) - first
        else:
            ttft, decode = (self._number(line, row, name) for name in ("ttft_ms", "decode_ms"))
        for name, value in (("first token", ttft), ("last token", decode)):
            if value < 0:
                raise self._fail(
                    line,
                    name,
                    f"{-value:g} ms before what it follows from: the clock jumped, or two clocks"
                    " were mixed; remove the request, or record on one monotonic clock",
                )
        return arrival, inputs, outputs, ttft, decode, self._hashes(line, row, inputs)

    def _check_done(self, line: int, row: dict[str, Any]) -> None:
        status = str(row.get("status") or "").lower()
        if row.get("error") or status not in _DONE:
            raise self._fail(
                line,
                "error" if row.get("error") else "status",
                f"a failed request ({row.get('error') or status}): what it cost the engine is"
                " unknown; record a run without failures, or remove its line if it never ran",
            )

    def _number(self, line: int, row: dict[str, Any], name: str) -> float:
        value = row.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):  # type: ignore[arg-type]
            raise self._fail(line, name, _expected("a number of ms", row, name))
        return float(value)  # type: ignore[arg-type]

    def _count(self, line: int, row: dict[str, Any], name: str) -> int:
        value = row.get(name)
        if type(value) is not int or value < 1:
            remedy = "; a request without tokens is no use: remove its line"
            raise self._fail(line, name, _expected("a whole number >= 1", row, name) + remedy)
        return value

    def _hashes(self, line: int, row: dict[str, Any], inputs: int) -> tuple[int, ...]:
        for name, value in row.items():
            match = _HASHES.fullmatch(name)
            if match is None:
                continue
            if not isinstance(value, list) or not all(type(one) is int for one in value):
                raise self._fail(line, name, "expected a list of whole numbers")
            self.block_tokens = int(match[1])
            if self.block_tokens < 1 or len(value) > inputs // self.block_tokens:
                raise self._fail(
                    line, name, f"{len(value)} full blocks do not fit in {inputs} tokens"
                )
            return tuple(value)
        return ()

    def check_order(self, arrival_ms: Any, lines: list[int]) -> None:
        """Arrivals that go back are a jumped clock or an unsorted log."""
        back = np.flatnonzero(np.diff(arrival_ms) < -_TOLERANCE_MS)
        if len(back):
            row = int(back[0])
            raise self._fail(
                lines[row + 1],
                "arrival_ms",
                f"{arrival_ms[row + 1]:g} is before {arrival_ms[row]:g} of the request above: sort"
                " the log by arrival; if it is sorted by id, the clock jumped: record again",
            )

    def check_jumps(self, columns: Any, lines: list[int]) -> None:
        """A request that took far longer per token than all others."""
        tokens = np.maximum(columns[:, 2] - 1, 1)
        gaps_ms = columns[:, 4] / tokens
        median = float(np.median(gaps_ms[columns[:, 2] > 1])) if (columns[:, 2] > 1).any() else 0.0
        odd = np.flatnonzero((gaps_ms > _JUMP_FACTOR * median) & (columns[:, 2] > 1))
        if median > 0 and len(odd):
            row = int(odd[0])
            raise self._fail(
                lines[row],
                "decode_ms",
                f"{gaps_ms[row]:.0f} ms per token where the median is {median:.1f}: the clock"
                " jumped, or the machine slept; remove the request, or record again",
            )


def _expected(what: str, row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return f"missing; expected {what}"
    return f"expected {what}, got {row[name]!r}"
