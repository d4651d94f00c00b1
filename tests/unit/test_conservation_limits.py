"""`--check` finds a run that is wrong by the least amount, and bears one that is just right."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import run_twin

from dynosim.engine.spec import EngineSpec
from dynosim.errors import InvariantError
from dynosim.metrics import check_conservation
from dynosim.metrics.conservation import TOLERANCE_MS
from dynosim.records import RequestStatus, RunResult, Trace, WorkerLog
from dynosim.timing.formulas import FixedModel

Break = Callable[[RunResult], RunResult]
SPEC = EngineSpec(num_gpu_blocks=101, max_model_len=40, block_size=4)


def trace_of(count: int, *, prompt: int = 8, output: int = 6) -> Trace:
    return Trace(
        arrival_ms=7.0 * np.arange(count),
        input_tokens=np.full(count, prompt),
        output_tokens=np.full(count, output),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
    )


TRACE = trace_of(6)


def run(trace: Trace = TRACE, spec: EngineSpec = SPEC, **options: Any) -> RunResult:
    return run_twin(trace, engine=spec, timing=FixedModel(10.0, 5.0), num_workers=2, **options)


def tight_run() -> RunResult:
    """Four requests of 30 tokens on engines of ten blocks: somebody is preempted."""
    spec = replace(SPEC, num_gpu_blocks=11)
    return run(trace_of(4, prompt=16, output=15), spec)


def of_blocks(result: RunResult, blocks: int) -> RunResult:
    """As if every worker had so many."""
    return replace(result, workers=WorkerLog.equal(2, usable_blocks=blocks))


def changed(part: str, column: str, index: int, by: float) -> Break:
    """A number of the requests or steps is another."""

    def change(result: RunResult) -> RunResult:
        log = getattr(result, part)
        values = getattr(log, column).copy()
        values[index] += by
        return replace(result, **{part: replace(log, **{column: values})})

    return change


def request(column: str, index: int, by: float) -> Break:
    return changed("requests", column, index, by)


def step(column: str, index: int, by: float) -> Break:
    return changed("steps", column, index, by)


def before_its_cause(name: str, by_ms: float) -> Break:
    """A time of a request lies by so much before the one it follows from."""

    def change(result: RunResult) -> RunResult:
        cause = TIMES[TIMES.index(name) - 1]
        log = result.requests
        back_ms = getattr(log, name)[2] - getattr(log, cause)[2] + by_ms
        return request(name, 2, -back_ms)(result)

    return change


NAN = float("nan")
LITTLE = 2 * TOLERANCE_MS
TIMES = (
    "arrival_ms",
    "dispatch_ms",
    "scheduled_ms",
    "first_token_ms",
    "second_token_ms",
    "finish_ms",
)


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (request("status", 2, len(RequestStatus)), "completes, is rejected, fails or is cut off"),
        (request("status", 2, -1), "completes, is rejected, fails or is cut off"),
        (request("status", 2, RequestStatus.TIMED_OUT), "who is given up never ends"),
        (request("input_tokens", 2, 1), "prompts keep their length"),
        (request("input_tokens", 2, -1), "prompts keep their length"),
        (request("output_tokens", 2, 1), "at least one token and no more than asked"),
        (request("output_tokens", 2, -6), "at least one token and no more than asked"),
        (request("output_tokens", 2, -1), "gaps of requests are gaps of steps"),
        (request("cached_tokens", 2, -1), "no more of a prompt is cached than it has"),
        (request("cached_tokens", 2, 9), "no more of a prompt is cached than it has"),
        (request("cached_tokens", 2, 1), "prompt tokens are computed or cached"),
        (request("preemptions", 2, 1), "preemptions of requests add up"),
        (request("preemptions", 2, -1), "preemptions of requests add up"),
        *[(request(name, 2, NAN), f"a completed request has {name}") for name in TIMES],
        *[(before_its_cause(name, LITTLE), f"{name} is not before") for name in TIMES[1:]],
        (request("arrival_ms", 2, 1e3), "dispatch_ms is not before"),
        (step("num_steps", 0, -1), "a step row stands for a step"),
        (step("num_steps", 0, 1), "a row with prefill work is one step"),
        (step("duration_ms", 0, -10.001), "a step row lasts no negative time"),
        (step("used_blocks", 0, 10_000), "no more KV blocks are used than there are"),
        (step("used_blocks", 0, -10_000), "no more KV blocks are used than there are"),
        (step("prefill_tokens", 0, 1), "prompt tokens are computed or cached"),
        (step("prefill_tokens", 0, -1), "prompt tokens are computed or cached"),
        (step("num_decodes", -1, 1), "gaps of requests are gaps of steps"),
        (step("num_decodes", -1, -1), "gaps of requests are gaps of steps"),
        (lambda result: replace(result, num_preemptions=1), "preemptions of requests add up"),
        (lambda result: replace(result, stalled_gaps_ms=np.ones(1)), "gaps of requests"),
    ],
)
def test_a_run_that_is_wrong_by_a_little_is_found(change: Break, law: str) -> None:
    result = run()
    check_conservation(result, TRACE)
    with pytest.raises(InvariantError, match=law):
        check_conservation(change(result), TRACE)


@pytest.mark.parametrize(
    "change",
    [
        *[before_its_cause(name, TOLERANCE_MS / 2) for name in TIMES[1:]],
        request("finish_ms", 2, 1e6),
        lambda result: of_blocks(result, int(result.steps.used_blocks.max())),
    ],
)
def test_what_is_just_right_passes(change: Break) -> None:
    check_conservation(change(run()), TRACE)


def test_one_block_fewer_than_were_used_is_found() -> None:
    result = run()
    with pytest.raises(InvariantError, match="no more KV blocks are used"):
        blocks = int(result.steps.used_blocks.max()) - 1
        check_conservation(of_blocks(result, blocks), TRACE)


@pytest.mark.parametrize("num_asked", [5, 7])
def test_requests_too_few_or_too_many_are_found(num_asked: int) -> None:
    with pytest.raises(InvariantError, match=f"{num_asked} came, 6 logged"):
        check_conservation(run(), trace_of(num_asked))


def test_steps_of_one_worker_that_overlap_are_found_those_of_two_may() -> None:
    result = run()
    ends_ms = result.steps.start_ms + result.steps.duration_ms
    for worker_id in range(2):
        rows = np.flatnonzero(result.steps.worker_id == worker_id)
        later = int(rows[1])
        overlap_ms = ends_ms[rows[0]] - result.steps.start_ms[later]
        check_conservation(step("start_ms", later, overlap_ms - TOLERANCE_MS / 2)(result), TRACE)
        with pytest.raises(InvariantError, match="the steps of one worker follow one another"):
            check_conservation(step("start_ms", later, overlap_ms - LITTLE)(result), TRACE)
    assert (np.diff(result.steps.start_ms) < 0).any() or (
        result.steps.start_ms[1:] < ends_ms[:-1] - LITTLE
    ).any()  # the rows of both workers do


def test_a_request_of_one_token_needs_no_second() -> None:
    trace = trace_of(3, output=1)
    result = run(trace)
    assert np.isnan(result.requests.second_token_ms).all()
    check_conservation(result, trace)


def test_where_prompts_are_computed_again_more_may_be_computed_but_not_less() -> None:
    trace, result = trace_of(4, prompt=16, output=15), tight_run()
    assert result.num_preemptions > 0 and len(result.stalled_gaps_ms) > 0
    check_conservation(result, trace)
    prefill = int(np.flatnonzero(result.steps.prefill_tokens > 0)[0])
    check_conservation(step("prefill_tokens", prefill, 1)(result), trace)
    again = int(result.steps.prefill_tokens.sum() - trace.input_tokens.sum())
    assert again > 0
    check_conservation(step("prefill_tokens", prefill, -again)(result), trace)
    with pytest.raises(InvariantError, match="prompt tokens are computed or cached"):
        check_conservation(step("prefill_tokens", prefill, -again - 1)(result), trace)
    with pytest.raises(InvariantError, match="gaps of requests"):
        check_conservation(replace(result, stalled_gaps_ms=result.stalled_gaps_ms[1:]), trace)


def test_a_cut_off_run_may_have_computed_for_requests_that_did_not_end() -> None:
    result = run(until_ms=60.0)
    unfinished = result.requests.status == RequestStatus.UNFINISHED
    assert unfinished.any() and not unfinished.all()
    check_conservation(result, TRACE)
    check_conservation(step("prefill_tokens", 0, 1)(result), TRACE)
    with pytest.raises(InvariantError, match="gaps of requests"):
        index = int(np.flatnonzero(unfinished & (result.requests.output_tokens > 1))[0])
        check_conservation(request("output_tokens", index, 1)(result), TRACE)


def test_a_rejected_request_is_no_gap_and_no_prompt() -> None:
    trace = replace(TRACE, input_tokens=np.array([8, 8, 40, 8, 8, 8]))
    result = run(trace)
    assert result.requests.status[2] == RequestStatus.REJECTED
    check_conservation(result, trace)
    with pytest.raises(InvariantError, match="prompt tokens are computed or cached"):
        check_conservation(step("prefill_tokens", 0, 1)(result), trace)


def test_the_message_names_what_breaks_the_law_and_how_often() -> None:
    result = request("input_tokens", 4, 1)(request("input_tokens", 2, 1)(run()))
    with pytest.raises(InvariantError, match=r"request 2 breaks it \(2 in all\); this is a bug"):
        check_conservation(result, TRACE)
