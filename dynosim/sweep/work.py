"""What is done with a batch of trials: each is run once, or tried at the loads that it asks for."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import DynosimError, TraceError
from dynosim.sweep.executor import Answer, Executor
from dynosim.sweep.ledger import Ledger, Record
from dynosim.sweep.load_search import LoadSearch
from dynosim.sweep.load_sweep import load_plan, probes_table, records_of, request_at, same_as
from dynosim.sweep.progress import Progress
from dynosim.sweep.space import Trial
from dynosim.sweep.status import BAD_INPUT, FAILED
from dynosim.sweep.study import LayoutStudy
from dynosim.sweep.trial import TRIAL, request_for

if TYPE_CHECKING:
    import polars as pl


class SweepInterruptedError(DynosimError):
    """Ctrl-C during a sweep; the message says what was kept and how to go on."""

    exit_code = 130


@contextmanager
def interruptible(ledger: Ledger, kept: Callable[[], str]) -> Iterator[None]:
    """Inside, Ctrl-C is told as what was `kept`, in words. Raises: SweepInterruptedError."""
    try:
        yield
    except KeyboardInterrupt:
        raise SweepInterruptedError(
            f"interrupted: {kept()} are kept in {ledger.path.parent} "
            "(give the same command with --resume to go on)"
        ) from None


@dataclass(frozen=True, slots=True)
class Tried:
    """All that was run, before it is judged. `tables` are further files, by name."""

    sweep: SweepConfig
    trials: Sequence[Trial]
    records: Mapping[int, Record]
    num_resumed: int
    probes: "pl.DataFrame | None" = None
    tables: "Mapping[str, pl.DataFrame]" = field(default_factory=dict)


class Work(ABC):
    """Finishes batches of one sweep. `num_resumed` counts what the ledger had before.

    Use as a context, which shows the progress.
    """

    unit: str

    def __init__(self, sweep: SweepConfig, ledger: Ledger, executor: Executor) -> None:
        self.num_resumed = 0
        self._sweep = sweep
        self._ledger = ledger
        self._executor = executor
        objective, goal = next(iter(sweep.objectives.items()))
        self._progress = Progress(
            total=0, done=0, objective=objective, is_max=goal == "max", unit=self.unit
        )

    def __enter__(self) -> "Work":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)

    @abstractmethod
    def finish(self, batch: Sequence[Trial], *, num_to_come: int) -> Mapping[int, Record]:
        """Run what the ledger lacks of a batch; returns what each trial that can be run gave.

        At most `num_to_come` trials will follow. Raises: TraceError.
        """

    @property
    @abstractmethod
    def kept(self) -> str:
        """How much is finished, in words."""

    def probes(self, trials: Sequence[Trial]) -> "pl.DataFrame | None":
        """Every load that was tried; None where none was sought."""
        return None


class TrialWork(Work):
    """Every trial is run once, at the load that its configuration has."""

    unit = "trials"

    def __init__(self, sweep: SweepConfig, ledger: Ledger, executor: Executor) -> None:
        super().__init__(sweep, ledger, executor)
        self._runnable: list[Trial] = []

    def finish(self, batch: Sequence[Trial], *, num_to_come: int) -> Mapping[int, Record]:
        """See `Work`."""
        runnable = [trial for trial in batch if trial.config is not None]
        todo = [trial for trial in runnable if not self._is_finished(trial)]
        num_done = len(self._runnable) + len(runnable) - len(todo)
        self.num_resumed += len(runnable) - len(todo)
        self._runnable += runnable
        self._progress.expect(len(self._runnable) + num_to_come, done=num_done)
        by_index = {trial.index: trial for trial in todo}
        requests = ((t.index, request_for(t.config)) for t in todo if t.config is not None)
        with closing(self._executor.run(TRIAL, requests)) as answers:
            for index, answer in answers:
                if answer["status"] == BAD_INPUT:
                    raise TraceError(answer["reason"])
                trial = by_index[index]
                self._ledger.append(trial, answer)
                self._progress.advance(trial.values, answer["report"])
        return {trial.index: self._ledger.records[trial.index] for trial in runnable}

    def _is_finished(self, trial: Trial) -> bool:
        record = self._ledger.record_of(trial)
        return record is not None and record["status"] != FAILED

    @property
    def kept(self) -> str:
        """See `Work`."""
        num_kept = sum(map(self._is_finished, self._runnable))
        return f"{num_kept} of {len(self._runnable)} trials"


class LoadWork(Work):
    """Every layout is tried at the loads that its search asks for."""

    unit = "layouts"

    def __init__(self, sweep: SweepConfig, ledger: Ledger, executor: Executor) -> None:
        super().__init__(sweep, ledger, executor)
        is_exhaustive = sweep.load.exhaustive or sweep.load.need is not None  # few are left by then
        self.search = LoadSearch([], load_plan(sweep), ledger, is_exhaustive=is_exhaustive)
        self._first: dict[str, int] = {}

    def finish(self, batch: Sequence[Trial], *, num_to_come: int) -> Mapping[int, Record]:
        """See `Work`."""
        same = same_as(batch, self._first)
        num_before = self.search.num_probes
        self.search.add([trial for trial in batch if same.get(trial.index) == trial.index])
        self.num_resumed += self.search.num_probes - num_before
        total = len(self.search.studies) + num_to_come
        self._progress.expect(total, done=self._half_done)
        self.search.finish(self._executor, partial(request_at, self._sweep), self._told)
        return records_of(self.search, same)

    def _told(self, layout: Trial, study: LayoutStudy, answer: Answer) -> None:
        best = study.at_capacity
        self._progress.advance(layout.values, {} if best is None else best.report, self._half_done)

    @property
    def _half_done(self) -> int:
        """Layouts that count as done: one whose capacity is located is half done."""
        return (self.search.num_located + self.search.num_finished) // 2

    @property
    def kept(self) -> str:
        """See `Work`."""
        return f"{self.search.num_probes} probes of {len(self.search.studies)} layouts"

    def probes(self, trials: Sequence[Trial]) -> "pl.DataFrame":
        """See `Work`."""
        return probes_table(self._sweep, trials, self.search)
