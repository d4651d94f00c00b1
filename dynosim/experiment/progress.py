"""How far a run or a sweep is, on stderr: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_S = 1.0
"""What ends sooner shows no bar, and does not load rich."""
BAR_CHARACTERS = 24
REFRESHES_PER_S = 2  # of the bar; each takes a millisecond from the run
PLAIN_LINES = 10


class ProgressDisplay(ABC):
    """To be told how many of all have ended. Use as a context."""

    _started_s = 0.0

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        return self

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...

    @abstractmethod
    def __call__(self, done: int, of: int, note: str = "") -> None:
        """So many have ended; `note` is shown beside them."""


class ProgressBar(ProgressDisplay):
    """A bar that appears after a second, and is gone in the end.

    One that `stays` is there when it is first told something, and left there.
    """

    def __init__(self, unit: str, *, stays: bool = False) -> None:
        self._unit = unit
        self._stays = stays
        self._shown: tuple[Progress, TaskID] | None = None

    def __exit__(self, *error: object) -> None:
        if self._shown is not None:
            self._shown[0].stop()

    def __call__(self, done: int, of: int, note: str = "") -> None:
        """See `ProgressDisplay`; the bar is drawn later, by a thread of its own."""
        if self._shown is None:
            if time.monotonic() - self._started_s < QUIET_S and not self._stays:
                return
            self._shown = self._show(done, of)
        bar, task = self._shown
        bar.update(task, completed=done, description=note)

    def _show(self, done: int, of: int) -> "tuple[Progress, TaskID]":
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        note = Column(ratio=1, no_wrap=True)  # has what is left of the line, and is cut
        bar = progress.Progress(
            progress.TextColumn(f"{{task.completed:,}}/{{task.total:,}} {self._unit}"),
            progress.BarColumn(BAR_CHARACTERS),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}", markup=False, table_column=note),
            console=Console(stderr=True),
            refresh_per_second=REFRESHES_PER_S,
            speed_estimate_period=math.inf,  # one trial may take minutes
            transient=not self._stays,
            expand=True,
            get_time=time.monotonic,
        )
        task = bar.add_task("", total=of, completed=done)
        bar.tasks[0].start_time = self._started_s
        bar.start()
        return bar, task


class ProgressLines(ProgressDisplay):
    """Some ten lines in all, with the time left if it goes on at the pace so far.

    What is told first was done before the start.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._first: int | None = None

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, done: int, of: int, note: str = "") -> None:
        """See `ProgressDisplay`."""
        if self._first is None:
            self._first = done
        num_new, every = done - self._first, max(1, (of - self._first) // PLAIN_LINES)
        if num_new and (num_new % every == 0 or done == of):
            elapsed_s = time.monotonic() - self._started_s
            left_s = elapsed_s / num_new * (of - done)
            text = f"{done}/{of} {self._unit}, {elapsed_s:.0f} s, about {left_s:.0f} s left"
            print(f"{text}  {note}".rstrip(), file=sys.stderr, flush=True)
