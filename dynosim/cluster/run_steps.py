"""Engine steps since somebody looked last, also those of runs under way, each at its own length.

The journal has a row for each step or run that is over. What of a run under way has ended by now is
asked of its engine. So it is the same whether steps go by in bulk or singly.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.cluster.journal import NAN, Journal
from dynosim.cluster.pool import Worker
from dynosim.engine.engine import RunSoFar

StepRow = tuple[float, float, int, int, int, int, int, int, int, int, int, int]
"""A step, or a run of uniform steps: what `StepRows.append` gets of it, in that order. A duration
of NaN is for the step times to say."""

DURATION: Final = 1
WORKER: Final = 2
NUM_STEPS: Final = 3
NUM_PREFILLS: Final = 4
PREFILL_TOKENS: Final = 5
NUM_DECODES: Final = 7
CONTEXT: Final = 8


class NewSteps(NamedTuple):
    """What is new since the last look, in the order in which it ended."""

    over: NDArray[np.void]  # of `STEP_TYPE`
    under_way: list[StepRow]  # what of runs under way has been delivered
    workers: Sequence[Worker]  # all there have been, by id


Runs = dict[int, RunSoFar]
"""How far the runs under way are, by worker id."""


def runs_under_way(workers: Sequence[Worker], now_ms: float) -> Runs:
    """Those of some workers; who does single steps has none."""
    runs: Runs = {}
    for worker in workers:
        engine = worker.engine
        if engine.run_steps:
            so_far = engine.run_so_far(now_ms)
            if so_far is not None:
                runs[worker.worker_id] = so_far
    return runs


class StepFeed:
    """The journal's step log as it grows; two who read the same get the same list."""

    def __init__(self, journal: Journal) -> None:
        self._rows = journal.steps
        self._read = journal.steps.since(0)
        self._span = (0, len(self._read))

    def since(self, first: int) -> NDArray[np.void]:
        """The rows from that one on."""
        span = (first, len(self._rows))
        if span != self._span:
            self._read, self._span = self._rows.since(first), span
        return self._read


class StepReader:
    """Reads a feed: what is new each time."""

    def __init__(self, feed: StepFeed) -> None:
        self._feed = feed
        self._num_seen = 0

    def read(self, runs: Runs, workers: Sequence[Worker]) -> NewSteps:
        """What is new, while `runs` are under way; `workers` are all there have been."""
        over = self._feed.since(self._num_seen)
        self._num_seen += len(over)
        return NewSteps(over, _delivered(runs), workers)


def rows_of(over: NDArray[np.void]) -> list[StepRow]:
    """The same as rows by themselves."""
    times, counts = over["times"].T.tolist(), over["counts"].T.tolist()
    return list(zip(*times, *counts, strict=True))


def _delivered(runs: Runs) -> list[StepRow]:
    """What of runs has been delivered, as the journal will tell it but for counts at its end."""
    rows: list[StepRow] = []
    for worker_id, run in runs.items():
        first = run.first
        if first is not None:
            length_ms, number = first.end_ms - first.start_ms, first.num_decodes
            context = first.decode_context_tokens
            rows.append((0.0, length_ms, worker_id, 1, 0, 0, 0, number, context, 0, 0, 0))
        if run.num_steps:
            number, context = run.num_decodes, run.context_tokens
            rows.append((0.0, NAN, worker_id, run.num_steps, 0, 0, 0, number, context, 0, 0, 0))
    return rows
