"""The lives of live workers: what their processes do, and the table that the twin follows, too."""

import pytest

from dynosim.workers.lifecycle import TRANSITIONS, Phase, WorkerEvent
from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.launch.lifecycle import ProcessEvent, State, next_state
from dynosim_runtime.launch.lives import follow_process
from dynosim_runtime.launch.supervised import ProcessStatus
from dynosim_runtime.planner.driver import StopWatch
from dynosim_runtime.planner.lives import ALIVE, LivingWorkers
from dynosim_runtime.planner.watching import WatchedWorkforce

E = ProcessEvent


class Process:
    """A worker's process as it is supervised, and the lives that come of it."""

    def __init__(self) -> None:
        self.lives = LivingWorkers()
        self.state = State.WAITING
        self.now_ms = 0.0
        self.seen: list[tuple[int, Phase] | None] = []

    def happens(self, event: ProcessEvent, *, in_order: bool = True) -> None:
        self.now_ms += 1.0
        self.state = next_state(self.state, event)
        status = ProcessStatus(
            name="w", role="worker", state=self.state.value, pid=1, port=1, restarts=0, log=None,  # type: ignore[arg-type]
        )  # fmt: skip
        follow_process(self.lives, status, "workers", in_order=in_order, now_ms=self.now_ms)
        living = self.lives.lives(*ALIVE)
        self.seen.append((living[0].worker_id, living[0].phase) if living else None)


def seen(*events: ProcessEvent, in_order: bool = True) -> list[tuple[int, Phase] | None]:
    process = Process()
    for event in events:
        process.happens(event, in_order=in_order)
    return process.seen


STARTING, READY, DRAINING = Phase.STARTING, Phase.READY, Phase.DRAINING


def test_a_worker_that_serves_drains_and_is_gone() -> None:
    assert seen(E.STARTED, E.BECAME_READY, E.TOLD_TO_STOP, E.TOLD_TO_STOP, E.EXITED) == [
        (0, STARTING), (0, READY), (0, DRAINING), (0, DRAINING), None,
    ]  # fmt: skip


def test_one_that_crashes_begins_another_life_at_once() -> None:
    assert seen(E.STARTED, E.BECAME_READY, E.EXITED, E.STARTED, E.BECAME_READY) == [
        (0, STARTING), (0, READY), (1, STARTING), (1, STARTING), (1, READY),
    ]  # fmt: skip


def test_one_that_crashes_while_it_drains_is_dead() -> None:
    events = (E.STARTED, E.BECAME_READY, E.TOLD_TO_STOP, E.EXITED)
    assert seen(*events, in_order=False)[-1] is None
    life = Process()
    for event in events[:-1]:
        life.happens(event)
    (living,) = life.lives.lives(DRAINING)
    life.happens(E.EXITED, in_order=False)
    assert living.phase is Phase.FAILED


def test_one_that_drained_is_gone_in_order() -> None:
    process = Process()
    for event in (E.STARTED, E.BECAME_READY, E.TOLD_TO_STOP):
        process.happens(event)
    (living,) = process.lives.lives(DRAINING)
    process.happens(E.EXITED)
    assert living.phase is Phase.GONE


@pytest.mark.parametrize("before", [(), (E.STARTED,), (E.STARTED, E.EXITED)])
def test_who_serves_nobody_has_nothing_to_finish(before: tuple[ProcessEvent, ...]) -> None:
    assert seen(*before, E.TOLD_TO_STOP)[-1] is None


def test_one_that_is_silent_for_a_while_is_still_the_same() -> None:
    events = (E.STARTED, E.BECAME_READY, E.STOPPED_ANSWERING, E.ANSWERED)
    assert seen(*events)[1:] == [(0, READY)] * 3


def test_each_phase_has_its_moment() -> None:
    process = Process()
    up = (E.STARTED, E.BECAME_READY, E.STOPPED_ANSWERING, E.ANSWERED)
    for event in (*up, E.TOLD_TO_STOP, E.TOLD_TO_STOP):
        process.happens(event)
    (worker,) = process.lives.pool("workers", 0, {0: 7}).workers
    assert (worker.phase, worker.since_ms, worker.num_requests) == (DRAINING, 5.0, 7)


def test_what_the_table_does_not_know_changes_nothing() -> None:
    for phase, row in TRANSITIONS.items():
        for event in WorkerEvent:
            lives = LivingWorkers()
            life = lives.begin("w", "workers", 0.0)
            life.phase = phase
            assert lives.happens("w", event, 1.0) == (event in row)
            assert life.phase is row.get(event, phase)


# ---- workers that others run ---------------------------------------------------------------------


def card(name: str, pid: int = 1, *, is_draining: bool = False) -> LiveCard:
    return LiveCard(
        worker_id=worker_id_of(name), name=name, engine="mock", url=f"http://{name}", model="m",
        block_size=16, max_model_len=64, pid=pid, is_draining=is_draining,
    )  # fmt: skip


async def test_cards_tell_of_lives() -> None:
    force = WatchedWorkforce({"workers": 1}, StopWatch())

    def show(*cards: LiveCard) -> list[tuple[int, Phase]]:
        force.show({one.name: one for one in cards})
        return [(one.worker_id, one.phase) for one in force.pool("workers", {}).workers]

    assert show(card("a"), card("b")) == [(0, READY), (1, READY)]
    assert force.wanted == {"workers": 2}
    assert show(card("a"), card("b", is_draining=True)) == [(0, READY), (1, DRAINING)]
    assert force.wanted == {"workers": 1}
    assert [one.card.name for one in force.serving()] == ["a", "b"]
    assert show(card("a", pid=2)) == [(2, READY)], "another process under the same name"
    assert show() == []
