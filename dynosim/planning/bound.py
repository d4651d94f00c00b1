"""The cheapest schedule of workers that keeps the SLA, found by playing schedules in the twin.

It knows the future. What is enough in each bin of time comes from fixed clusters; then stretches of
bins are given a worker less in one pool, long ones first, as long as the whole run keeps the SLA
and gets cheaper. That is the cheapest that was found: nothing proves that there is no cheaper one.
"""

from collections import deque
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from dynosim.config.controllers import ScalingConfig
from dynosim.planner.perfect import PerfectScaler, PerfectSchedule, perfect_schedule
from dynosim.planning.fixed import Sizes
from dynosim.planning.plan_file import PlanFile
from dynosim.planning.played import OfferedLoad, Played, Replayer, Tell, attainment_by_bin, meets
from dynosim.records import FloatArray

MENDINGS, TRIALS = 8, 32
"""Schedules that are played to mend one that misses, and, for each pool, to make a good one
cheaper."""


@dataclass(slots=True)
class Bound:
    """Seeks the schedule of one load; `most` are the largest sizes of its pools."""

    replayer: Replayer
    file: PlanFile
    load: OfferedLoad
    target: float
    most: Sizes
    tell: Tell
    start_ms: float = 0.0  # what a worker was seen to take to start

    def seek(self, enough: FloatArray, least: int) -> Played:
        """The cheapest run found that keeps the SLA; `enough` workers to begin with, by pool and
        bin, and `least` at any time.

        If no schedule keeps it, the one that comes nearest.
        """
        best, needed = self._mended(enough)
        num_pools, num_bins = needed.shape
        is_good = meets([best.attainment], self.target)
        stretches = deque([(pool, 0, num_bins) for pool in range(num_pools)] if is_good else ())
        for _ in range(TRIALS * num_pools):
            if not stretches:
                break
            pool, low, high = stretches.popleft()
            fewer = needed.copy()
            fewer[pool, low:high] = np.maximum(fewer[pool, low:high] - 1, least)
            if (fewer == needed).all():
                continue
            played = self._play(fewer)
            is_kept = meets([played.attainment], self.target)
            if is_kept and _gpu_hours(played) < _gpu_hours(best):
                best, needed = played, fewer
                stretches.append((pool, low, high))
            elif high - low > 1:
                middle = (low + high) // 2
                stretches += [(pool, low, middle), (pool, middle, high)]
        return best

    def _mended(self, enough: FloatArray) -> tuple[Played, FloatArray]:
        """A run that keeps the SLA: bins that miss it are given more, and those before them."""
        best: Played | None = None
        for _ in range(MENDINGS):
            played = self._play(enough)
            if best is None or played.attainment > best.attainment:
                best = played
            if meets([played.attainment], self.target):
                return played, enough
            misses = attainment_by_bin(played, self.load) < self.target - 1e-12
            more = enough + misses
            is_smaller = more[:, :-1] < more[:, 1:]
            more[:, :-1] += misses[1:] & ~misses[:-1] & is_smaller
            enough = np.minimum(more, np.array(self.most)[:, None])
        assert best is not None, "there was a trial"
        return best, enough

    def _play(self, fewest: FloatArray) -> Played:
        while True:
            played = self._played(fewest)
            slowest_ms = played.report["max_startup_ms"] or 0.0
            if slowest_ms <= self.start_ms:
                break
            self.start_ms = slowest_ms
        self.tell(
            f"perfect, seed {self.load.seed}: {played.attainment:.2%} of requests within the SLA, "
            f"{_gpu_hours(played):.3g} GPU hours"
        )
        return played

    def _played(self, fewest: FloatArray) -> Played:
        schedules = [
            perfect_schedule([int(n) for n in row], self.load.bin_ms, self.start_ms, num_warm=most)
            for row, most in zip(fewest, self.most, strict=True)
        ]
        base = self.file.base
        scaling = (base.scaling or ScalingConfig()).model_copy(update={"actuation_delay_ms": 0.0})
        cluster = self.file.sized([schedule.held_at(0.0) for schedule in schedules])
        config = base.model_copy(update={"cluster": cluster, "scaling": scaling})
        whole = [_to_the_end(schedule, self.load) for schedule in schedules]
        scaler = PerfectScaler(dict(zip(self.file.pools, whole, strict=True)))
        return self.replayer.play(config, self.load, scaler)


def _to_the_end(schedule: PerfectSchedule, load: OfferedLoad) -> PerfectSchedule:
    """The same, but who serves in the last bin stays: there may be a queue."""
    last_ms = load.num_bins * load.bin_ms
    spans = [
        replace(span, end_ms=inf) if span.end_ms >= last_ms else span for span in schedule.spans
    ]
    return PerfectSchedule(tuple(spans))


def _gpu_hours(played: Played) -> float:
    return float(played.report["gpu_hours"] or inf)
