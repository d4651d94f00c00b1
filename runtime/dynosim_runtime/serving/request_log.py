"""Records of finished requests, one JSON object a line, in files that do not grow without bound."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from dynosim.files.storage import is_fault
from dynosim.metrics.tables import RECORD_FIELDS
from dynosim_runtime.errors import LiveError
from dynosim_runtime.outage import Outage
from dynosim_runtime.requests import RequestRecord

MAX_BYTES = 64 << 20
MAX_FILES = 4

log = logging.getLogger(__name__)


def record_row(record: RequestRecord) -> dict[str, Any]:
    """A record with the fields, and in the order, that the twin's table has."""
    derived = {
        "ttft_ms": record.ttft_ms,
        "itl_mean_ms": record.tpot_ms,
        "tpot_ms": record.tpot_ms,
        "e2e_ms": record.e2e_ms,
    }
    return {
        name: derived[name] if name in derived else getattr(record, name) for name in RECORD_FIELDS
    }


class RecordWriter:
    """Appends records to `requests.jsonl` in a folder; old files get a number and then go.

    A record that cannot be written, as on a full disk, is lost; of the others every line is whole.
    Raises: LiveError if it cannot be written there, for other reasons than a disk that may recover.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "requests.jsonl"
        self._file: int | None = None
        self._num_bytes = 0
        self._has_torn_line = False  # at its end, where half a line could not be taken back
        self._outage = Outage(log, f"{folder}: records of requests are lost")
        self._encode = msgspec.json.Encoder().encode
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            if not (is_fault(error) and folder.is_dir()):
                raise LiveError(f"{folder}: cannot be written: {error.strerror}") from None

    @property
    def num_lost(self) -> int:
        """Records that could not be written."""
        return self._outage.num_total

    def __call__(self, record: RequestRecord) -> None:
        """Write one record, or lose it."""
        line = self._encode(record_row(record)) + b"\n"
        try:
            file = self._open()
            if self._num_bytes and self._num_bytes + len(line) > MAX_BYTES:
                self._rotate()
                file = self._open()
            self._append(file, line)
        except OSError as error:
            self._outage.failed(error)
        else:
            self._outage.worked()

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                os.close(file)

    def _open(self) -> int:
        """The file, opened if it is not. Raises: OSError."""
        if self._file is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o644)
            self._num_bytes = os.fstat(self._file).st_size
            last = os.pread(self._file, 1, self._num_bytes - 1) if self._num_bytes else b"\n"
            self._has_torn_line = last != b"\n"  # left by a process that was killed
        return self._file

    def _append(self, file: int, line: bytes) -> None:
        """Raises: OSError; what was written of the line is taken back."""
        rest = b"\n" + line if self._has_torn_line else line
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            self._has_torn_line = not _cut(file, self._num_bytes)
            raise
        self._num_bytes += len(line) + self._has_torn_line
        self._has_torn_line = False

    def _rotate(self) -> None:
        """Begin a new file; each old one goes up by a number, the last is overwritten."""
        for number in range(MAX_FILES - 1, 0, -1):
            newer = self._numbered(number - 1)
            if newer.exists():
                newer.replace(self._numbered(number))
        self.close()
        self._num_bytes = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _cut(file: int, num_bytes: int) -> bool:
    """Whether the file could be cut to so many bytes."""
    try:
        os.ftruncate(file, num_bytes)
    except OSError:
        return False
    return True
