"""Live progress of a sweep on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from dynosim.sweep.results import THROUGHPUT_PER_GPU

PLAIN_LINES = 10


class Progress:
    """Trials done, the best so far, the time left. Use as a context.

    `unit` says what else than trials is counted.
    """

    def __init__(
        self, *, total: int, done: int, objective: str, is_max: bool, unit: str = "trials"
    ) -> None:
        self._unit = unit
        self._total = total
        self._done = done
        self._first = done
        self._objective = objective
        self._is_max = is_max
        self._best: float | None = None
        self._best_values: Mapping[str, Any] = {}
        self._started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn(f"{{task.completed}}/{{task.total}} {self._unit}"),
                progress.BarColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=self._total, completed=self._done)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, values: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """One more has ended."""
        self._done += 1
        self._note_best(values, report)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=self._best_text())
            return
        every = max(1, (self._total - self._first) // PLAIN_LINES)
        if (self._done - self._first) % every == 0 or self._done == self._total:
            elapsed = time.monotonic() - self._started
            left = elapsed / (self._done - self._first) * (self._total - self._done)
            text = (
                f"{self._done}/{self._total} {self._unit}, {elapsed:.0f} s, about {left:.0f} s left"
            )
            print(f"{text}  {self._best_text()}".rstrip(), file=sys.stderr, flush=True)

    def _note_best(self, values: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        value = report.get(self._objective)
        if value is None:
            return
        is_better = self._best is None or (value > self._best) == self._is_max
        if is_better and value != self._best:
            self._best = float(value)
            self._best_values = values

    def _best_text(self) -> str:
        if self._best is None:
            return ""
        name = "tok/s/GPU" if self._objective == THROUGHPUT_PER_GPU else self._objective
        shape = " ".join(f"{k.rpartition('.')[2]}={v}" for k, v in self._best_values.items())
        return f"best {name} {self._best:,.1f}: {shape}"
