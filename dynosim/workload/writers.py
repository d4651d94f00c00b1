"""`Trace` into files. A file appears whole or not at all.

Equal traces give equal text everywhere, and equal `.gz` bytes with the same zlib: the gzip header
holds neither time nor name.
"""

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from dynosim.errors import ConfigError, TraceError
from dynosim.records import Dependencies, Trace
from dynosim.workload.columns import Awaited, BoolArray
from dynosim.workload.readers import WRITTEN_FORMATS, format_of
from dynosim.workload.retention_fields import retention_row
from dynosim.workload.wait_fields import wait_row
from dynosim.workload.wish_fields import wish_row

_ROWS_AT_A_TIME = 10_000
_LEVEL = 9


def write_trace(trace: Trace, path: Path, format: str | None = None) -> list[str]:
    """Write `trace` to `path`, gzipped if the name ends in `.gz`; returns what was lost.

    The names returned are parts of the trace that the format has no place for. Reading the file
    back gives the same trace, except for those, `source` and `skipped_lines`.

    Raises: ConfigError for an unknown format or a trace without hash ids as mooncake; TraceError if
    the file cannot be written.
    """
    form = format_of(path) if format is None else format
    if form not in WRITTEN_FORMATS:
        known = ", ".join(WRITTEN_FORMATS)
        raise ConfigError(f"format: cannot write trace format {form!r}: expected one of {known}")
    if form.endswith("mooncake") and not len(trace.hash_ids):
        raise ConfigError(f"{form} rows need hash ids and this trace has none: write it as jsonl")
    if form == "agentic_mooncake":
        from dynosim.workload.agentic_writer import agentic_blocks

        blocks = agentic_blocks(trace, _ROWS_AT_A_TIME)
    else:
        blocks = _csv_blocks(trace) if form == "azure" else _json_blocks(trace, _ROW_NAMES[form])
    with whole_file(path) as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
                for block in blocks:
                    packed.write(block)
        else:
            for block in blocks:
                file.write(block)
    return lost_parts(trace, form)


