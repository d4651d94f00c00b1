"""What the times of tokens that decode side by side tell of single engine steps.

A stream is the times of its tokens in milliseconds, one after another.
"""

from collections.abc import Sequence

import numpy as np

from dynosim.records import FloatArray


def steady_gaps(
    streams_ms: Sequence[Sequence[float]], settle_steps: int
) -> tuple[FloatArray, float]:
    """Gaps between tokens while all streams decode, and the mean token position in them.

    `settle_steps` gaps after the last stream has begun are left out, and the one in which the
    first ends.
    """
    begin_ms = max(token_ms[0] for token_ms in streams_ms)
    end_ms = min(token_ms[-1] for token_ms in streams_ms)
    gaps, positions = [], []
    for token_ms in streams_ms:
        times = np.asarray(token_ms, dtype=np.float64)
        first = int(np.searchsorted(times, begin_ms, side="right")) + settle_steps
        last = int(np.searchsorted(times, end_ms, side="left"))
        if last > first:
            gaps.append(np.diff(times[first:last]))
            positions.append((first + last) / 2)
    if not gaps:
        return np.zeros(0), 0.0
    return np.concatenate(gaps), float(np.mean(positions))


def newcomer_gaps(
    streams_ms: Sequence[Sequence[float]], first_ms: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Per newcomer: the median gap of the streams in which its first token came, and where.

    The first token and those of the streams leave the engine together, in any order: the gap is
    that which ends closest to it. Newcomers that came before all streams decode are left out.
    """
    begin_ms = max(token_ms[0] for token_ms in streams_ms)
    samples, positions = [], []
    for newcomer_ms in first_ms:
        gaps, places = [], []
        for token_ms in streams_ms:
            times = np.asarray(token_ms, dtype=np.float64)
            nearest = int(np.argmin(np.abs(times - newcomer_ms)))
            if nearest >= 1 and times[nearest - 1] >= begin_ms:
                gaps.append(float(times[nearest] - times[nearest - 1]))
                places.append(nearest)
        if len(gaps) == len(streams_ms):
            samples.append(float(np.median(gaps)))
            positions.append(float(np.mean(places)))
    return samples, positions


def roundest(low: int, high: int) -> int:
    """The number from low to high that a person would have set: divisible by most twos."""
    return max(range(low, high + 1), key=lambda number: number & -number)
