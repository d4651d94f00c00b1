"""A text file, plain or gzipped, as chunks of whole lines in bounded memory."""

import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynosim.errors import TraceError

CHUNK_BYTES = 4 << 20
"""Text handed on at a time: large enough for vectorised work, small beside the columns it makes."""

LINE_BYTES_MAX = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WBITS = 31
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_Read = Callable[[int], bytes]
_TextThenRest = Generator[bytes, None, bytes]


@dataclass(frozen=True, slots=True)
class LineChunk:
    """Whole lines of a file. `first_line` is the 1-based number of the first of them."""

    first_line: int
    data: bytes

    @property
    def num_lines(self) -> int:
        """Lines in the chunk, blank ones included; a last line may lack its newline."""
        newlines = np.count_nonzero(np.frombuffer(self.data, np.uint8) == ord("\n"))
        return int(newlines) + (not self.data.endswith(b"\n"))

    def numbered_lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line that is not blank, with its number."""
        for offset, line in enumerate(self.data.split(b"\n")):
            if line and not line.isspace():
                yield self.first_line + offset, line


def line_chunks(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[LineChunk]:
    """Chunks of about `chunk_bytes` of text, cut after a newline; gzip is told by its magic bytes.

    A byte order mark at the start is left out. Raises: TraceError if the file cannot be read, is
    broken gzip, or holds a line of more than `LINE_BYTES_MAX`.
    """
    try:
        yield from _cut_after_newlines(_text_blocks(path, chunk_bytes), path)
    except FileNotFoundError:
        raise TraceError("no such file", path=str(path)) from None
    except OSError as error:
        raise TraceError(f"cannot be read ({error.strerror})", path=str(path)) from None
    except (zlib.error, EOFError) as error:
        raise TraceError(f"broken gzip file ({error})", path=str(path)) from None


def _cut_after_newlines(blocks: Iterator[bytes], path: Path) -> Iterator[LineChunk]:
    line_number, rest = 1, b""
    for index, block in enumerate(blocks):
        text = block.removeprefix(_BYTE_ORDER_MARK) if index == 0 else block
        cut = text.rfind(b"\n") + 1
        if not cut:
            rest += text
            if len(rest) > LINE_BYTES_MAX:
                message = f"line longer than {LINE_BYTES_MAX >> 20} MiB: one JSON object per line?"
                raise TraceError(message, path=str(path), line=line_number)
            continue
        chunk = LineChunk(line_number, rest + text[:cut] if rest else text[:cut])
        yield chunk
        line_number += chunk.num_lines
        rest = text[cut:]
    if rest:
        yield LineChunk(line_number, rest)


def _text_blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        head = file.read(block_bytes)
        if head.startswith(_GZIP_MAGIC):
            while head:
                head = yield from _gzip_member(head, file.read, block_bytes)
            return
        while head:
            yield head
            head = file.read(block_bytes)


def _gzip_member(head: bytes, read: _Read, block_bytes: int) -> _TextThenRest:
    """Text of one gzip member; returns the bytes that follow it in the file."""
    member = zlib.decompressobj(_GZIP_WBITS)
    data = head
    while not member.eof:
        text = member.decompress(data, block_bytes)
        if text:
            yield text
        data = member.unconsumed_tail or (b"" if member.eof else read(block_bytes))
        if not (data or text or member.eof):
            raise EOFError("it ends too early")
    return member.unused_data.lstrip(b"\0") or read(block_bytes)
