"""Which engine steps each request of a replay waited for and decoded in.

With these held, first-token and decode times are sums of step durations, and smooth in the
constants of the step times.
"""

from dataclasses import dataclass

import numpy as np

from dynosim.fit.measurements import Clock
from dynosim.fit.replay import Predicted, common_steps, step_times, steps_of, taken_ms
from dynosim.records import FloatArray, IntArray, RequestLog, StepLog
from dynosim.timing.fitted import FittedModel
from dynosim.timing.model import StepTimeModel

_ROUNDING_MS = 1e-6


@dataclass(frozen=True, slots=True)
class HeldSchedule:
    """Compositions of single steps, and the ranges of steps of the first requests."""

    compositions: IntArray  # (steps, 5) the numbers of a `StepShape`
    begin: IntArray  # (n,) first step waited for
    share: FloatArray  # (n,) of that step's duration waited for
    first: IntArray  # (n,) step after the one that made the first token
    last: IntArray  # (n,) step after the one that made the last token

    def durations(self, timing: FittedModel) -> FloatArray:
        """Of every step, in ms."""
        return timing.steps_ms(self.compositions)

    def sums(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Per request: the sum over the steps to its first token, and from there to its last."""
        total = np.concatenate([[0.0], np.cumsum(values)])
        partly = np.append(values, 0.0)[self.begin] * (1 - self.share)
        to_first = np.where(self.first > self.begin, total[self.first] - total[self.begin], 0.0)
        return np.where(to_first == 0, 0.0, to_first - partly), total[self.last] - total[self.first]


def held_schedule(
    predicted: Predicted, timing: StepTimeModel, clock: Clock, count: int
) -> HeldSchedule:
    """The schedule of a replay's first `count` requests; the steps of engines one after another.

    Ranks in lock step have their steps in common, and each lasts as long as its slowest rank's.
    """
    result = predicted.result
    engines = result.requests.worker_id[:count]
    logs = [steps_of(result.steps, engine) for engine in range(len(result.workers))]
    if result.lock_step is not None:
        engines = np.where(engines < 0, engines, 0)
        logs = [common_steps(result.steps, timing)]
    begin, first, last = np.zeros((3, count), np.int64)
    share = np.zeros(count)
    compositions = []
    before = 0
    for engine, steps in enumerate(logs):
        rows = np.flatnonzero(engines == engine)
        found = _of_engine(steps, result.requests, rows, timing, clock)
        share[rows] = found[1]
        begin[rows], first[rows], last[rows] = (before + found[part] for part in (0, 2, 3))
        compositions.append(_compositions(steps))
        before += len(compositions[-1])
    return HeldSchedule(np.concatenate(compositions), begin, share, first, last)


def _of_engine(
    steps: StepLog, log: RequestLog, rows: IntArray, timing: StepTimeModel, clock: Clock
) -> tuple[IntArray, FloatArray, IntArray, IntArray]:
    """Begin, share, first and last (see `HeldSchedule`) of an engine's requests."""
    starts_ms, ends_ms = step_times(steps, timing)
    visible_ms = log.arrival_ms[rows] + timing.ingress_ms
    start_ms = taken_ms(steps, timing, visible_ms) if clock == "engine" else visible_ms
    # Requests that are served alone begin with the step itself.
    begin = np.minimum(
        np.searchsorted(ends_ms, start_ms + _ROUNDING_MS, side="right"), len(ends_ms) - 1
    )
    lengths = np.maximum(ends_ms[begin] - starts_ms[begin], _ROUNDING_MS)
    share = np.clip((ends_ms[begin] - start_ms) / lengths, 0.0, 1.0)
    ends = ends_ms + timing.egress_ms + _ROUNDING_MS
    first = np.searchsorted(ends, log.first_token_ms[rows]) + 1
    last = np.searchsorted(ends, log.finish_ms[rows]) + 1
    return begin, share, first, last


def _compositions(steps: StepLog) -> IntArray:
    """Rows of many decode steps taken apart."""
    counts = steps.num_steps
    row = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    columns = (
        steps.num_prefills[row],
        steps.prefill_tokens[row],
        steps.prefix_tokens[row],
        steps.num_decodes[row],
        steps.decode_context_tokens[row] + offset * steps.num_decodes[row],
    )
    return np.stack(columns, axis=1)
