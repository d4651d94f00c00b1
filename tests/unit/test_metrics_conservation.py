from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from toy_runs import ToyRun, toy_run

from dynosim.errors import InvariantError
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult

Break = Callable[[RunResult], RunResult]


@pytest.mark.parametrize("preempt_chance", [0.0, 0.05])
def test_a_true_run_passes(preempt_chance: float) -> None:
    run = toy_run(preempt_chance=preempt_chance)
    check_conservation(run.result, run.trace)


def test_an_empty_run_passes() -> None:
    run = toy_run(0)
    check_conservation(run.result, run.trace)


def requests_changed(name: str, index: int, value: float) -> Break:
    def change(result: RunResult) -> RunResult:
        column = getattr(result.requests, name).copy()
        column[index] = value
        return replace(result, requests=replace(result.requests, **{name: column}))

    return change


def steps_changed(name: str, index: int, value: float) -> Break:
    def change(result: RunResult) -> RunResult:
        column = getattr(result.steps, name).copy()
        column[index] = value
        return replace(result, steps=replace(result.steps, **{name: column}))

    return change


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (requests_changed("status", 3, 9), "completes, is rejected"),
        (requests_changed("output_tokens", 3, 10_000), "no more than asked"),
        (requests_changed("input_tokens", 3, 10_000), "prompts keep their length"),
        (requests_changed("cached_tokens", 3, 10_000), "cached"),
        (requests_changed("preemptions", 3, 1), "preemptions"),
        (requests_changed("scheduled_ms", 3, -1.0), "scheduled_ms is not before"),
        (requests_changed("finish_ms", 3, 0.0), "finish_ms is not before"),
        (requests_changed("finish_ms", 3, np.nan), "has finish_ms"),
        (requests_changed("cached_tokens", 3, 0), "computed or cached"),
        (steps_changed("used_blocks", 3, 1 << 40), "KV blocks"),
        (steps_changed("num_steps", 0, 5), "one step"),
        (steps_changed("duration_ms", 0, 1e9), "follow one another"),
        (steps_changed("duration_ms", 0, -1.0), "negative"),
        (steps_changed("num_decodes", 8, 1000), "gaps of requests"),
        (steps_changed("prefill_tokens", 0, 0), "computed or cached"),
        (lambda result: replace(result, stalled_gaps_ms=np.ones(1)), "gaps of requests"),
    ],
)
def test_a_broken_law_is_named(change: Break, law: str) -> None:
    run: ToyRun = toy_run(seed=1)
    assert run.result.requests.cached_tokens[3] > 0
    with pytest.raises(InvariantError, match=law):
        check_conservation(change(run.result), run.trace)


def test_a_lost_request_is_named() -> None:
    run = toy_run(5)
    with pytest.raises(InvariantError, match="6 came, 5 logged"):
        check_conservation(run.result, toy_run(6).trace)


def allows(result: RunResult, run: ToyRun) -> bool:
    try:
        check_conservation(result, run.trace)
    except InvariantError:
        return False
    return True


@pytest.fixture(scope="module")
def run() -> ToyRun:
    return toy_run(seed=1)


CHAIN = ("arrival_ms", "dispatch_ms", "scheduled_ms", "first_token_ms", "second_token_ms",
         "finish_ms")  # fmt: skip


@pytest.mark.parametrize(("early_ms", "is_allowed"), [(0.5e-6, True), (2e-6, False)])
@pytest.mark.parametrize("place", range(1, 6))
def test_a_time_may_precede_its_cause_by_rounding_only(
    run: ToyRun, place: int, early_ms: float, is_allowed: bool
) -> None:
    """The time is put just before the one it follows from, and so are all behind it."""
    index = int(np.argmax(run.result.requests.output_tokens > 2))
    cause_ms = float(getattr(run.result.requests, CHAIN[place - 1])[index])
    result = requests_changed(CHAIN[place], index, cause_ms - early_ms)(run.result)
    assert allows(result, run) is is_allowed


def test_the_last_token_of_one_follows_its_first() -> None:
    """There is no second token in between to compare with."""
    toy = toy_run(6, mean_output=0.01)
    first_ms = float(toy.result.requests.first_token_ms[2])
    with pytest.raises(InvariantError, match="finish_ms is not before"):
        check_conservation(requests_changed("finish_ms", 2, first_ms - 1)(toy.result), toy.trace)


