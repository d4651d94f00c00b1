"""Exact order statistics of a pool of gaps, of which only those near the wanted ranks are seen.

All gaps are counted in bins by their length; a smooth piece lies in the bins of its shortest to its
longest step. So the bins that can hold a rank are known, and the few pieces that reach into these.
Their parabolas tell nearly how many of their steps are shorter than the gap in question; the steps
about that place are computed, and they show whether it was the right one.
"""

from typing import NamedTuple

import numpy as np

from dynosim.metrics.decode_runs import DecodeTimes
from dynosim.metrics.gap_pool import GapPool
from dynosim.metrics.smooth_pieces import Listed, SmoothPieces
from dynosim.records import FloatArray, IntArray

_BIN_BITS = 42  # of a double's 64: bins are 0.1 % wide
_NUM_BINS = 1 << 14  # sixteen octaves; what lies outside is in the first or the last bin
_MAX_GUESSES = 12
_MARGINS = (1, 8)  # steps beside the place that the parabolas tell


class _Bins:
    """Bins of gap lengths, equal in their logarithm: the bits of doubles >= 0 rise with them."""

    def __init__(self, highest_ms: float) -> None:
        self._first = max(0, int(_bits(np.array([highest_ms]))[0]) - _NUM_BINS + 1)

    def of(self, gaps_ms: FloatArray) -> IntArray:
        """The bins of some gaps."""
        bins = _bits(gaps_ms) - self._first
        return np.clip(bins, 0, _NUM_BINS - 1, out=bins)

    def start_ms(self, index: int) -> float:
        """The shortest gap of a bin but the first."""
        bits = np.array([(self._first + index) << _BIN_BITS], np.int64)
        return float(bits.view(np.float64)[0])


def _bits(gaps_ms: FloatArray) -> IntArray:
    positive_zeros = gaps_ms + 0.0
    return positive_zeros.view(np.int64) >> _BIN_BITS


class _Suspects(NamedTuple):
    """Where the gap of one rank is to be sought."""

    rank: float  # among what follows
    gaps_ms: FloatArray  # single ones, sorted
    before: FloatArray  # how many gaps are before each of them, and how many there are
    pieces: SmoothPieces
    low_ms: float
    high_ms: float


class GapRanks:
    """The gaps of a pool, sorted in mind."""

    def __init__(self, pool: GapPool, lowest_ms: float, highest_ms: float) -> None:
        """`lowest_ms` and `highest_ms` are the shortest and the longest gap."""
        self._pool = pool
        self._bins = _Bins(highest_ms)
        self._lowest_ms, self._highest_ms = lowest_ms, highest_ms
        pieces = pool.pieces
        self._low_bins, self._high_bins = (
            self._bins.of(pieces.low_ms),
            self._bins.of(pieces.high_ms),
        )
        single = np.zeros(_NUM_BINS)
        for gaps_ms, weights in pool.single_gaps():
            single += self._counts(self._bins.of(gaps_ms), weights)
        # Gaps up to a bin's end: that may lie there, and that certainly do.
        self._may_be = np.cumsum(single + self._counts(self._low_bins, pieces.weights))
        self._must_be = np.cumsum(single + self._counts(self._high_bins, pieces.weights))

    @staticmethod
    def _counts(bins: IntArray, weights: FloatArray) -> FloatArray:
        return np.bincount(bins, weights, _NUM_BINS).astype(np.float64, copy=False)

    def select(self, ranks: set[int]) -> dict[int, float]:
        """The gaps at these indices of the sorted pool."""
        wanted = np.array(sorted(ranks))
        first = np.searchsorted(self._may_be, wanted, side="right").tolist()
        last = np.searchsorted(self._must_be, wanted, side="right").tolist()
        bins = list(zip(first, last, strict=True))
        near = self._near(bins)
        before = np.concatenate(([0.0], np.cumsum(near.weights)))
        starts = np.searchsorted(self._bins.of(near.gaps_ms), first).tolist()
        ends = np.searchsorted(self._bins.of(near.gaps_ms), last, side="right").tolist()
        found = {}
        for rank, in_bins, start, end in zip(wanted.tolist(), bins, starts, ends, strict=True):
            gaps_ms, counts = near.gaps_ms[start:end], before[start : end + 1] - before[start]
            suspects = self._suspects(rank, *in_bins, gaps_ms, counts)
            found[rank] = _find(suspects, self._pool.timing)
        return found

    def _near(self, bins: list[tuple[int, int]]) -> Listed:
        """All single gaps in these ranges of bins, sorted."""
        is_wanted = np.zeros(_NUM_BINS, np.bool_)
        for first, last in bins:
            is_wanted[first : last + 1] = True
        found = [Listed(np.zeros(0), np.zeros(0))]
        for gaps_ms, weights in self._pool.single_gaps():
            inside = is_wanted[self._bins.of(gaps_ms)]
            found.append(Listed(gaps_ms[inside], weights[inside]))
        near = Listed.joined(found)
        order = np.argsort(near.gaps_ms)
        return Listed(near.gaps_ms[order], near.weights[order])

    def _suspects(
        self, rank: int, first: int, last: int, gaps_ms: FloatArray, before: FloatArray
    ) -> _Suspects:
        """What lies in bins `first` to `last`, single gaps given."""
        bins = self._bins
        reach = np.flatnonzero((self._low_bins <= last) & (self._high_bins >= first))
        return _Suspects(
            rank - (float(self._must_be[first - 1]) if first else 0.0),
            gaps_ms,
            before,
            self._pool.pieces.take(reach),
            bins.start_ms(first) if first else self._lowest_ms,
            bins.start_ms(last + 1) if last + 1 < _NUM_BINS else self._highest_ms,
        )


