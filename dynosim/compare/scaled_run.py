"""What rules on autoscalers look at: a run's requests and workers, and what was decided in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isnan

import numpy as np

from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.records import FloatArray, IntArray, RequestStatus, RunResult, WorkerLog


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """A worker's times in seconds; infinity: not in this run."""

    pool: str
    gpus: int
    launched_s: float
    ready_s: float
    leaving_s: float  # it drains, or has failed
    ended_s: float

    def is_there(self, at_s: float) -> bool:
        """Whether it starts or serves, and is not about to go."""
        return self.launched_s <= at_s < self.leaving_s

    def is_ready(self, at_s: float) -> bool:
        """Whether it takes requests."""
        return self.ready_s <= at_s < self.leaving_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledRun:
    """One run under a controller. A row of the columns is a request; `ttft_s` NaN: it got nothing.

    `decisions` are those of the controllers that are judged, by time.
    """

    arrival_s: FloatArray
    ttft_s: FloatArray
    is_completed: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
    migrations: IntArray
    workers: tuple[WorkerTimes, ...]
    decisions: tuple[ScalingDecision, ...]
    end_s: float

    @classmethod
    def of(cls, result: RunResult, decisions: Sequence[ScalingDecision]) -> "ScaledRun":
        """What of a run's result rules look at."""
        log = result.requests
        return cls(
            arrival_s=log.arrival_ms / 1e3,
            ttft_s=(log.first_token_ms - log.arrival_ms) / 1e3,
            is_completed=log.status == RequestStatus.COMPLETED,
            migrations=log.migrations,
            workers=tuple(_times(result.workers)),
            decisions=tuple(sorted(decisions, key=lambda one: one.now_ms)),
            end_s=result.end_ms / 1e3,
        )

    def share_in_time(self, from_s: float, to_s: float, ttft_s: float) -> float:
        """Of the requests that came in a time: how many were served in full, and begun in time."""
        came = (self.arrival_s >= from_s) & (self.arrival_s < to_s)
        in_time = self.is_completed & (self.ttft_s <= ttft_s)
        return float(in_time[came].mean()) if came.any() else 0.0

    def num_workers(self, at_s: float, pool: str | None = None) -> int:
        """Workers that start or serve."""
        return sum(one.is_there(at_s) for one in self._of(pool))

    def num_ready(self, at_s: float, pool: str | None = None) -> int:
        """Workers that take requests."""
        return sum(one.is_ready(at_s) for one in self._of(pool))

    def most_workers(self, from_s: float, to_s: float, pool: str | None = None) -> int:
        """The most workers at any moment of a time."""
        moments = [from_s, *(one.launched_s for one in self._of(pool))]
        return max(self.num_workers(at, pool) for at in moments if from_s <= at < to_s)

    def most_gpus(self) -> int:
        """The most GPUs that were ever in use, those of leaving workers not among them."""
        moments = {0.0, *(one.launched_s for one in self.workers)}
        return max(sum(one.gpus for one in self.workers if one.is_there(at_s)) for at_s in moments)

    def gpu_hours(self, from_s: float, to_s: float) -> float:
        """GPU time from launches to ends, in hours."""
        return sum(
            one.gpus * max(0.0, min(one.ended_s, to_s) - max(one.launched_s, from_s)) / 3600
            for one in self.workers
        )

    def changes(self, from_s: float, to_s: float) -> list[tuple[float, int]]:
        """When the number of workers changed within a time, and to what."""
        moments = sorted({at for one in self.workers for at in (one.launched_s, one.leaving_s)})
        found, before = [], self.num_workers(from_s)
        for at_s in moments:
            if from_s < at_s < to_s and self.num_workers(at_s) != before:
                before = self.num_workers(at_s)
                found.append((at_s, before))
        return found

    def decided(self, from_s: float, to_s: float) -> Iterator[tuple[float, PoolDecision]]:
        """What was decided on pools in a time, with its moment."""
        for decision in self.decisions:
            if from_s <= decision.now_ms / 1e3 < to_s:
                for pool in decision.pools:
                    yield decision.now_ms / 1e3, pool

    def _of(self, pool: str | None) -> list[WorkerTimes]:
        return [one for one in self.workers if pool in (None, one.pool)]


def _times(log: WorkerLog) -> Iterator[WorkerTimes]:
    for row, pool in enumerate(log.pool):
        ended_s = _seconds(log.ended_ms[row])
        told_s = inf if log.draining_ms is None else _seconds(log.draining_ms[row])
        yield WorkerTimes(
            pool,
            int(log.gpus[row]),
            float(log.launched_ms[row]) / 1e3,
            _seconds(log.ready_ms[row]),
            min(told_s, ended_s),
            ended_s,
        )


def _seconds(ms: float) -> float:
    return inf if isnan(ms) else float(ms) / 1e3
