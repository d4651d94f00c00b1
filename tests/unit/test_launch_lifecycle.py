"""The life of a supervised process as a table, and its delays before restarts."""

from pathlib import Path

import pytest

from dynosim_runtime.launch.lifecycle import TRANSITIONS, Backoff, ProcessEvent, State, next_state


@pytest.mark.parametrize(
    ("events", "states"),
    [
        ("started, became ready, told to stop, exited", "starting, ready, stopping, stopped"),
        ("started, exited, started, became ready", "starting, backing off, starting, ready"),
        ("started, became ready, exited, told to stop", "starting, ready, backing off, stopped"),
        ("started, exited, given up, told to stop", "starting, backing off, failed, failed"),
        ("given up", "failed"),
        ("told to stop", "stopped"),
    ],
)
def test_lives(events: str, states: str) -> None:
    state, seen = State.WAITING, []
    for event in events.split(", "):
        state = next_state(state, ProcessEvent(event))
        seen.append(state.value)
    assert seen == states.split(", ")


def test_whatever_is_told_to_stop_never_starts_again() -> None:
    reachable = {next_state(state, ProcessEvent.TOLD_TO_STOP) for state in State}
    while True:
        grown = reachable | {after for s in reachable for after in TRANSITIONS[s].values()}
        if grown == reachable:
            break
        reachable = grown
    assert reachable == {State.STOPPING, State.STOPPED, State.FAILED}


@pytest.mark.parametrize("state", [State.STOPPED, State.FAILED, State.STARTING, State.READY])
def test_what_cannot_happen_is_our_mistake(state: State) -> None:
    with pytest.raises(AssertionError, match=state.value):
        next_state(state, ProcessEvent.STARTED)


def test_delays_double_from_half_a_second_to_half_a_minute() -> None:
    backoff = Backoff()
    assert [backoff.next_delay_s(0.0) for _ in range(9)] == [
        0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0,
    ]  # fmt: skip
    assert backoff.failures == 9


def test_a_minute_of_health_and_not_less_forgets_earlier_failures() -> None:
    backoff = Backoff()
    backoff.next_delay_s(0.0)
    assert backoff.next_delay_s(59.9) == 1.0
    assert backoff.next_delay_s(60.0) == 0.5
    assert backoff.failures == 1


def test_the_documented_table_is_the_one_that_is_used() -> None:
    rows = [
        f"| {state.value} | {event.value} | {after.value} |"
        for state, events in TRANSITIONS.items()
        for event, after in events.items()
    ]
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    assert "\n".join(rows) in page
