"""Others' recordings of graphs of requests: which formats there are. They are read, not written.

Their rows are always put in order of arrival: what is recorded is a graph, and a file of it has
none.
"""

import zlib
from pathlib import Path

from dynosim.errors import ConfigError
from dynosim.records import Trace

RECORDED_FORMATS = ("agentic_mooncake", "dynamo", "weka", "bailian")
_MARKS = {b'"dynamo.agentic_mooncake"': "agentic_mooncake", b'"dynamo.request.trace.v1"': "dynamo"}
"""What the first line of a file has in it that says its format."""
_HEAD_BYTES = 4096
_GZIP_MAGIC, _GZIP_WBITS = b"\x1f\x8b", 31


def read_recorded(
    form: str, path: Path, *, block_tokens: int | None, skip_bad_lines: bool
) -> Trace:
    """The trace of a recording; `block_tokens` is what the user says of its blocks, or None.

    Raises: TraceError; ConfigError for an unknown format.
    """
    if form == "agentic_mooncake":
        from dynosim.workload.agentic_mooncake import read_agentic_mooncake

        return read_agentic_mooncake(path, block_tokens=block_tokens, skip_bad_lines=skip_bad_lines)
    if form == "dynamo":
        from dynosim.workload.dynamo_requests import read_dynamo_requests

        return read_dynamo_requests(path, block_tokens=block_tokens, skip_bad_lines=skip_bad_lines)
    if form == "weka":
        from dynosim.workload.weka import read_weka

        return read_weka(path, block_tokens=block_tokens, skip_bad_lines=skip_bad_lines)
    if form == "bailian":
        from dynosim.workload.bailian import read_bailian

        return read_bailian(path, block_tokens=block_tokens, skip_bad_lines=skip_bad_lines)
    raise ConfigError(f"format: {form!r} is no recording of a graph of requests")


def recorded_format_of(path: Path) -> str | None:
    """The format of a file whose first line says it; None of any other, and of none."""
    line = _head(path).partition(b"\n")[0]
    return next((form for mark, form in _MARKS.items() if mark in line), None)


def _head(path: Path) -> bytes:
    """The beginning of a file's text; empty if it cannot be read, which its reader will say."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if head.startswith(_GZIP_MAGIC):
            return zlib.decompressobj(_GZIP_WBITS).decompress(head, _HEAD_BYTES)
    except (OSError, zlib.error):
        return b""
    return head
