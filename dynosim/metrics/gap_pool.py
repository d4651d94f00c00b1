"""All inter-token gaps of a run, in three forms: listed, smooth pieces, and runs of any shape.

The step log tells gaps apart by rows: each step of a row that decodes n sequences gives n gaps of
that step's length. Rows of one step, and gaps stretched by a preemption, are listed. Longer rows
are cut into smooth pieces where the step-time model says so; where it does not, every step has to
be looked at.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dynosim.metrics.decode_runs import DecodeRuns, DecodeTimes, expand
from dynosim.metrics.smooth_pieces import Listed, SmoothPieces
from dynosim.records import FloatArray, StepLog

FEW_STEPS = 4  # runs of so few are listed, step by step
PIECES_AT_ONCE = 2048  # their points stay in the second-level cache


class GapPool(NamedTuple):
    """The gaps of a run."""

    listed: Listed
    pieces: SmoothPieces
    shapeless: DecodeRuns
    timing: DecodeTimes

    @property
    def num_gaps(self) -> int:
        """How many there are."""
        num_decodes, num_steps = self.shapeless.num_decodes, self.shapeless.num_steps
        count = int(self.listed.weights.sum()) + int(self.pieces.weights.sum())
        return count + int((num_decodes * num_steps).sum())

    def sample_ms(self) -> FloatArray:
        """Some of the gaps, a few of each part."""
        firsts_ms = self.shapeless.steps_ms(self.timing, np.zeros_like(self.shapeless.num_steps))
        return np.concatenate((self.listed.gaps_ms, self.pieces.low_ms, firsts_ms))

    def single_gaps(self) -> Iterator[Listed]:
        """All gaps but those of the pieces, a chunk at a time."""
        if len(self.listed.gaps_ms):
            yield self.listed
        for chunk in expand(self.shapeless, self.timing):
            yield Listed(chunk.gaps_ms, chunk.weights)

    def stand_ins(self) -> Iterator[Listed]:
        """Gaps that stand for those of the pieces in sums, a chunk at a time."""
        for first in range(0, self.pieces.runs.num_runs, PIECES_AT_ONCE):
            yield self.pieces.take(slice(first, first + PIECES_AT_ONCE)).few()


def pool_of(
    steps: StepLog,
    stalled_gaps_ms: FloatArray,
    timing: DecodeTimes,
    step_time_scale: FloatArray | None,
) -> GapPool:
    """The gaps that a step log tells of, with those that preemptions stretched."""
    single = np.flatnonzero((steps.num_decodes > 0) & (steps.num_steps == 1))
    several = np.flatnonzero((steps.num_decodes > 0) & (steps.num_steps > 1))
    runs = DecodeRuns(
        steps.num_decodes[several],
        steps.decode_context_tokens[several],
        steps.num_steps[several],
        None if step_time_scale is None else step_time_scale[steps.worker_id[several]],
    )
    listed = [
        Listed(steps.duration_ms[single], steps.num_decodes[single].astype(np.float64)),
        Listed(stalled_gaps_ms, np.ones(len(stalled_gaps_ms))),
    ]
    smooth, shapeless = _cut(runs, timing)
    pieces = []
    while smooth.num_runs:
        is_long = smooth.num_steps > FEW_STEPS
        listed += [
            Listed(chunk.gaps_ms, chunk.weights) for chunk in expand(smooth.take(~is_long), timing)
        ]
        found = SmoothPieces.of(smooth.take(is_long), timing)
        is_flat = (found.low_ms == found.high_ms) & (found.bend_ms == 0)
        listed.append(Listed(found.low_ms[is_flat], found.weights[is_flat]))
        is_even = found.is_even()
        pieces.append(found.take(is_even & ~is_flat))
        uneven = found.runs.take(~is_even & ~is_flat)
        half = uneven.num_steps // 2
        smooth = DecodeRuns.joined([uneven.before(half), uneven.after(half)])
    pieces = pieces or [SmoothPieces.of(smooth, timing)]
    return GapPool(Listed.joined(listed), SmoothPieces.joined(pieces), shapeless, timing)


def _cut(runs: DecodeRuns, timing: DecodeTimes) -> tuple[DecodeRuns, DecodeRuns]:
    """Runs cut where their step time stops being smooth; and those of which nothing is known."""
    smooth, shapeless = [], []
    while runs.num_runs:
        num_steps = timing.smooth_decode_steps(*runs[:3])
        is_known = num_steps > 0
        shapeless.append(runs.take(~is_known))
        runs, num_steps = runs.take(is_known), num_steps[is_known]
        smooth.append(runs.before(num_steps))
        runs = runs.after(num_steps)
    return DecodeRuns.joined([*smooth, runs]), DecodeRuns.joined([*shapeless, runs])
