"""deployment.json: what runs at the moment, for whoever wants to know."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import orjson

from dynosim_runtime.outage import Outage
from dynosim_runtime.small_files import replace_file

log = logging.getLogger(__name__)


class StatusFile:
    """A document that is replaced as a whole. What cannot be written now is written by `retry`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scratch = path.with_name(f".{path.name}")
        self._spare = path.with_name(f".{path.name}.spare")
        self._unwritten: dict[str, Any] | None = None
        self._outage = Outage(log, str(path))

    def write(self, document: dict[str, Any]) -> None:
        """Replace the document, now or later."""
        self._unwritten = document
        self.retry()

    def retry(self) -> None:
        """Write what could not be written."""
        if self._unwritten is None:
            return
        content = orjson.dumps(self._unwritten, option=orjson.OPT_INDENT_2)
        try:
            replace_file(self._path, content, scratch=self._scratch, spare=self._spare)
        except OSError as error:
            self._outage.failed(error)
            return
        self._unwritten = None
        self._outage.worked()

    def close(self) -> None:
        """The last document stays."""
        self.retry()
        with contextlib.suppress(OSError):
            self._spare.unlink(missing_ok=True)
