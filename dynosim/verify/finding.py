"""Which files are recordings, told by what they hold, not by their names."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dynosim.errors import DynosimError, TraceError
from dynosim.files.user_text import parse_json
from dynosim.verify.verdict import CURVE, EXPERIMENT, LOG
from dynosim.workload.lines import LineChunk, line_chunks

_HEAD_BYTES = 1 << 16
_TIMES = ("ttft_ms", "first_token_ms")


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at the paths that were given."""

    recordings: tuple[tuple[Path, str], ...]  # file, kind
    unreadable: tuple[tuple[Path, str], ...]  # file, what is wrong with it and what to do
    passed_over: tuple[Path, ...]  # files in folders that are something else


def find_recordings(paths: Iterable[Path]) -> Found:
    """Every recording in files and folders, each once, in order of name within a folder."""
    recordings: list[tuple[Path, str]] = []
    unreadable: list[tuple[Path, str]] = []
    passed_over: list[Path] = []
    for path, is_named in _files(paths):
        try:
            kind = kind_of(path)
        except DynosimError as error:
            unreadable.append((path, str(error)))
            continue
        if kind is not None:
            recordings.append((path, kind))
        elif is_named:
            unreadable.append((path, f"{path}: {_UNKNOWN}"))
        else:
            passed_over.append(path)
    return Found(tuple(recordings), tuple(unreadable), tuple(passed_over))


_UNKNOWN = (
    "no recording: expected a log of requests (JSON lines or CSV with arrival_ms and ttft_ms or"
    " first_token_ms), a list of experiments (JSON with measured_ms), or a throughput curve (JSON"
    " with setup, measured and requests)"
)


def kind_of(path: Path) -> str | None:
    """The kind of a file; None for one that is no recording.

    Raises: TraceError for what cannot be read, or begins as JSON and is none.
    """
    chunks = line_chunks(path, _HEAD_BYTES)
    head = next(chunks, None)
    first = None if head is None else next(head.numbered_lines(), None)
    if head is None or first is None:
        return None
    line, text = first
    if text.lstrip()[:1] not in (b"{", b"["):
        columns = text.decode("utf-8", "replace").strip().split(",")
        return LOG if "arrival_ms" in columns and any(one in columns for one in _TIMES) else None
    try:
        start = parse_json(text)
    except ValueError:
        return _kind_of_document(read_document(path))
    if isinstance(start, dict) and "requests" not in start:
        return _kind_of_row(start, head, line, path)
    return _kind_of_document(start)


def read_document(path: Path) -> Any:
    """The JSON document in a file, plain or gzipped. Raises: TraceError."""
    text = b"".join(chunk.data for chunk in line_chunks(path))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TraceError(
            f"not JSON: {error.msg} (mend it, or fetch the file again)",
            path=str(path),
            line=error.lineno,
        ) from None
    except (ValueError, RecursionError) as error:
        raise TraceError(f"not JSON: {error}", path=str(path)) from None


def _kind_of_row(row: dict[str, Any], head: LineChunk, line: int, path: Path) -> str | None:
    """Of JSON lines: told by the first, or by the second where that is the set-up."""
    if "setup" in row:
        following = next(islice(head.numbered_lines(), 1, None), None)
        if following is None:
            raise TraceError("a set-up and no requests (record some)", path=str(path), line=line)
        return LOG
    return LOG if "arrival_ms" in row and any(one in row for one in _TIMES) else None


def _kind_of_document(data: Any) -> str | None:
    if isinstance(data, list):
        objects = [one for one in data if isinstance(one, dict)]
        return EXPERIMENT if any("measured_ms" in one for one in objects) else None
    if isinstance(data, dict) and {"setup", "measured", "requests"} <= data.keys():
        return CURVE
    return None


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """Files, and whether they were named; hidden ones only if they were."""
    seen: set[Path] = set()
    for path in paths:
        is_folder = path.is_dir()
        for file in sorted(_inside(path)) if is_folder else [path]:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file, not is_folder


def _inside(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place) / name
            if not name.startswith(".") and path.is_file():
                yield path
