"""The copies of a scenario between device and host: when each begins and ends.

A load begins with the step whose planning took its blocks, a store with the step after the one that
decided it. With a clock, copies of one direction go one after another. Their end is reported with
the first step that ends then or later and that was planned no earlier than the one they began with.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dynosim.conformance.log import Json
from dynosim.engine.plan import CopyJob, StepPlan


@dataclass(slots=True)
class ScenarioCopy:
    """One under way; `call`: the first step that can report its end."""

    job: CopyJob
    call: int
    end: int


class ScenarioCopies:
    """Those under way, and the stores that begin with the next step."""

    def __init__(self, offload: Json, to_clock: Callable[[object], int], *, has_time: bool) -> None:
        self.call = 0  # of the step that is being planned
        self.start = 0  # of the one that was planned last
        self._has_time = has_time
        self._once, self._each = (
            {way: to_clock(offload.get(f"{way}_{what}", 0)) for way in ("load", "store")}
            for what in ("delay", "per_block")
        )
        self._free = {"load": 0, "store": 0}  # when a direction has done all that it was given
        self._decided: list[CopyJob] = []  # stores that have not begun
        self._under_way: list[ScenarioCopy] = []

    def begin(self, plan: StepPlan, start_ms: float) -> float:
        """See `Copies`; times are those of the scenario's clock."""
        work = plan.host
        assert work is not None
        start = max(int(start_ms), self.start)  # an empty step may have waited, too
        for job in self._decided + [job for job in work.stores if job.number in work.flushed]:
            self._submit(job, start)
        self._decided = [job for job in work.stores if job.number not in work.flushed]
        for copy in self._under_way:
            if copy.job.number in work.flushed:
                if self._has_time:
                    start = max(start, copy.end)
                else:
                    copy.end = min(copy.end, start)
        for job in work.loads:
            self._submit(job, start)
        self.start = start
        return start

    def _submit(self, job: CopyJob, start: int) -> None:
        way = "load" if job.is_load else "store"
        if self._has_time:
            start = max(start, self._free[way])
        end = start + self._once[way] + self._each[way] * job.num_blocks
        self._free[way] = end
        self._under_way.append(ScenarioCopy(job, self.call, end))

    def take_ended(self, call: int, now: int) -> list[CopyJob]:
        """What a step reports, in the order of its ends."""
        ended = [one for one in self._under_way if one.call <= call and one.end <= now]
        self._under_way = [one for one in self._under_way if one not in ended]
        ended.sort(key=lambda one: (one.end, one.job.number))
        return [one.job for one in ended]

    def next_end(self) -> int | None:
        """When the next one ends, if any is under way."""
        return min([one.end for one in self._under_way], default=None)
