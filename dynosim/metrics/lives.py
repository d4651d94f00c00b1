"""Sums over workers that live for part of a run.

A worker counts from its launch to its end (the run's, if it has none): GPU hours are an integral
over lives. At the instant of its end it counts no more, at that of its launch it does.
"""

import numpy as np

from dynosim.records import FloatArray, IntArray, WorkerLog


def lived_shares(workers: WorkerLog, start_ms: float, end_ms: float) -> FloatArray:
    """The share of a window that each worker lived; (workers,), of an empty window whole or none.

    Exactly 1 for one that was there all along, so that sums over constant clusters are exact.
    """
    ended_ms = _ended_ms(workers)
    is_there = (workers.launched_ms <= start_ms) & (ended_ms >= end_ms)
    if not end_ms > start_ms:
        return is_there.astype(np.float64)
    from_ms = np.maximum(workers.launched_ms, start_ms)
    overlap_ms = np.maximum(0.0, np.minimum(ended_ms, end_ms) - from_ms)
    return np.where(is_there, 1.0, overlap_ms / (end_ms - start_ms))


def lived_ms(workers: WorkerLog, starts_ms: FloatArray, lengths_ms: FloatArray) -> FloatArray:
    """How long each worker lived in each of some intervals; (workers, intervals)."""
    ends_ms = starts_ms + lengths_ms
    launched_ms, ended_ms = workers.launched_ms[:, None], _ended_ms(workers)[:, None]
    overlap_ms = np.minimum(ended_ms, ends_ms) - np.maximum(launched_ms, starts_ms)
    is_there = (launched_ms <= starts_ms) & (ended_ms >= ends_ms)
    return np.where(is_there, lengths_ms, np.maximum(0.0, overlap_ms))


def mean_gpus(workers: WorkerLog, start_ms: float, end_ms: float) -> float:
    """GPUs held, on average over a window."""
    return float((workers.gpus * lived_shares(workers, start_ms, end_ms)).sum())


def most_at_once(workers: WorkerLog, amounts: IntArray, end_ms: float) -> int:
    """The largest sum of `amounts` over the workers that lived at one instant of the run."""
    was_launched = workers.launched_ms <= end_ms
    has_ended = was_launched & (workers.ended_ms <= end_ms)
    times_ms = np.concatenate((workers.ended_ms[has_ended], workers.launched_ms[was_launched]))
    changes = np.concatenate((-amounts[has_ended], amounts[was_launched]))
    order = np.argsort(times_ms, kind="stable")  # at equal times, ends come first
    return int(np.cumsum(changes[order]).max(initial=0))


def common(values: IntArray) -> int | None:
    """The value that all workers share; None if they differ, or if there is none."""
    return int(values[0]) if len(values) and (values == values[0]).all() else None


def step_time_scales(workers: WorkerLog) -> FloatArray | None:
    """By worker, how many times as long as the model's steps take; None: as long everywhere."""
    scales = workers.step_time_scale
    return None if (scales == 1.0).all() else scales


def _ended_ms(workers: WorkerLog) -> FloatArray:
    return np.where(np.isnan(workers.ended_ms), np.inf, workers.ended_ms)
