"""The bound of all autoscalers: the fewest GPU hours that have enough workers ready at each moment.

It knows the future. How many workers are enough at each moment is given to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.hpa import decided, direction
from dynosim.planner.observation import Observation, PoolState


@dataclass(frozen=True, slots=True, order=True)
class WorkerSpan:
    """A worker: launched, ready from `ready_ms` to `end_ms`; its GPUs are held all the while."""

    launch_ms: float
    ready_ms: float
    end_ms: float

    @property
    def held_ms(self) -> float:
        """How long it holds its GPUs."""
        return self.end_ms - self.launch_ms


@dataclass(frozen=True, slots=True)
class PerfectSchedule:
    """The workers of a bound, by launch. Those launched before 0 are among `held_ms`, too."""

    spans: tuple[WorkerSpan, ...]

    @property
    def held_ms(self) -> float:
        """What all workers together are held for."""
        return sum(span.held_ms for span in self.spans)

    def gpu_hours(self, gpus_per_worker: int) -> float:
        """What that costs."""
        return self.held_ms * gpus_per_worker / 3_600_000.0

    def held_at(self, at_ms: float) -> int:
        """Workers that hold GPUs then, starting or ready."""
        return sum(span.launch_ms <= at_ms < span.end_ms for span in self.spans)

    def ready_at(self, at_ms: float) -> int:
        """Workers that serve then."""
        return sum(span.ready_ms <= at_ms < span.end_ms for span in self.spans)

    def changes_ms(self) -> list[float]:
        """When the number of workers that hold GPUs changes."""
        return sorted({at for span in self.spans for at in (span.launch_ms, span.end_ms)})


def perfect_schedule(
    fewest: Sequence[int], bin_ms: float, start_ms: float, num_warm: int = 0
) -> PerfectSchedule:
    """The cheapest workers with `fewest[i]` ready throughout the i-th bin, the first at 0.

    A worker holds its GPUs from `start_ms` before it is ready. `num_warm` are ready at 0 without
    having cost anything before. Exact: what is held, plus what starting costs, is a sum over levels
    (the k-th worker is needed wherever k or more are), and each level by itself bridges a gap by
    idling if that is no longer than starting again. Raises: ValueError on negative numbers.
    """
    if bin_ms <= 0 or start_ms < 0 or min(fewest, default=0) < 0:
        raise ValueError("fewest workers and start-up are not negative, and bins are longer than 0")
    spans = [
        span
        for level in range(1, max(fewest, default=0) + 1)
        for span in _level(fewest, level, bin_ms, start_ms, is_warm=level <= num_warm)
    ]
    return PerfectSchedule(tuple(sorted(spans)))


def _level(
    fewest: Sequence[int], level: int, bin_ms: float, start_ms: float, *, is_warm: bool
) -> Iterator[WorkerSpan]:
    """When one worker is held, so that it is ready wherever `level` or more are needed."""
    held = WorkerSpan(0.0, 0.0, 0.0) if is_warm else None
    for index, needed in enumerate(fewest):
        if needed < level:
            continue
        begin_ms, end_ms = index * bin_ms, (index + 1) * bin_ms
        if held is not None and begin_ms - held.end_ms <= start_ms:
            held = replace(held, end_ms=end_ms)
            continue
        if held is not None and held.held_ms > 0:
            yield held
        held = WorkerSpan(begin_ms - start_ms, begin_ms, end_ms)
    if held is not None and held.held_ms > 0:
        yield held


class PerfectScaler:
    """Carries out a schedule of each pool: a controller that looks whenever one of them changes.

    Workers launched before 0 are to be there at the start.
    """

    def __init__(self, schedules: Mapping[str, PerfectSchedule], name: str = "perfect") -> None:
        self._schedules = dict(schedules)
        self._name = name
        changes = {at for one in schedules.values() for at in one.changes_ms() if at > 0}
        self._pending = [0.0, *sorted(changes)]

    @property
    def name(self) -> str:
        """See `Controller`."""
        return self._name

    @property
    def next_ms(self) -> float:
        """See `Controller`."""
        return self._pending[0] if self._pending else inf

    def look(self, seen: Observation) -> ScalingDecision | None:
        """See `Controller`."""
        if seen.now_ms < self.next_ms:
            return None
        self._pending = [at for at in self._pending if at > seen.now_ms]
        pools = tuple(self._decided(seen.pool(name), seen.now_ms) for name in self._schedules)
        return ScalingDecision(seen.now_ms, self.name, pools)

    def _decided(self, pool: PoolState, now_ms: float) -> PoolDecision:
        target = self._schedules[pool.name].held_at(now_ms)
        reason = f"the schedule holds {target} workers from {now_ms / 1e3:g} s on"
        return decided(pool, target, direction(pool.wanted, target), (reason,), {})
