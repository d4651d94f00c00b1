from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from toy_runs import ToyRun, toy_run

from dynosim.errors import InvariantError
from dynosim.metrics import check_conservation
from dynosim.records import RunResult

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