def _find(suspects: _Suspects, timing: DecodeTimes) -> float:
    """The gap in question, from a few steps of each piece; if that fails, from more, from all."""
    num_steps = suspects.pieces.runs.num_steps
    shorter = _num_shorter(suspects)
    for margin in (*_MARGINS, int(num_steps.max(initial=0))):
        first = np.clip(shorter - margin, 0, num_steps - 1)
        end = np.clip(shorter + margin, first + 1, num_steps)
        found = _among_steps(suspects, timing, first, end)
        if found is not None:
            return found
    raise AssertionError("unreachable: among all gaps is every rank")


def _num_shorter(suspects: _Suspects) -> IntArray:
    """How many steps of each piece are shorter than the gap in question, as the parabolas tell.

    That gap is sought where the straight line between two that are too short and too long says,
    and in the middle of these by turns.
    """
    pieces, before = suspects.pieces, suspects.before
    num_decodes = pieces.runs.num_decodes
    low_ms, high_ms = suspects.low_ms, suspects.high_ms
    too_few, too_many = -suspects.rank, float(before[-1] + pieces.weights.sum()) - suspects.rank
    close = 0.25 * float(num_decodes.sum())  # a quarter of a step
    for guess in range(_MAX_GUESSES):
        share = too_few / (too_few - too_many) if guess % 2 == 0 else 0.5
        middle_ms = low_ms + share * (high_ms - low_ms)
        shorter = pieces.num_below(middle_ms)
        surplus = float(before[np.searchsorted(suspects.gaps_ms, middle_ms)] - suspects.rank)
        surplus += float((shorter * num_decodes).sum())
        if abs(surplus) <= close:
            break
        if surplus > 0:
            high_ms, too_many = middle_ms, surplus
        else:
            low_ms, too_few = middle_ms, surplus
    return np.rint(shorter).astype(np.int64)


def _among_steps(
    suspects: _Suspects, timing: DecodeTimes, first: IntArray, end: IntArray
) -> float | None:
    """The gap in question if it is one of steps `first` to `end` of the pieces, or between them.

    None if a step before `first` may be longer than that, or one from `end` on shorter.
    """
    pieces, num_decodes = suspects.pieces, suspects.pieces.runs.num_decodes
    counts = end - first
    starts = np.cumsum(counts) - counts
    rows = np.repeat(np.arange(len(counts)), counts)
    steps = np.arange(len(rows)) + np.repeat(first - starts, counts)
    gaps_ms = pieces.steps_ms(timing, rows, steps)
    rank = suspects.rank - float((num_decodes * first).sum())
    found = _at_rank(suspects, gaps_ms, num_decodes[rows], rank)
    if found is None:
        return None
    is_safe = (first == 0) | (gaps_ms[starts] <= found)
    is_safe &= (end == pieces.runs.num_steps) | (gaps_ms[starts + counts - 1] >= found)
    return found if is_safe.all() else None


def _at_rank(
    suspects: _Suspects, gaps_ms: FloatArray, weights: IntArray, rank: float
) -> float | None:
    """The gap of this rank among the single ones and others; None: there is none."""
    if rank < 0:
        return None
    singles_ms, before = suspects.gaps_ms, suspects.before
    order = np.argsort(gaps_ms)
    gaps_ms = gaps_ms[order]
    counted = np.concatenate(([0], np.cumsum(weights[order])))
    up_to = counted[1:] + before[np.searchsorted(singles_ms, gaps_ms, side="right")]
    at = int(np.searchsorted(up_to, rank, side="right"))
    single = int(np.searchsorted(before, rank - counted[at], side="right")) - 1
    candidates = [*gaps_ms[at : at + 1].tolist(), *singles_ms[single : single + 1].tolist()]
    return min(candidates, default=None)
