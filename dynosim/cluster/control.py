"""The twin's control plane: SimPy processes around a data plane that advances in bulk.

A process is a SimPy generator that looks at the fleet now and then and acts on it: a reporter, a
scenario, later planners, faults and updates. Between two process events the fleet runs to the
earlier of the next event and the end; at equal times the data plane goes first.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import simpy

from dynosim.cluster.fleet import Fleet
from dynosim.workload.load import NEVER

ProcessGenerator = Generator[simpy.Event, Any, None]


class ControlPlane:
    """What a process sees: the clock (`env`, in ms), the fleet's load, and a way to stop the run.

    The run ends with the last data-plane event: a process that wakes up for ever does not prolong
    it.
    """

    def __init__(self, fleet: Fleet, processes: "Sequence[Process]") -> None:
        self.env = simpy.Environment()
        self._fleet = fleet
        self.is_stopped = False
        for process in processes:
            self.env.process(process(self))

    @property
    def now_ms(self) -> float:
        """Virtual time."""
        return float(self.env.now)

    @property
    def num_requests(self) -> tuple[int, ...]:
        """Requests in hand, by worker."""
        return self._fleet.num_requests

    @property
    def num_ended(self) -> int:
        """Requests that have finished or were rejected so far."""
        return self._fleet.num_ended

    def stop(self) -> None:
        """End the run now; what is under way stays unfinished."""
        self.is_stopped = True

    def run_until(self, until_ms: float) -> None:
        """Run data plane and processes together up to and including `until_ms`."""
        while not self.is_stopped:
            control_ms = self.env.peek()
            self._fleet.run_until(min(control_ms, until_ms))
            if control_ms > until_ms or self._fleet.next_ms() == NEVER:
                return
            self.env.step()


Process = Callable[[ControlPlane], ProcessGenerator]
