"""What the operator sees: progress on stderr, the address and the processes on stdout."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from dynosim_runtime.launch.lifecycle import State
from dynosim_runtime.launch.supervised import ProcessStatus

MAX_NAMES = 4  # of the processes still waited for


class _LastingConsole(Console):
    """Whoever reads it may go away, or its disk may fill: that is no reason to stop serving."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See `Console`; what cannot be written is lost."""
        with contextlib.suppress(OSError, ValueError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """See `Console`, which would end the program."""
        self.quiet = True


class StartProgress:
    """Tells of every change on stderr; on a terminal a live line says what is waited for."""

    def __init__(self, num_processes: int) -> None:
        self._console = _LastingConsole(stderr=True, highlight=False)
        self._num_processes = num_processes
        self._states: dict[str, str] = {}
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._console.status(self._line())
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.settle()

    def settle(self) -> None:
        """No more live line: from now on only what happens."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def changed(self, status: ProcessStatus, text: str) -> None:
        """Something has happened to a process."""
        self._states[status.name] = status.state
        self.say(f"{status.name}: {text}")
        if self._status is not None:
            self._status.update(self._line())

    def say(self, text: str) -> None:
        """A line on stderr, if it can be written."""
        if self._console.is_terminal:
            self._console.print(Text(text), soft_wrap=True)
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def _line(self) -> str:
        if not self._states:
            return f"starting {self._num_processes} processes"
        ready = State.READY.value
        waited_for = [name for name, state in self._states.items() if state != ready]
        num_ready = len(self._states) - len(waited_for)
        names = ", ".join(waited_for[:MAX_NAMES]) + (", ..." if waited_for[MAX_NAMES:] else "")
        return f"{num_ready} of {self._num_processes} processes ready; waiting for {names}"


def show_processes(url: str, out: Path, processes: list[ProcessStatus]) -> None:
    """The address, the folder and the table of processes on stdout; logs relative to the folder."""
    console = _LastingConsole(highlight=False)
    for line in (url, f"logs and records: {out}"):
        console.print(Text(line), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for title in ("process", "pid", "port", "state", "log"):
        table.add_column(title, no_wrap=True)
    for status in processes:
        log = status.log.relative_to(out)
        cells = (status.name, status.pid, status.port, status.state, log)
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    console.print(table)


def show_control(notes: Mapping[str, Any]) -> None:
    """Who decides on the number of workers, on stdout; nothing if nobody does."""
    control = notes.get("control")
    if control is None:
        return
    console = _LastingConsole(highlight=False)
    how = ", advisory" if control["is_advisory"] else ""
    told = f"{control['controller']}{how}: decisions in {control['log']}, {control['metrics']}"
    console.print(Text(told), soft_wrap=True)
