"""Engine steps since somebody looked last, also those of runs under way, each at its own length.

The journal has a row for each step or run that is over. What of a run under way has ended by now is
asked of its engine. So it is the same whether steps go by in bulk or singly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.cluster.journal import NAN, Journal
from dynosim.cluster.pool import Worker
from dynosim.engine.engine import RunSoFar
from dynosim.records import FloatArray, IntArray
from dynosim.timing.model import StepTimeModel

# Columns of a row's counts, in the order of `StepRows.append`.
WORKER, NUM_STEPS, NUM_PREFILLS, PREFILL_TOKENS = 0, 1, 2, 3
NUM_DECODES, CONTEXT = 5, 6


class RunUnderWay(NamedTuple):
    """What of a worker's run has been delivered."""

    worker: Worker
    so_far: RunSoFar

    @property
    def num_steps(self) -> int:
        """Steps delivered since it began."""
        return self.so_far.num_steps + (self.so_far.first is not None)

    def rows(self) -> tuple[list[float], list[list[int]]]:
        """What was delivered as rows will tell it, but for counts at their ends: lengths in ms (NaN
        where it is for the step times to say), and counts."""
        worker_id, so_far = self.worker.worker_id, self.so_far
        first = so_far.first
        lengths_ms, counts = [], []
        if first is not None:
            lengths_ms.append(first.end_ms - first.start_ms)
            decoding = [first.num_decodes, first.decode_context_tokens]
            counts.append([worker_id, 1, 0, 0, 0, *decoding, 0, 0, 0])
        if so_far.num_steps:
            lengths_ms.append(NAN)
            decoding = [so_far.num_decodes, so_far.context_tokens]
            counts.append([worker_id, so_far.num_steps, 0, 0, 0, *decoding, 0, 0, 0])
        return lengths_ms, counts


class NewSteps(NamedTuple):
    """Rows since the last look, oldest first, and runs under way."""

    duration_ms: FloatArray
    counts: NDArray[np.int64]  # (rows, 10)
    runs: list[RunUnderWay]
    times: dict[int, StepTimeModel]  # by worker id

    @property
    def worker_id(self) -> IntArray:
        """Whose rows they are."""
        return self.counts[:, WORKER]


class StepReader:
    """Reads the journal's step log as it grows."""

    def __init__(self, journal: Journal) -> None:
        self._rows = journal.steps
        self._num_seen = 0
        self._times: dict[int, StepTimeModel] = {}
        self._num_workers = 0

    def read(self, workers: Sequence[Worker], alive: Sequence[Worker], now_ms: float) -> NewSteps:
        """What is new at `now_ms`; `workers` are all there have been."""
        for worker in workers[self._num_workers :]:
            self._times[worker.worker_id] = worker.pool.times
        self._num_workers = len(workers)
        new = self._rows.array()[self._num_seen :]
        duration_ms, counts = new["times"][:, 1].copy(), new["counts"].copy()
        del new  # the log cannot grow while somebody looks at it
        self._num_seen += len(duration_ms)
        runs = []
        for worker in alive:
            so_far = worker.engine.run_so_far(now_ms)
            if so_far is not None and (so_far.num_steps or so_far.first is not None):
                runs.append(RunUnderWay(worker, so_far))
        return NewSteps(duration_ms, counts, runs, self._times)


