"""Which trials a sweep runs, batch by batch: all that are given, or those that others suggest."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dynosim.config.sweep_loading import SweepConfig
from dynosim.files.digest import digest
from dynosim.sweep.ledger import Record
from dynosim.sweep.proposals import PointOutcome, Proposals, sampler_version
from dynosim.sweep.results import Row, judge, objective_values
from dynosim.sweep.space import Trial, trial_at, trials_of
from dynosim.sweep.status import FAILED, INFEASIBLE

if TYPE_CHECKING:
    from dynosim.sweep.screening import Screening

CANNOT_RUN = 2.0
UNUSABLE = 1.0
"""Violations: of a point that cannot be run, and of one that is as bad as a point that can."""


class TrialPlan(ABC):
    """Take a batch, run it, tell of it, until one is empty."""

    examples: Sequence[Trial]
    """Trials whose models, hardware and files are those of the whole sweep."""
    search_hash: str
    """Equal where the same answers bring the same trials; empty if answers do not matter."""
    screening: "Screening | None" = None
    """What a screen said of all trials, once the first batch was taken; None: there is none."""

    @property
    @abstractmethod
    def num_to_come(self) -> int:
        """How many trials there will be at most beside those that came."""

    @abstractmethod
    def next_batch(self) -> list[Trial]:
        """The next trials, numbered on; none: that was all."""

    @abstractmethod
    def told(self, records: Mapping[int, Record]) -> None:
        """The last batch has ended; `records` has what every trial of it gave."""


def plan_of(sweep: SweepConfig) -> TrialPlan:
    """How a sweep chooses its trials. Raises: ConfigError."""
    if sweep.search.is_adaptive:
        return SuggestedTrials(sweep)
    return GivenTrials(sweep) if sweep.search.screen is None else ScreenedTrials(sweep)


class GivenTrials(TrialPlan):
    """All trials in one batch: a grid, or points drawn at random."""

    search_hash = ""

    def __init__(self, sweep: SweepConfig) -> None:
        self.examples = trials_of(sweep)
        self._is_taken = False

    @property
    def num_to_come(self) -> int:
        """See `TrialPlan`."""
        return 0 if self._is_taken else len(self.examples)

    def next_batch(self) -> list[Trial]:
        """See `TrialPlan`."""
        batch = [] if self._is_taken else list(self.examples)
        self._is_taken = True
        return batch

    def told(self, records: Mapping[int, Record]) -> None:
        """Nothing follows from it."""


class ScreenedTrials(GivenTrials):
    """Those of all trials that the mean field finds worth it, in one batch."""

    def __init__(self, sweep: SweepConfig) -> None:
        super().__init__(sweep)
        self._sweep = sweep
        search = sweep.search
        self.search_hash = digest([search.screen, search.num_kept(1000), list(search.factors)])

    def next_batch(self) -> list[Trial]:
        """See `TrialPlan`. Raises: TraceError."""
        batch = super().next_batch()
        if not batch:
            return []
        from dynosim.sweep.screening import screened

        self.screening = found = screened(self._sweep, batch)
        return [trial for trial in batch if trial.index in found.kept]


class SuggestedTrials(TrialPlan):
    """Batches of a fixed size, each suggested by all that came before.

    A batch is told in its order when all of it has ended, so that what comes next does not depend
    on which trial was faster.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        self._sweep = sweep
        self._proposals = Proposals(sweep)
        self._batch: list[Trial] = []
        self._num_trials = 0
        self._is_exhausted = False
        self.examples = _examples(sweep)
        space = [[d.key, d.values, d.low, d.high, d.is_log, d.is_integer] for d in sweep.dimensions]
        constraints = sweep.constraints.model_dump(mode="json")
        search = [sweep.search.method, sweep.search.seed, sweep.search.batch_size]
        known = [space, constraints, list(sweep.objectives.items()), search]
        self.search_hash = digest([*known, sampler_version(sweep.search.method)])

    @property
    def num_to_come(self) -> int:
        """See `TrialPlan`."""
        return 0 if self._is_exhausted else (self._sweep.search.trials or 0) - self._num_trials

    def next_batch(self) -> list[Trial]:
        """See `TrialPlan`."""
        wanted = min(self._sweep.search.batch_size, self.num_to_come)
        points = self._proposals.ask(wanted)
        self._is_exhausted = len(points) < wanted
        first = self._num_trials
        self._batch = [trial_at(self._sweep, first + i, point) for i, point in enumerate(points)]
        self._num_trials += len(points)
        return self._batch

    def told(self, records: Mapping[int, Record]) -> None:
        """See `TrialPlan`."""
        rows = judge(self._sweep, self._batch, records)
        self._proposals.tell([_outcome(self._sweep, row) for row in rows])


def _examples(sweep: SweepConfig) -> list[Trial]:
    """Every listed value, and the ends of every range, beside the first of all others."""
    first = {dimension.key: dimension.samples()[0] for dimension in sweep.dimensions}
    points = [
        {**first, dimension.key: value}
        for dimension in sweep.dimensions
        for value in dimension.samples()
    ]
    return [trial_at(sweep, index, point) for index, point in enumerate(points)]


def _outcome(sweep: SweepConfig, row: Row) -> PointOutcome:
    if row.status == FAILED:
        return PointOutcome(None)
    values = objective_values(sweep, row.report)
    violation = _violation(sweep, row, is_measured=not any(map(math.isnan, values)))
    # samplers compare values of points that are usable only
    return PointOutcome(tuple(0.0 if math.isnan(value) else value for value in values), violation)


def _violation(sweep: SweepConfig, row: Row, *, is_measured: bool) -> float:
    """By how much a point misses what is asked of it; the nearer it comes, the less."""
    if row.status == INFEASIBLE:
        return CANNOT_RUN
    if row.meets_sla:
        return 0.0 if is_measured else UNUSABLE
    sla = sweep.constraints.sla
    is_searched = sweep.load.search != "fixed"
    share = row.report.get("capacity_attainment" if is_searched else "sla_attainment")
    if sla is None or sla.statistic is not None or share is None:
        return UNUSABLE
    missing = sla.share - float(share)
    return missing if missing > 0 else UNUSABLE
