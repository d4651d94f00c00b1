"""Ends a run that can no longer be judged to have carried its load."""

import numpy as np

from dynosim.cluster.journal import Journal
from dynosim.cluster.watch import Watch
from dynosim.metrics.carried import SlaTarget
from dynosim.records import FloatArray, Trace
from dynosim.workload.scaling import is_start

NUM_LOOKS = 50
"""While sessions start; as often after that."""
ROUNDING = 1e-9


class HopelessLoad(Watch):
    """Ends a run once so many requests miss a bound that `judge_load` cannot find it carried.

    It counts those alone that are inside the window wherever that begins, and takes the window to
    hold as many requests as it ever could: no load that is carried is ended. Of a target that is a
    statistic it knows nothing.
    """

    def __init__(self, trace: Trace, target: SlaTarget) -> None:
        starts_ms = trace.arrival_ms[is_start(trace)]
        first_ms, self._last_ms = float(starts_ms.min()), float(starts_ms.max())
        span_ms = self._last_ms - first_ms
        super().__init__(max(span_ms / NUM_LOOKS, 1.0))
        self._from_ms = first_ms + span_ms / 3
        self._bounds = target.bounds
        speculative = trace.is_speculative
        self._is_judged = np.full(len(trace), True) if speculative is None else ~speculative
        self._allowed = (1.0 - target.attainment) * int(self._is_judged.sum())
        self.attainment_so_far: float | None = None  # of the requests that it has counted

    def is_over(self, journal: Journal, now_ms: float) -> bool:
        if now_ms <= self._from_ms:
            return False
        arrival_ms = _column(journal.arrival_ms)
        judged = (arrival_ms >= self._from_ms) & (arrival_ms <= min(now_ms, self._last_ms))
        judged &= self._is_judged
        waited_ms = now_ms - arrival_ms[judged]
        first_ms = _column(journal.first_token_ms)[judged] - arrival_ms[judged]
        finish_ms = _column(journal.finish_ms)[judged] - arrival_ms[judged]
        gaps = np.frombuffer(journal.produced_tokens, np.int64)[judged] - 1.0
        missed = np.zeros(len(waited_ms), np.bool_)
        if self._bounds.ttft_ms is not None:
            missed |= np.where(np.isnan(first_ms), waited_ms, first_ms) > self._bounds.ttft_ms
        if self._bounds.e2e_ms is not None:
            missed |= np.where(np.isnan(finish_ms), waited_ms, finish_ms) > self._bounds.e2e_ms
        if self._bounds.tpot_ms is not None:
            missed |= (finish_ms - first_ms) > self._bounds.tpot_ms * gaps * (1.0 + ROUNDING)
        num_missed = int(missed.sum())
        self.attainment_so_far = 1.0 - num_missed / max(len(missed), 1)
        return num_missed > self._allowed


def _column(values: object) -> FloatArray:
    return np.frombuffer(values, np.float64)  # type: ignore[call-overload, no-any-return]
