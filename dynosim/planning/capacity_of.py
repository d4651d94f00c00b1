"""What one worker of each pool can serve within the SLA, by its step times: see `capacity`."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from dynosim.cluster.scaling import pool_cards
from dynosim.cluster.spec import ClusterSpec
from dynosim.planner.capacity import Reach, best_point, reachable
from dynosim.planner.engine_model import EngineModel, RequestMix
from dynosim.planner.operating_point import OperatingPoint

NO_BOUND_MS = 1e12


@dataclass(frozen=True, slots=True)
class Targets:
    """Latencies to keep; None: no bound."""

    ttft_ms: float | None
    itl_ms: float | None

    @property
    def bounds(self) -> tuple[float, float]:
        """Both as numbers."""
        return (
            NO_BOUND_MS if self.ttft_ms is None else self.ttft_ms,
            NO_BOUND_MS if self.itl_ms is None else self.itl_ms,
        )


class PoolCapacities:
    """The pools of a cluster, their engines and a mix of requests that they are asked for."""

    def __init__(self, cluster: ClusterSpec, targets: Targets, mix: RequestMix) -> None:
        self._targets = targets
        self._mix = mix
        self._engines = [
            (pool.role, EngineModel.of(card, pool.times))
            for pool, card in zip(cluster.pools, pool_cards(cluster), strict=True)
        ]

    def points(self) -> list[OperatingPoint]:
        """The best batch of a worker of each pool."""
        return [
            best_point(role, engine, self._mix, *self._targets.bounds)
            for role, engine in self._engines
        ]

    def sizes_for(self, rps: float) -> tuple[int, ...]:
        """Workers of each pool that serve so many requests a second, queueing left aside."""
        return tuple(max(1, ceil(rps / point.rps - 1e-9)) for point in self.points())

    def reaches(self) -> list[Reach]:
        """Whether the targets can be met at all, by a worker of each pool."""
        return [
            reachable(role, engine, self._mix, *self._targets.bounds)
            for role, engine in self._engines
        ]

    def nearest(self) -> str:
        """The bounded latencies that one worker of each pool reaches at best."""
        found = []
        for reach in self.reaches():
            for name, target, value in (
                ("TTFT", self._targets.ttft_ms, reach.ttft_ms),
                ("ITL", self._targets.itl_ms, reach.itl_ms),
            ):
                if target is not None and value is not None:
                    found.append(f"{name} {value:.4g} ms (asked: {target:g})")
        return " and ".join(found)


def ladder(rates: Sequence[float], most: int) -> list[tuple[int, ...]]:
    """Sizes of a fixed cluster, each a worker larger than the one before, up to `most` in all.

    `rates` are what a worker of each pool serves; the pool that serves least is the one to grow.
    """
    sizes = [1] * len(rates)
    rungs = [tuple(sizes)]
    while sum(sizes) < most:
        tightest = min(range(len(sizes)), key=lambda place: sizes[place] * rates[place])
        sizes[tightest] += 1
        rungs.append(tuple(sizes))
    return rungs
