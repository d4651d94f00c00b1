"""The life of a worker, as a table: the twin's pools and the live layer's cards both follow it.

Everything that moves a worker from one phase to another goes through `next_phase`; what cannot
happen in a phase is in no row.
"""

from enum import Enum


class Phase(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"  # holds its GPUs, serves nobody yet
    READY = "ready"  # takes requests
    DRAINING = "draining"  # finishes what it has, takes nothing new
    GONE = "gone"  # ended in order
    FAILED = "failed"  # ended with requests in flight


class WorkerEvent(Enum):
    """What can happen to a worker."""

    BECAME_READY = "became ready"
    TOLD_TO_DRAIN = "told to drain"
    DRAINED = "drained"  # the last of its requests has ended
    DIED = "died"


TRANSITIONS: dict[Phase, dict[WorkerEvent, Phase]] = {
    Phase.STARTING: {
        WorkerEvent.BECAME_READY: Phase.READY,
        WorkerEvent.TOLD_TO_DRAIN: Phase.GONE,  # it has nothing to finish
        WorkerEvent.DIED: Phase.FAILED,
    },
    Phase.READY: {
        WorkerEvent.TOLD_TO_DRAIN: Phase.DRAINING,
        WorkerEvent.DIED: Phase.FAILED,
    },
    Phase.DRAINING: {
        WorkerEvent.TOLD_TO_DRAIN: Phase.DRAINING,
        WorkerEvent.DRAINED: Phase.GONE,
        WorkerEvent.DIED: Phase.FAILED,
    },
    Phase.GONE: {},
    Phase.FAILED: {},
}


def next_phase(phase: Phase, event: WorkerEvent) -> Phase | None:
    """The phase after `event`; None if it cannot happen to a worker in `phase`."""
    return TRANSITIONS[phase].get(event)
