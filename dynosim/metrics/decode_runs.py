"""Runs of decode steps with an unchanged batch, and the length of each of their steps.

Steps are computed a chunk at a time, so that a run of the twin with millions of steps needs no
more memory than one with thousands.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dynosim.records import FloatArray, IntArray

Rows = NDArray[np.bool_] | IntArray | slice

CHUNK_STEPS = 16_384  # 128 KiB per column: a chunk's columns stay in the second-level cache


class DecodeTimes(Protocol):
    """What the gaps need of a step-time model."""

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray: ...
    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray: ...


class DecodeRuns(NamedTuple):
    """Runs of pure decode steps: (runs,) each."""

    num_decodes: IntArray
    context_tokens: IntArray  # of the first step
    num_steps: IntArray
    scale: FloatArray | None = None  # how many times as long as the model's; None: as long

    @property
    def num_runs(self) -> int:
        """How many there are."""
        return len(self.num_steps)

    def take(self, rows: Rows) -> "DecodeRuns":
        """Some of the runs."""
        scale = None if self.scale is None else self.scale[rows]
        return DecodeRuns(
            self.num_decodes[rows], self.context_tokens[rows], self.num_steps[rows], scale
        )

    def before(self, num_steps: IntArray) -> "DecodeRuns":
        """The first steps of each run, so many."""
        return self._replace(num_steps=num_steps)

    def after(self, num_steps: IntArray) -> "DecodeRuns":
        """What is left of each run behind so many steps; runs of which nothing is are gone."""
        left = self._replace(
            context_tokens=self.context_tokens + num_steps * self.num_decodes,
            num_steps=self.num_steps - num_steps,
        )
        return left.take(left.num_steps > 0)

    def steps_ms(self, timing: DecodeTimes, steps: IntArray) -> FloatArray:
        """The length of one step of each run."""
        context_tokens = self.context_tokens + steps * self.num_decodes
        times_ms = timing.decode_step_ms_array(self.num_decodes, context_tokens)
        return times_ms if self.scale is None else times_ms * self.scale

    @staticmethod
    def joined(parts: "list[DecodeRuns]") -> "DecodeRuns":
        """The runs of several, of which there is one at least."""
        if len(parts) == 1:
            return parts[0]
        scales = [part.scale for part in parts if part.scale is not None]
        return DecodeRuns(
            np.concatenate([part.num_decodes for part in parts]),
            np.concatenate([part.context_tokens for part in parts]),
            np.concatenate([part.num_steps for part in parts]),
            np.concatenate(scales) if scales else None,
        )


class Chunk(NamedTuple):
    """The steps of rows `rows` of the runs, one entry per step."""

    rows: slice
    row_starts: IntArray  # index of each row's first step within the chunk
    gaps_ms: FloatArray
    weights: FloatArray  # sequences that decode: gaps of this length


def expand(runs: DecodeRuns, timing: DecodeTimes) -> Iterator[Chunk]:
    """All steps of `runs`, whole rows at a time, about CHUNK_STEPS steps per chunk."""
    ends = np.cumsum(runs.num_steps)
    starts = ends - runs.num_steps
    first = 0
    counter = np.arange(CHUNK_STEPS, dtype=np.int64)
    while first < len(ends):
        base = starts[first]
        last = max(first + 1, int(np.searchsorted(ends, base + CHUNK_STEPS, side="right")))
        rows = slice(first, last)
        size = int(ends[last - 1] - base)
        if size > len(counter):
            counter = np.arange(size, dtype=np.int64)
        row_starts = starts[rows] - base
        repeats, decodes = runs.num_steps[rows], runs.num_decodes[rows]
        num_decodes = np.repeat(decodes, repeats)
        # A row that begins at index p of the chunk: context of step j = (S - p n) + (p + j) n.
        context = counter[:size] * num_decodes
        context += np.repeat(runs.context_tokens[rows] - row_starts * decodes, repeats)
        gaps_ms = timing.decode_step_ms_array(num_decodes, context)
        if runs.scale is not None:
            gaps_ms = gaps_ms * np.repeat(runs.scale[rows], repeats)
        yield Chunk(rows, row_starts, gaps_ms, num_decodes.astype(np.float64))
        first = last
