"""A file that never grows beyond its limit, and the process that fills one with another's output.

Run as a script: `log_writer.py FILE MAX_BYTES MAX_FILES` writes its standard input to FILE until
the input ends, which is when the last process that may write to it is gone. Being a process of its
own, it loses nothing of what is said while, or after, the one who started it dies.

Imports nothing but the standard library, so that it starts at once with any Python.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

PIECE_BYTES = 1 << 16
MAX_OVERRUN_BYTES = 1 << 16  # beyond a file's limit, for a line to end


class RotatedFile:
    """FILE takes what is written; when full it becomes FILE.1, FILE.1 becomes FILE.2, ...

    `max_files` files are kept, each of `max_bytes` and the rest of its last line: only a line that
    has no end for long is cut in two. What cannot be written (a full disk) is left out, and told
    of when writing works again.
    """

    def __init__(self, path: Path, max_bytes: int, max_files: int) -> None:
        """Goes on behind what the file holds."""
        self._path = path
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._num_bytes = 0
        self._num_lost_bytes = 0
        self._is_full = False
        self._file: int | None = None

    def write(self, data: bytes) -> None:
        """Append, in as many files as that takes."""
        while data:
            if self._is_full:
                self._rotate()
            end = self._end_of_part(data)
            part, data = data[:end], data[end:]
            self._append(part)
            over = self._num_bytes - self._max_bytes
            self._is_full = over >= MAX_OVERRUN_BYTES or (over >= 0 and part.endswith(b"\n"))

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what a disk tells so late is lost anyway
                os.close(file)

    def _end_of_part(self, data: bytes) -> int:
        """Where the line ends that fills the file; the end of the data if none does."""
        room = self._max_bytes - self._num_bytes
        if len(data) < room:
            return len(data)
        return data.find(b"\n", max(room - 1, 0)) + 1 or len(data)

    def _append(self, data: bytes) -> None:
        try:
            if self._num_lost_bytes:
                self._write(b"[%d bytes could not be written]\n" % self._num_lost_bytes)
                self._num_lost_bytes = 0
            self._write(data)
        except OSError:
            self._num_lost_bytes += len(data)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            # a pipe of that name is an error, not something to wait for
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
            self._file = os.open(self._path, flags, 0o644)
            self._num_bytes = os.fstat(self._file).st_size
        while data:
            num_written = os.write(self._file, data)
            self._num_bytes += num_written
            data = data[num_written:]

    def _rotate(self) -> None:
        """The full file steps back; should that fail, it goes on."""
        self.close()
        self._num_bytes = 0
        with contextlib.suppress(OSError):
            for number in range(self._max_files - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    older_path(self._path, number - 1).replace(older_path(self._path, number))


def older_path(path: Path, number: int) -> Path:
    """What a rotated file is called that was full so many files ago; 0: itself."""
    return path.with_name(f"{path.name}.{number}") if number else path


def main(path: str, max_bytes: int, max_files: int) -> None:
    """Write standard input to the file until it ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of the input is what counts
    file = RotatedFile(Path(path), max_bytes, max_files)
    while piece := os.read(0, PIECE_BYTES):
        file.write(piece)
    file.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
