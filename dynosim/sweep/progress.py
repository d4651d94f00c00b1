"""Live progress of a sweep on stderr, with the best trial so far."""

import sys
from collections.abc import Mapping
from typing import Any

from dynosim.experiment.progress import ProgressBar, ProgressDisplay, ProgressLines
from dynosim.plots.trials import short_names
from dynosim.sweep.results import THROUGHPUT_PER_GPU


class Progress:
    """Trials done, the best so far, the time left. Use as a context.

    `unit` says what else than trials is counted.
    """

    def __init__(
        self, *, total: int, done: int, objective: str, is_max: bool, unit: str = "trials"
    ) -> None:
        self._total = total
        self._done = done
        self._is_shown = False
        self._objective = objective
        self._is_max = is_max
        self._best: float | None = None
        self._best_values: Mapping[str, Any] = {}
        is_terminal = sys.stderr.isatty()
        self._display: ProgressDisplay = (
            ProgressBar(unit, stays=True) if is_terminal else ProgressLines(unit)
        )

    def __enter__(self) -> "Progress":
        self._display.__enter__()
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)

    def expect(self, total: int, *, done: int) -> None:
        """There are more than was thought, or fewer, and some have ended."""
        self._total, self._done = total, done
        if not self._is_shown:
            self._show()

    def _show(self, note: str = "") -> None:
        """Nothing before there is something to do: what is shown first was done before."""
        if self._total:
            self._is_shown = True
            self._display(self._done, self._total, note)

    def advance(
        self, values: Mapping[str, Any], report: Mapping[str, Any], done: int | None = None
    ) -> None:
        """One more has ended, or as many as are `done` now."""
        before, self._done = self._done, self._done + 1 if done is None else done
        self._note_best(values, report)
        if self._done != before:
            self._show(self._best_text())

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
        names = short_names(list(self._best_values))
        shape = " ".join(f"{names[key]}={value}" for key, value in self._best_values.items())
        return f"best {name} {self._best:,.1f}: {shape}"
