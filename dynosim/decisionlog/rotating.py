"""The log of a controller that runs for ever: the last files, each of which replays on its own.

A controller remembers, and what it remembers has no end either. So with each new file it begins
anew, prepared by the looks of the last half of the file before; they stand first in the new one. It
forgets what was earlier, and whoever reads the file knows all that it knew.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from dynosim.decisionlog.files import (
    DecisionLogHeader,
    decision_files,
    decoded,
    encoded,
    file_name,
    file_number,
)
from dynosim.errors import ConfigError
from dynosim.planner.controller import Controller
from dynosim.planner.decision import ScalingDecision
from dynosim.planner.look import Look
from dynosim.planner.observation import Observation

KEPT_SHARE = 0.5  # of a file's size, that begins the next one

logger = logging.getLogger(__name__)


class DecisionLog:
    """Keeps a controller's last looks in `folder`, as `decisions-000001.jsonl`, ...

    At most `max_files` files of `max_bytes` (and the rest of a line) are kept. Should the disk
    fail, the log ends there, `failure` tells why; with the next look a file is begun anew, until
    that works. Raises: ConfigError if the folder cannot be written.
    """

    def __init__(
        self, folder: Path, header: DecisionLogHeader, *, max_bytes: int, max_files: int
    ) -> None:
        if max_bytes < 1 or max_files < 1:
            raise ConfigError(
                f"{folder}: a decision log needs at least 1 byte per file and 1 file, got "
                f"{max_bytes} and {max_files}"
            )
        self.failure: str | None = None
        self._folder = folder
        self._header = header
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._file: IO[bytes] | None = None
        self._num_bytes = 0
        self._last: deque[bytes] = deque()  # the latest lines, `KEPT_SHARE` of a file
        self._last_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._kept = decision_files(folder)
            self._begin(())
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None

    @property
    def is_full(self) -> bool:
        """Whether a new file is to be begun."""
        return self._file is None or self._num_bytes >= self._max_bytes

    def last_lines(self) -> tuple[bytes, ...]:
        """What the next file is to begin with."""
        return tuple(self._last)

    def write(self, look: Look) -> None:
        """Append a look; it is with the operating system then."""
        line = encoded(look)
        self._last.append(line)
        self._last_bytes += len(line)
        while self._last_bytes > KEPT_SHARE * self._max_bytes:
            self._last_bytes -= len(self._last.popleft())
        if self._file is None:
            return
        try:
            self._write(line)
        except OSError as error:
            self._fail(error)

    def rotate(self, before: Sequence[bytes]) -> bool:
        """Begin a new file with these lines; whether that worked."""
        try:
            self._begin(before)
        except OSError as error:
            self._fail(error)
            return False
        if self.failure is not None:
            self.failure = None
            logger.warning("%s: the decision log goes on", self._folder)
        return True

    def close(self) -> None:
        """Finish the log."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _begin(self, before: Sequence[bytes]) -> None:
        """What the old files hold is given up only when the new one has its beginning."""
        self.close()
        number = file_number(self._kept[-1]) + 1 if self._kept else 1
        path = self._folder / file_name(number)
        self._file = path.open("wb", buffering=0)
        try:
            self._write(encoded(replace(self._header, num_before=len(before))))
            for line in before:
                self._write(line)
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise
        self._num_bytes = 0  # what it begins with is not what fills it
        self._kept.append(path)
        while len(self._kept) > self._max_files:
            self._kept.pop(0).unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        num_written = self._file.write(line)
        if num_written != len(line):
            raise OSError(0, "only part of a line could be written")
        self._num_bytes += len(line)

    def _fail(self, error: OSError) -> None:
        is_news = self.failure is None
        self.failure = f"{self._folder}: the decision log ends here: {error.strerror}"
        if is_news:
            logger.error("%s", self.failure)
        self.close()


class LoggedController:
    """A `Controller` whose looks are kept; `make` gives a new one, as the log's header says."""

    def __init__(self, make: Callable[[], Controller], log: DecisionLog) -> None:
        self._make = make
        self._log = log
        self._controller = make()

    @property
    def name(self) -> str:
        """See `Controller`."""
        return self._controller.name

    @property
    def next_ms(self) -> float:
        """See `Controller`."""
        return self._controller.next_ms

    def look(self, seen: Observation) -> ScalingDecision | None:
        """See `Controller`. The first look that finds the log's file full begins another."""
        if self._log.is_full:
            self._begin_anew()
        decision = self._controller.look(seen)
        self._log.write(Look(seen, decision))
        return decision

    def _begin_anew(self) -> None:
        """Go on with a new controller, prepared as whoever replays the new file will prepare it."""
        lines = self._log.last_lines()
        if not self._log.rotate(lines):
            return
        self._controller = self._make()
        for line in lines:
            self._controller.look(decoded(line).seen)
