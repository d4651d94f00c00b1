"""The life of one process under supervision, as a table, and how long it waits to start again.

Pure: it is told what happened and when, it starts nothing.
"""

from enum import Enum

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
HEALTHY_S = 60.0  # after so long in health, earlier failures are forgotten


class State(Enum):
    """Where a process is."""

    WAITING = "waiting"  # not started yet
    STARTING = "starting"  # runs, does not serve yet
    READY = "ready"
    SILENT = "not answering"  # runs, but does not answer at the moment
    BACKING_OFF = "backing off"  # has ended by itself, will be started again
    STOPPING = "stopping"  # was told to stop, still runs
    STOPPED = "stopped"
    FAILED = "failed"  # given up


class ProcessEvent(Enum):
    """What can happen to a process."""

    STARTED = "started"
    BECAME_READY = "became ready"
    STOPPED_ANSWERING = "stopped answering"
    ANSWERED = "answered again"
    EXITED = "exited"
    GIVEN_UP = "given up"
    TOLD_TO_STOP = "told to stop"


TRANSITIONS: dict[State, dict[ProcessEvent, State]] = {
    State.WAITING: {
        ProcessEvent.STARTED: State.STARTING,
        ProcessEvent.GIVEN_UP: State.FAILED,
        ProcessEvent.TOLD_TO_STOP: State.STOPPED,
    },
    State.STARTING: {
        ProcessEvent.BECAME_READY: State.READY,
        ProcessEvent.EXITED: State.BACKING_OFF,
        ProcessEvent.TOLD_TO_STOP: State.STOPPING,
    },
    State.READY: {
        ProcessEvent.STOPPED_ANSWERING: State.SILENT,
        ProcessEvent.EXITED: State.BACKING_OFF,
        ProcessEvent.TOLD_TO_STOP: State.STOPPING,
    },
    State.SILENT: {
        ProcessEvent.ANSWERED: State.READY,
        ProcessEvent.EXITED: State.BACKING_OFF,
        ProcessEvent.TOLD_TO_STOP: State.STOPPING,
    },
    State.BACKING_OFF: {
        ProcessEvent.STARTED: State.STARTING,
        ProcessEvent.GIVEN_UP: State.FAILED,
        ProcessEvent.TOLD_TO_STOP: State.STOPPED,
    },
    State.STOPPING: {
        ProcessEvent.EXITED: State.STOPPED,
        ProcessEvent.TOLD_TO_STOP: State.STOPPING,
    },
    State.STOPPED: {ProcessEvent.TOLD_TO_STOP: State.STOPPED},
    State.FAILED: {ProcessEvent.TOLD_TO_STOP: State.FAILED},
}


def next_state(state: State, event: ProcessEvent) -> State:
    """The state after `event`. An event that cannot happen in `state` is our mistake."""
    following = TRANSITIONS[state].get(event)
    assert following is not None, f"a process that is {state.value} was {event.value}"
    return following


class Backoff:
    """Delays before restarts: 0.5 s, doubling to 30 s, from the start after a minute of health."""

    def __init__(self) -> None:
        self._failures = 0

    @property
    def failures(self) -> int:
        """Ends in a row, without a minute of health between them."""
        return self._failures

    def next_delay_s(self, healthy_s: float) -> float:
        """How long to wait after an end that came `healthy_s` after the process was ready.

        0: it had never become ready.
        """
        self._failures = 1 if healthy_s >= HEALTHY_S else self._failures + 1
        # The exponent is bounded, so that years of failures do not overflow.
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures - 1, 16))