def lost_parts(trace: Trace, form: str) -> list[str]:
    """Parts of `trace` that a file of this format cannot hold."""
    if form == "agentic_mooncake":
        names = ("wishes", "classes", "expected_output_tokens", "is_speculative",
                 "is_prefetch", "retention")  # fmt: skip
        return [name for name in names if getattr(trace, name) is not None]
    if form != "azure":
        return []
    parts = {
        "hash_ids": len(trace.hash_ids) > 0,
        "sessions": trace.session_ids is not None,
        "priority": trace.priority is not None,
        "request_ids": trace.request_ids is not None,
        "wishes": trace.wishes is not None,
        "dependencies": trace.dependencies is not None,
        "classes": trace.classes is not None,
        "expected_output_tokens": trace.expected_output_tokens is not None,
        "is_speculative": trace.is_speculative is not None,
        "is_prefetch": trace.is_prefetch is not None,
        "retention": trace.retention is not None,
    }
    return [name for name, is_there in parts.items() if is_there]


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file under a temporary name beside `path`, which it replaces if the block ends well.

    Raises: TraceError if the system refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise TraceError(f"cannot be written ({error.strerror})", path=str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


_ROW_NAMES = {
    "mooncake": ("timestamp", "input_length", "output_length", "hash_ids", "delay"),
    "jsonl": ("arrival_ms", "input_tokens", "output_tokens", "prompt_hash_ids", "delay_ms"),
}
"""Names of arrival, prompt length, answer length, hash ids and delay."""


def _json_blocks(trace: Trace, names: tuple[str, ...]) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    for start in range(0, len(trace), _ROWS_AT_A_TIME):
        rows = _json_rows(trace, names, start, min(start + _ROWS_AT_A_TIME, len(trace)))
        yield encoder.encode_lines(rows)


def _json_rows(
    trace: Trace, names: tuple[str, ...], start: int, stop: int
) -> Iterator[dict[str, Any]]:
    arrival, prompt, answer, hashes, delay = names
    has_hashes = len(trace.hash_ids) > 0
    ends = trace.hash_offsets[start : stop + 1].tolist()
    ids = trace.hash_ids[ends[0] : ends[-1]].tolist()
    arrivals = trace.arrival_ms[start:stop].tolist()
    lengths = zip(
        trace.input_tokens[start:stop].tolist(),
        trace.output_tokens[start:stop].tolist(),
        strict=True,
    )
    extras = _extras(trace, delay)
    for offset, (arrival_ms, (input_tokens, output_tokens)) in enumerate(
        zip(arrivals, lengths, strict=True)
    ):
        row: dict[str, Any] = {arrival: _number(arrival_ms)}
        row |= {prompt: input_tokens, answer: output_tokens}
        if has_hashes:
            row[hashes] = ids[ends[offset] - ends[0] : ends[offset + 1] - ends[0]]
        for extra in extras:
            row |= extra(start + offset)
        yield row


def _extras(trace: Trace, delay: str) -> list[Callable[[int], dict[str, Any]]]:
    """Functions from a row's index to fields that only some traces have."""
    extras: list[Callable[[int], dict[str, Any]]] = []
    sessions, previous, delay_ms = trace.session_ids, trace.previous_turn, trace.delay_ms
    if sessions is not None:
        extras.append(lambda row: {"session_id": sessions[row]} if sessions[row] else {})
    requests, classes = trace.request_ids, trace.classes
    if trace.dependencies is not None:
        graph, requests = trace.dependencies, requests or tuple(map(str, range(len(trace))))
        extras.append(_waits_of(graph, requests))
    if previous is not None and delay_ms is not None:
        chained = previous >= 0
        if trace.dependencies is not None:
            chained &= np.diff(trace.dependencies.offsets) == 0
        extras.append(lambda row: {delay: _number(float(delay_ms[row]))} if chained[row] else {})
    if (priority := trace.priority) is not None:
        extras.append(lambda row: {"priority": int(priority[row])})
    if requests is not None:
        names = requests
        extras.append(lambda row: {"request_id": names[row]})
    if classes is not None:
        extras.append(lambda row: {"request_class": classes[row]} if classes[row] else {})
    if (expected := trace.expected_output_tokens) is not None:
        extras.append(
            lambda row: {"expected_output_tokens": int(expected[row])} if expected[row] else {}
        )
    if trace.is_speculative is not None:
        extras.append(_sent_ahead(trace.is_speculative, trace.is_prefetch))
    return extras + _said(trace)


def _sent_ahead(
    speculative: BoolArray, prefetch: BoolArray | None
) -> Callable[[int], dict[str, Any]]:
    """What of a row says that it is no client's."""

    def kind(row: int) -> dict[str, Any]:
        if prefetch is not None and prefetch[row]:
            return {"prefetch": True}
        return {"speculative_prefill": True} if speculative[row] else {}

    return kind


def _said(trace: Trace) -> list[Callable[[int], dict[str, Any]]]:
    """The same of what requests say: where they want to be served, what their blocks are worth."""
    said: list[Callable[[int], dict[str, Any]]] = []
    if (wishes := trace.wishes) is not None:
        said.append(lambda row: wish_row(wishes[row]))
    if (retention := trace.retention) is not None:
        said.append(lambda row: retention_row(retention[row]))
    return said


def _waits_of(graph: Dependencies, names: tuple[str, ...]) -> Callable[[int], dict[str, Any]]:
    """What a row waits for, by request ids."""
    starts, rows = graph.offsets.tolist(), graph.rows.tolist()
    delays_ms, from_start = graph.delay_ms.tolist(), graph.from_start.tolist()

    def waits(row: int) -> dict[str, Any]:
        edges = range(starts[row], starts[row + 1])
        return wait_row([Awaited(names[rows[e]], delays_ms[e], from_start[e]) for e in edges])

    return waits


def _number(value: float) -> int | float:
    """Whole numbers without their `.0`, which would cost a third of a file's size."""
    return int(value) if value.is_integer() else value


def _csv_blocks(trace: Trace) -> Iterator[bytes]:
    yield b"arrived_at,num_prefill_tokens,num_decode_tokens\n"
    for start in range(0, len(trace), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        columns = zip(
            (trace.arrival_ms[rows] / 1000.0).tolist(),
            trace.input_tokens[rows].tolist(),
            trace.output_tokens[rows].tolist(),
            strict=True,
        )
        yield "".join(
            f"{seconds!r},{prompt},{answer}\n" for seconds, prompt, answer in columns
        ).encode()
