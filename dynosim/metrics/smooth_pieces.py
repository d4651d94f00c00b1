"""Parts of decode runs over which the step time is smooth: their gaps are known without a look at
every step.

A piece is as long as its step-time model promises (`smooth_decode_steps`), and short enough for the
step time to change little along it. Its first, middle and last step then tell the parabola that all
its steps lie on. So it is known which of its steps are shorter than a given length, and sums over
its steps of functions as smooth as x, x^2 or 1/x are sums over five points of the parabola.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.decode_runs import DecodeRuns, DecodeTimes, Rows
from dynosim.records import FloatArray, IntArray

TINY = float(np.finfo(np.float64).tiny)

MAX_TILT = 1 / 256
MAX_BEND = 1 / 65_536
"""How far the line and the square of a piece may take it off its middle, as shares of that. What
five points leave out of sums of 1/x and 1/x^2 is then below 1e-15 of them."""

# Steps lie at x = (2 j + 1 - k) / k for j in 0..k-1, in the middles of k equal cells of -1..1. The
# means of x^2 and x^4 over them are polynomials in 1 / k^2, hence so are the weights at which the
# points 0, +-1/2 and +-1 have the same means: here 45 times the coefficients of both points
# together. For many steps they become Boole's rule.
_WEIGHTS = {0.0: (6, -45, 84), 0.5: (32, 80, -112), 1.0: (7, -35, 28)}


class Listed(NamedTuple):
    """Gaps one by one, each so many times."""

    gaps_ms: FloatArray
    weights: FloatArray

    @staticmethod
    def joined(parts: "list[Listed]") -> "Listed":
        """All gaps of several lists, of which there is one at least."""
        gaps_ms, weights = zip(*parts, strict=True)
        return Listed(np.concatenate(gaps_ms), np.concatenate(weights))


class SmoothPieces(NamedTuple):
    """Runs whose steps get longer and longer, or shorter and shorter: (pieces,) each.

    Steps are counted from the shortest: step i is low + slope * i + bend * i * (i - last) long.
    """

    runs: DecodeRuns
    is_falling: NDArray[np.bool_]  # whether the run's last step is the shortest, not its first
    low_ms: FloatArray
    high_ms: FloatArray
    slope_ms: FloatArray
    bend_ms: FloatArray

    @classmethod
    def of(cls, runs: DecodeRuns, timing: DecodeTimes) -> "SmoothPieces":
        """The parabolas through the ends and the middle of runs of three steps and more."""
        last = runs.num_steps - 1
        middle = runs.num_steps // 2
        steps = np.concatenate((np.zeros_like(last), middle, last))
        first_ms, middle_ms, last_ms = np.split(
            DecodeRuns.joined([runs, runs, runs]).steps_ms(timing, steps), 3
        )
        is_falling = last_ms < first_ms
        low_ms, high_ms = np.minimum(first_ms, last_ms), np.maximum(first_ms, last_ms)
        slope_ms = (high_ms - low_ms) / last
        middle = np.where(is_falling, last - middle, middle)
        bend_ms = (middle_ms - low_ms - slope_ms * middle) / (middle * (middle - last))
        return cls(runs, is_falling, low_ms, high_ms, slope_ms, bend_ms)

    @property
    def weights(self) -> FloatArray:
        """How many gaps each piece has."""
        return (self.runs.num_decodes * self.runs.num_steps).astype(np.float64)

    def take(self, rows: Rows) -> "SmoothPieces":
        """Some of the pieces."""
        return SmoothPieces(
            self.runs.take(rows),
            self.is_falling[rows],
            self.low_ms[rows],
            self.high_ms[rows],
            self.slope_ms[rows],
            self.bend_ms[rows],
        )

    @staticmethod
    def joined(parts: "list[SmoothPieces]") -> "SmoothPieces":
        """The pieces of several, of which there is one at least."""
        if len(parts) == 1:
            return parts[0]
        runs, *columns = zip(*parts, strict=True)
        return SmoothPieces(DecodeRuns.joined(list(runs)), *map(np.concatenate, columns))

    def is_even(self) -> NDArray[np.bool_]:
        """Whether the step time changes so little along each piece that `few` is exact."""
        num_steps, last = self.runs.num_steps, self.runs.num_steps - 1
        middle_ms = self.low_ms + (self.slope_ms - self.bend_ms * (last / 2)) * (last / 2)
        tilt_ms, bend_ms = self.slope_ms * (num_steps / 2), self.bend_ms * (num_steps / 2) ** 2
        return (tilt_ms <= MAX_TILT * middle_ms) & (np.abs(bend_ms) <= MAX_BEND * middle_ms)

    def few(self) -> Listed:
        """Gaps that have the same sums as those of the pieces, five for each; weights of any sign.

        They need not be gaps of a step.
        """
        num_steps, last = self.runs.num_steps, self.runs.num_steps - 1
        rest = 1.0 / (num_steps * num_steps)
        each = self.weights / 90
        gaps_ms, weights = [], []
        for at, (constant, line, square) in _WEIGHTS.items():
            weight = each * (constant + rest * (line + rest * square))
            for side in (-at, at):
                i = (side * num_steps + last) / 2
                gaps_ms.append(self.low_ms + i * (self.slope_ms + self.bend_ms * (i - last)))
                weights.append(weight)
        return Listed(np.concatenate(gaps_ms), np.concatenate(weights))

    def num_below(self, gap_ms: float) -> FloatArray:
        """How many steps of each piece are shorter, to a fraction of a step."""
        num_steps = self.runs.num_steps
        start_ms = self.slope_ms - self.bend_ms * (num_steps - 1)  # slope at the shortest step
        rise_ms = gap_ms - self.low_ms
        root = np.sqrt(np.maximum(start_ms * start_ms + 4 * self.bend_ms * rise_ms, 0.0))
        # Where the parabola is that long, and half a step more.
        index = 2 * rise_ms / np.maximum(start_ms + root, TINY) + 0.5
        return np.minimum(np.maximum(index, 0.0), num_steps)

    def steps_ms(self, timing: DecodeTimes, pieces: IntArray, steps: IntArray) -> FloatArray:
        """The length of step `steps[i]`, counted from the shortest, of piece `pieces[i]`."""
        runs = self.runs.take(pieces)
        from_last = runs.num_steps - 1 - steps
        return runs.steps_ms(timing, np.where(self.is_falling[pieces], from_last, steps))
