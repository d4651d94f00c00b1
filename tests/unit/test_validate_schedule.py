"""Replays on the engine's clock and held schedules, on a handful of steps by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dynosim.fit.replay import (
    Predicted,
    step_times,
    steps_of,
    taken_by_engines_ms,
    taken_ms,
)
from dynosim.fit.schedule import held_schedule
from dynosim.records import RequestLog, RunResult, StepLog, WorkerLog
from dynosim.testing.step_times import step_log
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters
from dynosim.timing.formulas import LinearModel
from dynosim.timing.step import StepShape

TEN = LinearModel(base_ms=10, per_prefill_token_ms=0, per_decode_ms=0, per_context_token_ms=0)
GROWING = FittedModel(
    Fit(parameters=FittedParameters(overhead_ms=8.0, per_context_token_ms=0.1), knee=64.0)
)


def steps(*rows: tuple[int, ...], starts: list[float], durations: list[float]) -> StepLog:
    """Rows of (steps, prefills, prefill tokens, prefix tokens, decodes, context tokens)."""
    return replace(
        step_log(*rows),  # type: ignore[arg-type]
        start_ms=np.array(starts),
        duration_ms=np.array(durations),
    )


# A prompt of 20 to 30 ms, three decode steps until 60 ms, then nothing until 100 ms.
BUSY = steps(
    (1, 1, 50, 0, 0, 0), (3, 0, 0, 0, 2, 100), (1, 1, 60, 4, 0, 0),
    starts=[20.0, 30.0, 100.0], durations=[10.0, 30.0, 25.0],
)  # fmt: skip


def test_single_steps_are_taken_out_of_their_rows() -> None:
    starts_ms, ends_ms = step_times(BUSY, TEN)
    assert starts_ms.tolist() == pytest.approx([20.0, 30.0, 40.0, 50.0, 100.0])
    assert ends_ms.tolist() == pytest.approx([30.0, 40.0, 50.0, 60.0, 125.0])


def test_single_steps_of_a_row_grow_as_its_contexts_do() -> None:
    rows = steps((3, 0, 0, 0, 2, 100), starts=[5.0], durations=[54.6])
    starts_ms, ends_ms = step_times(rows, GROWING)
    durations = [8 + 0.1 * 100, 8 + 0.1 * 102, 8 + 0.1 * 104]
    assert (ends_ms - starts_ms).tolist() == pytest.approx(durations)
    assert starts_ms[0] == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("visible_ms", "taken"),
    [
        (0.0, 0.0),  # idle: at once
        (20.0, 20.0),  # with the step that begins then
        (20.5, 30.0),
        (29.9, 30.0),
        (30.0, 30.0),
        (31.0, 40.0),  # at the end of a single step, not of its row
        (45.0, 50.0),
        (60.0, 60.0),
        (61.0, 61.0),  # idle again
        (99.0, 99.0),
        (110.0, 125.0),
        (125.0, 125.0),
        (200.0, 200.0),  # behind the last step
    ],
)
def test_a_request_is_taken_at_once_or_at_the_end_of_a_step(
    visible_ms: float, taken: float
) -> None:
    assert taken_ms(BUSY, TEN, np.array([visible_ms])).tolist() == pytest.approx([taken])


def test_an_engine_without_steps_takes_all_at_once() -> None:
    visible_ms = np.array([1.0, 2.0])
    nothing = steps_of(BUSY, 7)
    assert len(nothing.num_steps) == 0
    assert taken_ms(nothing, TEN, visible_ms).tolist() == [1.0, 2.0]


def result(
    log: StepLog, *, arrival_ms: list[float], first_ms: list[float], finish_ms: list[float],
    engines: list[int],
) -> RunResult:  # fmt: skip
    """A run of which only the times matter."""
    count = len(arrival_ms)
    nothing = np.zeros(count, np.int64)
    requests = RequestLog(
        arrival_ms=np.array(arrival_ms),
        dispatch_ms=np.array(arrival_ms),
        scheduled_ms=np.array(arrival_ms),
        first_token_ms=np.array(first_ms),
        second_token_ms=np.full(count, np.nan),
        finish_ms=np.array(finish_ms),
        input_tokens=nothing + 50,
        output_tokens=nothing + 3,
        cached_tokens=nothing,
        worker_id=np.array(engines),
        preemptions=nothing,
        migrations=nothing,
        status=nothing,
    )
    return RunResult(
        requests=requests, steps=log, stalled_gaps_ms=np.zeros(0),
        workers=WorkerLog.equal(max(engines) + 1, usable_blocks=10), block_size=16,
        end_ms=0.0, num_preemptions=0, num_scheduling_events=0, simulate_wall_ms=0.0,
    )  # fmt: skip


def two_engines() -> RunResult:
    """The steps of `BUSY` on engine 0, and others on engine 1, as they began."""
    rows: list[tuple[int, ...]] = [
        (1, 1, 50, 0, 0, 0), (1, 1, 70, 0, 0, 0), (3, 0, 0, 0, 2, 100), (2, 0, 0, 0, 1, 71),
        (1, 1, 60, 4, 0, 0),
    ]  # fmt: skip
    log = steps(
        *rows, starts=[20.0, 22.0, 30.0, 36.0, 100.0], durations=[10.0, 14.0, 30.0, 20.0, 25.0]
    )
    log = replace(log, worker_id=np.array([0, 1, 0, 1, 0]))
    return result(
        log,
        arrival_ms=[20.0, 21.0, 25.0, 99.0],
        first_ms=[30.0, 36.0, 40.0, 125.0],
        finish_ms=[60.0, 56.0, 60.0, 125.0],
        engines=[0, 1, 0, 0],
    )


def test_an_engine_has_the_steps_of_its_own() -> None:
    log = two_engines().steps
    assert steps_of(log, 1).start_ms.tolist() == [22.0, 36.0]
    assert steps_of(log, 0).num_steps.tolist() == [1, 3, 1]
    assert steps_of(BUSY, 0) is BUSY


def test_each_request_is_taken_by_the_engine_that_served_it() -> None:
    run = two_engines()
    visible_ms = np.array([25.0, 25.0, 41.0, 101.0])
    taken = taken_by_engines_ms(run, TEN, visible_ms)
    assert taken.tolist() == pytest.approx([30.0, 36.0, 50.0, 125.0])
    assert visible_ms.tolist() == [25.0, 25.0, 41.0, 101.0]  # left as they were


def predicted(run: RunResult) -> Predicted:
    log = run.requests
    return Predicted(log.first_token_ms - log.arrival_ms, log.finish_ms - log.first_token_ms, run)


def test_a_held_schedule_tells_which_steps_a_request_waits_for() -> None:
    run = two_engines()
    held = held_schedule(predicted(run), TEN, "clients", 4)
    assert held.compositions.tolist() == [
        [1, 50, 0, 0, 0], [0, 0, 0, 2, 100], [0, 0, 0, 2, 102], [0, 0, 0, 2, 104],
        [1, 60, 4, 0, 0],
        [1, 70, 0, 0, 0], [0, 0, 0, 1, 71], [0, 0, 0, 1, 72],
    ]  # fmt: skip
    # Request 0 from the first step of engine 0 on, whole; its tokens at the ends of steps 0 and 3.
    # Request 1 is seen by engine 1 before its first step, number 5 of all. Request 2 comes when
    # half of step 0 is over. Request 3 comes while the engine is idle.
    assert held.begin.tolist() == [0, 5, 0, 4]
    assert held.share.tolist() == pytest.approx([1.0, 1.0, 0.5, 1.0])
    assert held.first.tolist() == [1, 6, 2, 5]
    assert held.last.tolist() == [4, 8, 4, 5]


def test_sums_over_a_held_schedule_are_of_its_steps() -> None:
    held = held_schedule(predicted(two_engines()), TEN, "clients", 4)
    values = np.array([1.0, 10.0, 100.0, 1000.0, 7.0, 20.0, 300.0, 4000.0])
    first, decode = held.sums(values)
    assert first.tolist() == pytest.approx([1.0, 20.0, 0.5 + 10.0, 7.0])
    assert decode.tolist() == pytest.approx([1110.0, 4300.0, 1100.0, 0.0])


def test_on_the_engines_clock_a_request_waits_for_whole_steps() -> None:
    held = held_schedule(predicted(two_engines()), TEN, "engine", 3)
    assert len(held.begin) == 3
    # Request 2 came in step 0 of the engine and was taken at its end.
    assert held.begin.tolist() == [0, 5, 1]
    assert held.share.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_times_outside_the_steps_are_taken_off() -> None:
    class Late(LinearModel):
        ingress_ms, egress_ms = 6.0, 2.0

    late: Any = Late(base_ms=10, per_prefill_token_ms=0, per_decode_ms=0, per_context_token_ms=0)
    run = result(
        BUSY, arrival_ms=[12.0, 29.0], first_ms=[32.0, 52.0], finish_ms=[62.0, 62.0],
        engines=[0, 0],
    )  # fmt: skip
    held = held_schedule(predicted(run), late, "clients", 2)
    # Seen at 18 and at 35 ms; tokens made at 30 and 50 ms, at 60 ms the last ones.
    assert held.begin.tolist() == [0, 1]
    assert held.share.tolist() == pytest.approx([1.0, 0.5])
    assert held.first.tolist() == [1, 3]
    assert held.last.tolist() == [4, 4]


def test_durations_are_those_of_a_models_steps() -> None:
    held = held_schedule(predicted(two_engines()), TEN, "clients", 4)
    expected = [GROWING.step_ms(StepShape(*row)) for row in held.compositions.tolist()]
    assert held.durations(GROWING).tolist() == pytest.approx(expected)