class StepTally:
    """Gaps between tokens by bucket (bounds in seconds): each decoding sequence has one a step."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_ms = np.array(bounds_s) * 1e3
        self._counts: IntArray = np.zeros(len(bounds_s) + 1, np.int64)
        self._total_ms = 0.0

    def add_gaps(self, gaps_ms: FloatArray, slack_ms: float) -> None:
        """Gaps one by one."""
        if len(gaps_ms):
            self._count(self._counts, gaps_ms, np.ones(len(gaps_ms), np.int64), slack_ms)
            self._total_ms += float(gaps_ms.sum())

    def add_rows(self, steps: NewSteps, slack_ms: float) -> None:
        """Steps and runs that are over."""
        counts = steps.counts
        num_decodes = counts[:, NUM_DECODES]
        decodes = num_decodes > 0
        self._total_ms += float((steps.duration_ms * num_decodes)[decodes].sum())
        single = decodes & (counts[:, NUM_STEPS] == 1)
        self._count(self._counts, steps.duration_ms[single], num_decodes[single], slack_ms)
        several = counts[decodes & (counts[:, NUM_STEPS] > 1)]
        if not len(several):
            return
        for times, rows in by_times(several, steps.times):
            self._count_runs(
                self._counts,
                times,
                rows[:, NUM_DECODES],
                rows[:, CONTEXT],
                rows[:, NUM_STEPS],
                slack_ms,
            )

    def with_runs(self, runs: list[RunUnderWay], slack_ms: float) -> tuple[IntArray, float]:
        """Counts and sum in ms, those of runs under way included."""
        counts, total_ms = self._counts.copy(), self._total_ms
        for worker, so_far in runs:
            first, times = so_far.first, worker.pool.times
            if first is not None:
                length_ms = first.end_ms - first.start_ms
                one = np.array([length_ms])
                self._count(counts, one, np.array([first.num_decodes]), slack_ms)
                total_ms += length_ms * first.num_decodes
            if so_far.num_steps:
                number, context = so_far.num_decodes, so_far.context_tokens
                self._count_runs(
                    counts,
                    times,
                    np.array([number]),
                    np.array([context]),
                    np.array([so_far.num_steps]),
                    slack_ms,
                )
                total_ms += times.decode_run_ms(number, context, so_far.num_steps) * number
        return counts, total_ms

    def _count(
        self, counts: IntArray, lengths_ms: FloatArray, weights: IntArray, slack_ms: float
    ) -> None:
        places = np.searchsorted(self._bounds_ms, lengths_ms - slack_ms)
        found = np.bincount(places, weights, minlength=len(counts))
        counts += found.astype(np.int64)

    def _count_runs(
        self,
        counts: IntArray,
        times: StepTimeModel,
        num_decodes: IntArray,
        contexts: IntArray,
        num_steps: IntArray,
        slack_ms: float,
    ) -> None:
        """Steps of runs. Where lengths only rise, the first and the last often tell all."""
        last_contexts = contexts + num_decodes * (num_steps - 1)
        places, last_places = (
            np.searchsorted(
                self._bounds_ms, times.decode_step_ms_array(num_decodes, those) - slack_ms
            )
            for those in (contexts, last_contexts)
        )
        is_whole = places == last_places
        if not times.decode_is_monotone:
            is_whole[:] = False
        weights = (num_decodes * num_steps)[is_whole]
        counts += np.bincount(places[is_whole], weights, minlength=len(counts)).astype(np.int64)
        for row in np.flatnonzero(~is_whole).tolist():
            number = int(num_decodes[row])
            those = contexts[row] + number * np.arange(num_steps[row], dtype=np.int64)
            all_equal = np.full(len(those), number, np.int64)
            lengths_ms = times.decode_step_ms_array(all_equal, those)
            self._count(counts, lengths_ms, all_equal, slack_ms)


def by_times(
    rows: NDArray[np.int64], times: dict[int, StepTimeModel]
) -> list[tuple[StepTimeModel, NDArray[np.int64]]]:
    """Rows by the step times of their workers."""
    models: dict[int, StepTimeModel] = {}
    numbers = {}
    for worker_id in np.unique(rows[:, WORKER]).tolist():
        model = times[worker_id]
        models[id(model)] = model
        numbers[worker_id] = id(model)
    if len(models) == 1:
        return [(model, rows) for model in models.values()]
    of_row = np.array([numbers[worker_id] for worker_id in rows[:, WORKER].tolist()])
    return [(model, rows[of_row == number]) for number, model in models.items()]
