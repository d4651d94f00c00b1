"""What happens to a worker's process, as the life of a worker.

A process that ends by itself is started again: that is another life. While it waits to be, it has
begun, as seen by controllers: it holds its GPUs and will serve, so nobody needs to launch another.
"""

from dynosim.workers.lifecycle import WorkerEvent
from dynosim_runtime.launch.lifecycle import State
from dynosim_runtime.launch.supervised import ProcessStatus
from dynosim_runtime.planner.lives import LivingWorkers

EVENTS: dict[State, WorkerEvent | None] = {
    State.WAITING: None,
    State.STARTING: None,
    State.READY: WorkerEvent.BECAME_READY,
    State.SILENT: None,  # it is watched, and killed if that lasts; it reports nothing meanwhile
    State.BACKING_OFF: WorkerEvent.DIED,
    State.STOPPING: WorkerEvent.TOLD_TO_DRAIN,
    State.FAILED: WorkerEvent.DIED,
}
"""What a process's state means for its worker; of `STOPPED` it depends on how the process ended."""


def follow_process(
    lives: LivingWorkers, status: ProcessStatus, pool: str, *, in_order: bool, now_ms: float
) -> None:
    """Take in a change of a worker's process; `in_order`: it has ended as one does that drained."""
    name, state = status.name, State(status.state)
    if state is State.STOPPED:
        _end(lives, name, in_order=in_order, now_ms=now_ms)
        return
    event = EVENTS[state]
    if event is not None:
        lives.happens(name, event, now_ms)
    if state in (State.STARTING, State.BACKING_OFF) and name not in lives:
        lives.begin(name, pool, now_ms)


def _end(lives: LivingWorkers, name: str, *, in_order: bool, now_ms: float) -> None:
    """One that never served is told to drain, which ends it; others have drained, or died."""
    drained = WorkerEvent.DRAINED if in_order else WorkerEvent.DIED
    if not lives.happens(name, drained, now_ms):
        lives.happens(name, WorkerEvent.TOLD_TO_DRAIN, now_ms)
