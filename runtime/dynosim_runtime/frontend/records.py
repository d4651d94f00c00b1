"""Records of finished requests, one JSON object a line, in files that do not grow without bound."""

from pathlib import Path
from typing import Any

import msgspec

from dynosim.metrics.tables import RECORD_FIELDS
from dynosim_runtime.errors import LiveError
from dynosim_runtime.generation import RequestRecord

MAX_BYTES = 64 << 20
MAX_FILES = 4


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

    Raises: LiveError if it cannot be written there.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "requests.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise LiveError(f"{folder}: cannot be written: {error.strerror}") from None
        self._num_bytes = self._file.tell()
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, record: RequestRecord) -> None:
        """Write one record. Raises: OSError; it is lost then, others may not be."""
        line = self._encode(record_row(record)) + b"\n"
        if self._num_bytes and self._num_bytes + len(line) > MAX_BYTES:
            self._rotate()
        self._num_bytes += self._file.write(line)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _rotate(self) -> None:
        """Begin a new file; each old one goes up by a number, the last is overwritten."""
        for number in range(MAX_FILES - 1, 0, -1):
            newer = self._numbered(number - 1)
            if newer.exists():
                newer.replace(self._numbered(number))
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._num_bytes = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