def test_who_has_two_tokens_has_a_time_for_the_second(run: ToyRun) -> None:
    index = int(np.argmax(run.result.requests.output_tokens > 1))
    with pytest.raises(InvariantError, match="has second_token_ms"):
        check_conservation(
            requests_changed("second_token_ms", index, np.nan)(run.result), run.trace
        )


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (requests_changed("output_tokens", 3, 0), "at least one token"),
        (requests_changed("cached_tokens", 3, -1), "no more of a prompt is cached"),
        (steps_changed("num_steps", 8, 0), "stands for a step"),
        (steps_changed("used_blocks", 3, -1), "KV blocks"),
        (steps_changed("duration_ms", 3, -1e-12), "negative"),
        (steps_changed("num_steps", 0, 2), "one step"),
    ],
)
def test_one_less_or_more_than_allowed_is_a_breach(run: ToyRun, change: Break, law: str) -> None:
    with pytest.raises(InvariantError, match=law):
        check_conservation(change(run.result), run.trace)


def test_a_token_more_than_asked_is_a_breach_and_as_many_are_not(run: ToyRun) -> None:
    asked = run.trace.output_tokens.copy()
    asked[3] -= 1
    with pytest.raises(InvariantError, match="no more than asked"):
        check_conservation(run.result, replace(run.trace, output_tokens=asked))


@pytest.mark.parametrize(("more", "law"), [(0, "computed or cached"), (1, "no more of a prompt")])
def test_all_of_a_prompt_may_be_cached_but_not_more(run: ToyRun, more: int, law: str) -> None:
    """Then too much was computed, which is another law."""
    whole = int(run.result.requests.input_tokens[3])
    with pytest.raises(InvariantError, match=law):
        check_conservation(
            requests_changed("cached_tokens", 3, whole + more)(run.result), run.trace
        )


def test_all_blocks_may_be_in_use_and_no_more(run: ToyRun) -> None:
    blocks = int(run.result.workers.usable_blocks[0])
    assert allows(steps_changed("used_blocks", 3, blocks)(run.result), run)
    assert allows(steps_changed("used_blocks", 3, 0)(run.result), run)
    assert not allows(steps_changed("used_blocks", 3, blocks + 1)(run.result), run)


@pytest.mark.parametrize(("early_ms", "is_allowed"), [(0.5e-6, True), (2e-6, False)])
def test_rows_of_one_worker_overlap_by_rounding_only(
    run: ToyRun, early_ms: float, is_allowed: bool
) -> None:
    steps = run.result.steps
    rows = np.flatnonzero(steps.worker_id == 1)
    distances = np.diff(rows)
    place = int(np.argmax(distances))  # rows of the other worker come in between, and overlap
    assert distances[place] > 1
    before, row = int(rows[place]), int(rows[place + 1])
    end_ms = float(steps.start_ms[before] + steps.duration_ms[before])
    result = steps_changed("start_ms", row, end_ms - early_ms)(run.result)
    assert allows(result, run) is is_allowed


def test_more_may_be_computed_after_a_preemption_or_for_who_did_not_finish(run: ToyRun) -> None:
    """A row with a prompt computes a token more."""
    row = int(np.argmax(run.result.steps.num_prefills > 0))
    tokens = int(run.result.steps.prefill_tokens[row])
    more = steps_changed("prefill_tokens", row, tokens + 1)(run.result)
    assert not allows(more, run)
    preempted = requests_changed("preemptions", 3, 1)(more)
    assert allows(replace(preempted, num_preemptions=1), run)
    cut = requests_changed("status", 3, int(RequestStatus.UNFINISHED))(more)
    assert allows(cut, run)
    unseen = requests_changed("scheduled_ms", 3, np.nan)(cut)
    assert not allows(unseen, run)
    less = steps_changed("prefill_tokens", row, tokens - 1)(replace(preempted, num_preemptions=1))
    assert not allows(less, run)


def test_tokens_of_who_did_not_finish_are_counted_too(run: ToyRun) -> None:
    index = int(np.argmax(run.result.requests.output_tokens > 2))
    cut = requests_changed("status", index, int(RequestStatus.UNFINISHED))(run.result)
    assert allows(cut, run)
    tokens = int(cut.requests.output_tokens[index])
    fewer = requests_changed("output_tokens", index, tokens - 1)(cut)
    with pytest.raises(InvariantError, match="gaps of requests"):
        check_conservation(fewer, run.trace)
