"""The log of a process: its output, in files that are kept small, and how they end."""

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch import log_writer
from dynosim_runtime.launch.log_writer import older_path

LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 16384


@dataclass(frozen=True, slots=True)
class ProcessLog:
    """Where a process's output goes; `path` has the newest. See `log_writer.RotatedFile`."""

    path: Path
    max_bytes: int = 64 << 20
    max_files: int = 4

    def start_writer(self) -> "subprocess.Popen[bytes]":
        """A process that appends what it is given on its standard input.

        It ends when all who may write to it have ended, whoever started it. Raises: LiveError.
        """
        limits = (str(self.max_bytes), str(self.max_files))
        command = (sys.executable, "-I", log_writer.__file__, str(self.path), *limits)
        with contextlib.suppress(OSError):  # the writer does what it can, and the process must run
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise LiveError(f"{self.path}: its writer cannot be started: {error}") from None

    def last_lines(self, num_lines: int = LOG_TAIL_LINES) -> list[str]:
        """The end of the log, without blank lines; empty if there is none."""
        lines: list[str] = []
        for number in range(self.max_files):
            lines = [*_end_of_file(older_path(self.path, number)), *lines]
            if len(lines) >= num_lines:
                break
        return lines[-num_lines:]


def _end_of_file(path: Path) -> list[str]:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
