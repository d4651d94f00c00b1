"""Records of finished requests, one JSON object a line, in files that do not grow without bound."""

import logging
from logging.handlers import RotatingFileHandler
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RotatingFileHandler(
                folder / "requests.jsonl", maxBytes=MAX_BYTES, backupCount=MAX_FILES - 1
            )
        except OSError as error:
            raise LiveError(f"{folder}: cannot be written: {error.strerror}") from None
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, record: RequestRecord) -> None:
        """Write one record. A full disk is reported once by `logging` and loses only records."""
        line = self._encode(record_row(record)).decode()
        self._file.emit(logging.LogRecord("", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
