"""Which engine steps each request of a replay waited for and decoded in.

With these held, first-token and decode times are sums of step durations, and smooth in the
constants of the step times.
"""

from dataclasses import dataclass

import numpy as np

from dynosim.records import FloatArray, IntArray
from dynosim.timing.model import StepTimeModel
from dynosim.validate.measurements import Clock
from dynosim.validate.replay import Predicted, step_times, taken_ms

_ROUNDING_MS = 1e-6


@dataclass(frozen=True, slots=True)
class HeldSchedule:
    """Compositions of single steps, and the ranges of steps of the first requests."""

    compositions: list[tuple[int, int, int, int, int]]  # arguments of `step_ms`
    begin: IntArray  # (n,) first step waited for
    share: FloatArray  # (n,) of that step's duration waited for
    first: IntArray  # (n,) step after the one that made the first token
    last: IntArray  # (n,) step after the one that made the last token

    def durations(self, timing: StepTimeModel) -> FloatArray:
        """Of every step, in ms."""
        return np.array([timing.step_ms(*step) for step in self.compositions])

    def sums(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Per request: the sum over the steps to its first token, and from there to its last."""
        total = np.concatenate([[0.0], np.cumsum(values)])
        partly = np.append(values, 0.0)[self.begin] * (1 - self.share)
        to_first = np.where(self.first > self.begin, total[self.first] - total[self.begin], 0.0)
        return np.where(to_first == 0, 0.0, to_first - partly), total[self.last] - total[self.first]


def held_schedule(
    predicted: Predicted, timing: StepTimeModel, clock: Clock, count: int
) -> HeldSchedule:
    """The schedule of a replay's first `count` requests."""
    steps, log = predicted.result.steps, predicted.result.requests
    starts_ms, ends_ms = step_times(steps, timing)
    visible_ms = log.arrival_ms[:count] + timing.ingress_ms
    start_ms = taken_ms(steps, timing, visible_ms) if clock == "engine" else visible_ms
    # Requests that are served alone begin with the step itself.
    begin = np.minimum(
        np.searchsorted(ends_ms, start_ms + _ROUNDING_MS, side="right"), len(ends_ms) - 1
    )
    lengths = np.maximum(ends_ms[begin] - starts_ms[begin], _ROUNDING_MS)
    share = np.clip((ends_ms[begin] - start_ms) / lengths, 0.0, 1.0)
    made_ms = timing.egress_ms + timing.ingress_ms
    shift_ms = made_ms - timing.ingress_ms
    ends = ends_ms + shift_ms + _ROUNDING_MS
    return HeldSchedule(
        compositions=_compositions(predicted),
        begin=begin,
        share=share,
        first=np.searchsorted(ends, log.first_token_ms[:count]) + 1,
        last=np.searchsorted(ends, log.finish_ms[:count]) + 1,
    )


def _compositions(predicted: Predicted) -> list[tuple[int, int, int, int, int]]:
    """Rows of many decode steps taken apart."""
    steps = predicted.result.steps
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
    return list(zip(*(column.tolist() for column in columns), strict=True))
