"""What every worker did over time, in equal intervals.

A row of the step log that crosses a border between intervals counts in each in proportion to the
time it spends there: exact for levels (running, waiting, blocks), and for the tokens and steps of a
decode run up to the small change of the step time along the run.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynosim.metrics.lives import lived_ms
from dynosim.records import FloatArray, IntArray, RunResult, StepLog

if TYPE_CHECKING:
    import polars as pl

NUM_INTERVALS = 300  # by default, at most: enough for a plot as wide as a screen
_ROUND_MS = (1.0, 2.0, 5.0)


def default_interval_ms(end_ms: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... ms that cuts the run into at most NUM_INTERVALS."""
    if end_ms <= NUM_INTERVALS:
        return 1.0
    needed = end_ms / NUM_INTERVALS
    scale = 10.0 ** math.floor(math.log10(needed))
    return next(factor * scale for factor in (*_ROUND_MS, 10.0) if factor * scale >= needed)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Rows of a step log cut at interval borders: (pieces,) each."""

    row: IntArray  # index into the step log
    interval: IntArray
    overlap_ms: FloatArray
    share: FloatArray  # of the row; 1 in total, also for a row without duration


def cut_at_borders(steps: StepLog, interval_ms: float, num_intervals: int) -> Pieces:
    """The pieces of all rows. Rows end at or before `num_intervals * interval_ms`."""
    start_ms, end_ms = steps.start_ms, steps.start_ms + steps.duration_ms
    first = np.minimum((start_ms / interval_ms).astype(np.int64), num_intervals - 1)
    last = np.minimum((end_ms / interval_ms).astype(np.int64), num_intervals - 1)
    counts = last - first + 1
    row = np.repeat(np.arange(len(first)), counts)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    interval = first[row] + piece
    low = np.maximum(start_ms[row], interval * interval_ms)
    # The last piece takes what is left, so that rounding at a border loses nothing.
    is_last = interval == last[row]
    high = np.where(is_last, end_ms[row], (interval + 1) * interval_ms)
    overlap_ms = np.maximum(0.0, high - low)
    duration_ms = steps.duration_ms[row]
    share = np.where(duration_ms > 0, overlap_ms / np.where(duration_ms > 0, duration_ms, 1.0), 1.0)
    return Pieces(row, interval, overlap_ms, share)


def timeline_table(result: RunResult, interval_ms: float | None = None) -> "pl.DataFrame":
    """One row per worker and interval, workers in order, time ascending.

    Columns: `worker_id`, `start_ms`, `interval_ms`; `busy_share` of the interval; `steps`;
    `mean_batch` (sequences per step, weighted by time; null in an idle interval); `running`,
    `waiting`, `kv_blocks_used` (means over the interval, an idle worker counting zero),
    `kv_used_share`; `onboarding` (requests, in the mean, whose prompts were being loaded from
    slower memory before they were scheduled); `prefill_tokens` computed, `output_tokens` produced
    (first tokens included, those that end a gap stretched by preemption left out);
    `admitted_input_tokens` and `admitted_cached_tokens` of the requests first scheduled in the
    interval, and `admitted`, their number. What a request did counts at the worker that had it
    last.

    Shares and means are over the time that the worker lived in the interval, from its launch to its
    end; null if it did not.
    """
    import polars as pl

    interval = default_interval_ms(result.end_ms) if interval_ms is None else interval_ms
    if not interval > 0:
        raise ValueError(f"interval_ms must be positive, got {interval_ms}")
    num_intervals = max(1, math.ceil(result.end_ms / interval))
    num_workers = len(result.workers)
    starts: FloatArray = np.arange(num_intervals, dtype=np.float64) * interval
    lengths = np.full(num_intervals, interval)
    lengths[-1] = max(result.end_ms - (num_intervals - 1) * interval, 0.0) or interval
    cells = _Cells(result, interval, lived_ms(result.workers, starts, lengths))
    return pl.DataFrame(
        {
            "worker_id": np.repeat(np.arange(num_workers), num_intervals),
            "start_ms": np.tile(starts, num_workers),
            "interval_ms": np.tile(lengths, num_workers),
            **cells.step_columns(),
            **cells.request_columns(),
        },
        nan_to_null=True,
    )


def _ratio(amounts: FloatArray, bases: FloatArray) -> FloatArray:
    """Quotients, NaN where the base is zero."""
    known = bases > 0
    return np.where(known, amounts / np.where(known, bases, 1.0), np.nan)


class _Cells:
    """Sums per (worker, interval), flattened worker by worker."""

    def __init__(self, result: RunResult, interval_ms: float, lived_ms: FloatArray) -> None:
        num_intervals = lived_ms.shape[1]
        self._result = result
        self._interval_ms = interval_ms
        self._num_intervals = num_intervals
        self._size = lived_ms.size
        self._lived_ms = lived_ms.ravel()
        self._pieces = cut_at_borders(result.steps, interval_ms, num_intervals)
        workers = result.steps.worker_id[self._pieces.row]
        self._cell = workers * num_intervals + self._pieces.interval

    def _sum(self, weights: FloatArray) -> FloatArray:
        return np.bincount(self._cell, weights, self._size).astype(np.float64, copy=False)

    def _level(self, values: IntArray) -> FloatArray:
        return self._sum(values[self._pieces.row] * self._pieces.overlap_ms)

    def _mean(self, level_ms: FloatArray) -> FloatArray:
        """A level summed over ms as its mean over the life of a worker."""
        return _ratio(level_ms, self._lived_ms)

    def _amount(self, values: IntArray) -> FloatArray:
        return self._sum(values[self._pieces.row] * self._pieces.share)

    def step_columns(self) -> dict[str, FloatArray]:
        steps = self._result.steps
        busy_ms = self._sum(self._pieces.overlap_ms)
        batch = self._level(steps.num_decodes + steps.num_prefills)
        blocks = self._level(steps.used_blocks)
        decoded = self._amount(steps.num_decodes * steps.num_steps)
        usable_blocks = np.repeat(self._result.workers.usable_blocks, self._num_intervals)
        return {
            "busy_share": self._mean(busy_ms),
            "steps": self._amount(steps.num_steps),
            "mean_batch": _ratio(batch, busy_ms),
            "running": self._mean(self._level(steps.num_running)),
            "waiting": self._mean(self._level(steps.num_waiting)),
            "kv_blocks_used": self._mean(blocks),
            "kv_used_share": self._mean(blocks / usable_blocks),
            "onboarding": self._mean(self._onboarding_ms()),
            "prefill_tokens": self._amount(steps.prefill_tokens),
            "output_tokens": decoded + self._at(self._result.requests.first_token_ms),
        }

    def _onboarding_ms(self) -> FloatArray:
        """Time that requests spent in loads."""
        found = np.zeros((len(self._result.workers), self._num_intervals))
        log = self._result.requests
        if log.onboards is None:
            return found.ravel()
        borders_ms = np.arange(self._num_intervals + 1) * self._interval_ms
        borders_ms[-1] = max(borders_ms[-1], self._result.end_ms)
        start_ms, end_ms = log.onboards.start_ms, log.onboards.end_ms
        has_loaded = ~np.isnan(end_ms)
        for worker in np.unique(log.worker_id[has_loaded]).tolist():
            mine = has_loaded & (log.worker_id == worker)
            spent_ms = borders_ms[:, None] - start_ms[mine]
            by_then_ms = np.clip(spent_ms, 0.0, end_ms[mine] - start_ms[mine]).sum(axis=1)
            found[worker] = np.diff(by_then_ms)
        return found.ravel()

    def request_columns(self) -> dict[str, FloatArray]:
        log = self._result.requests
        return {
            "admitted": self._at(log.scheduled_ms),
            "admitted_input_tokens": self._at(log.scheduled_ms, log.input_tokens),
            "admitted_cached_tokens": self._at(log.scheduled_ms, log.cached_tokens),
        }

    def _at(self, times_ms: FloatArray, amounts: IntArray | None = None) -> FloatArray:
        """Sums of `amounts` (one each by default) of the requests in the cell of their time."""
        known = ~np.isnan(times_ms)
        interval = (times_ms[known] / self._interval_ms).astype(np.int64)
        cell = self._result.requests.worker_id[known] * self._num_intervals
        cell += np.minimum(interval, self._num_intervals - 1)
        weights = None if amounts is None else amounts[known].astype(np.float64)
        return np.bincount(cell, weights=weights, minlength=self._size).astype(np.float64)
