"""Where runs end: the model's context, the cache, the cut-off; at the limit and on either side."""

from dataclasses import replace

import numpy as np
import pytest
from clusters import run_twin

from dynosim.cluster import check_requests_fit
from dynosim.engine.room import require_room
from dynosim.engine.spec import EngineSpec
from dynosim.errors import InfeasibleError
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.timing.formulas import FixedModel
from dynosim.timing.model import StepTimeModel

SPEC = EngineSpec(num_gpu_blocks=101, max_model_len=20, block_size=4)
KINDS = pytest.mark.parametrize(
    ("is_async", "exact"), [(False, False), (False, True), (True, False), (True, True)]
)


def trace_of(
    *requests: tuple[int, int], arrivals_ms: list[float] | None = None, source: str = ""
) -> Trace:
    """Requests as (prompt, output)."""
    count = len(requests)
    return Trace(
        arrival_ms=np.zeros(count) if arrivals_ms is None else np.array(arrivals_ms),
        input_tokens=np.array([prompt for prompt, _ in requests]),
        output_tokens=np.array([output for _, output in requests]),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
        source=source,
    )


class Outside(FixedModel):
    """Requests spend 4 ms before the engine and 2 ms behind it."""

    ingress_ms = 4.0
    egress_ms = 2.0


TIMING = FixedModel(prefill_ms=10.0, decode_ms=5.0)


def run(
    trace: Trace,
    spec: EngineSpec = SPEC,
    *,
    is_async: bool = False,
    exact: bool = False,
    until_ms: float | None = None,
    timing: StepTimeModel = TIMING,
) -> RunResult:
    result = run_twin(
        trace,
        engine=replace(spec, async_scheduling=is_async),
        timing=timing,
        num_workers=1,
        exact_stepping=exact,
        until_ms=until_ms,
    )
    check_conservation(result, trace)
    return result


# ---- the model's context -----------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    ("prompt", "asked", "given"),
    [
        (12, 7, 7),
        (12, 8, 8),  # the last token fills the context
        (12, 9, 8),
        (12, 1000, 8),
        (18, 2, 2),
        (19, 1, 1),
        (19, 2, 1),
        (1, 19, 19),
        (1, 20, 19),
    ],
)
def test_answers_end_where_the_context_does(
    prompt: int, asked: int, given: int, is_async: bool, exact: bool
) -> None:
    log = run(trace_of((prompt, asked)), is_async=is_async, exact=exact).requests
    assert log.status.tolist() == [RequestStatus.COMPLETED]
    assert log.output_tokens.tolist() == [given]
    assert log.finish_ms.tolist() == [10.0 + 5.0 * (given - 1)]
    assert log.errors == {}


@KINDS
@pytest.mark.parametrize("prompt", [20, 21, 500])
def test_a_prompt_that_leaves_no_room_for_a_token_is_turned_away(
    prompt: int, is_async: bool, exact: bool
) -> None:
    trace = trace_of((prompt, 1), (19, 1), arrivals_ms=[3.0, 3.0])
    log = run(trace, is_async=is_async, exact=exact).requests
    assert log.status.tolist() == [RequestStatus.REJECTED, RequestStatus.COMPLETED]
    assert log.errors == {0: f"prompt of {prompt} tokens >= max_model_len 20"}
    assert log.arrival_ms[0] == 3.0
    assert (log.worker_id[0], log.output_tokens[0], log.cached_tokens[0]) == (-1, 0, 0)
    for name in ("dispatch_ms", "scheduled_ms", "first_token_ms", "second_token_ms", "finish_ms"):
        assert np.isnan(getattr(log, name)[0]), name
    assert (log.worker_id[1], log.finish_ms[1]) == (0, 13.0)


def test_one_token_has_no_second() -> None:
    log = run(trace_of((4, 1), (4, 2))).requests
    assert np.isnan(log.second_token_ms[0])
    assert log.second_token_ms[1] == log.finish_ms[1] == 15.0


# ---- the cache ---------------------------------------------------------------------------------


def test_an_engine_must_hold_one_request_of_the_models_length() -> None:
    spec = replace(SPEC, num_gpu_blocks=6, max_model_len=20)  # five blocks of four tokens
    require_room(spec)
    with pytest.raises(InfeasibleError, match="5 usable blocks of 4 hold 20 tokens, fewer than"):
        require_room(replace(spec, max_model_len=21))
    with pytest.raises(InfeasibleError, match="max_model_len 21"):
        run(trace_of((4, 1)), replace(spec, max_model_len=21))


def test_a_request_may_fill_the_cache_but_for_its_last_token() -> None:
    """The last token is never computed on, so it takes no room."""
    spec = replace(SPEC, num_gpu_blocks=6)
    check_requests_fit(trace_of((4, 1), (15, 6), (20, 1)), spec)
    trace = trace_of((4, 1), (15, 7), (20, 2), (15, 6), source="some.jsonl")
    with pytest.raises(InfeasibleError) as caught:
        check_requests_fit(trace, spec)
    told = str(caught.value)
    assert told.startswith("some.jsonl: request 1 (15 input + 7 output tokens) is longer")
    assert "(20 tokens), and so are 1 others" in told


# ---- the cut-off -------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    ("until_ms", "tokens"),
    [(0.0, 0), (9.999, 0), (10.0, 1), (14.999, 1), (15.0, 2), (29.999, 4), (30.0, 5), (44.999, 7)],
)
def test_a_cut_off_request_has_the_tokens_of_the_steps_that_have_ended(
    until_ms: float, tokens: int, is_async: bool, exact: bool
) -> None:
    result = run(trace_of((4, 8)), is_async=is_async, exact=exact, until_ms=until_ms)
    log = result.requests
    assert log.status.tolist() == [RequestStatus.UNFINISHED]
    assert log.output_tokens.tolist() == [tokens]
    assert np.isnan(log.finish_ms[0])
    assert np.isnan(log.first_token_ms[0]) == (tokens < 1)
    assert np.isnan(log.second_token_ms[0]) == (tokens < 2)
    assert log.scheduled_ms.tolist() == [0.0]
    assert result.end_ms == until_ms
    assert result.steps.num_steps.sum() == tokens


@KINDS
@pytest.mark.parametrize("until_ms", [45.0, 45.001, 1e6])
def test_a_cut_off_that_comes_with_the_last_event_cuts_nothing(
    until_ms: float, is_async: bool, exact: bool
) -> None:
    result = run(trace_of((4, 8)), is_async=is_async, exact=exact, until_ms=until_ms)
    assert result.requests.status.tolist() == [RequestStatus.COMPLETED]
    assert result.end_ms == 45.0


@KINDS
def test_what_would_arrive_after_the_cut_off_is_unfinished_and_never_arrived(
    is_async: bool, exact: bool
) -> None:
    trace = trace_of((4, 1), (4, 1), (4, 1), arrivals_ms=[0.0, 20.0, 20.001])
    result = run(trace, is_async=is_async, exact=exact, until_ms=20.0)
    log = result.requests
    unfinished = RequestStatus.UNFINISHED
    assert log.status.tolist() == [RequestStatus.COMPLETED, unfinished, unfinished]
    assert log.arrival_ms[1] == log.dispatch_ms[1] == log.scheduled_ms[1] == 20.0
    assert np.isnan(log.arrival_ms[2]) and log.worker_id[2] == -1
    assert result.end_ms == 20.0


@KINDS
def test_the_cut_off_is_on_the_clients_clock(is_async: bool, exact: bool) -> None:
    """First token at 4 + 10 + 2, then one every 5 ms: the third at 26."""
    for until_ms, tokens in ((25.999, 2), (26.0, 3)):
        timing = Outside(10.0, 5.0)
        result = run(
            trace_of((4, 8)), is_async=is_async, exact=exact, until_ms=until_ms, timing=timing
        )
        assert result.requests.output_tokens.tolist() == [tokens]
        assert result.end_ms == pytest.approx(until_ms, abs=1e-9)
        assert result.requests.first_token_ms.tolist() == [16.0]


@KINDS
def test_what_is_planned_at_the_cut_off_but_would_start_later_was_not_scheduled(
    is_async: bool, exact: bool
) -> None:
    """B's prompt is planned at 20 ms; with a pipeline its step starts at 25."""
    trace = trace_of((4, 12), (4, 2), arrivals_ms=[0.0, 17.0])
    for until_ms, is_scheduled in ((22.0, not is_async), (25.0, True)):
        result = run(trace, is_async=is_async, exact=exact, until_ms=until_ms)
        assert np.isnan(result.requests.scheduled_ms[1]) == (not is_scheduled)


# ---- the order of things at one moment ---------------------------------------------------------


@KINDS
def test_an_arrival_at_a_steps_end_is_in_the_next_step_or_with_a_pipeline_the_one_after(
    is_async: bool, exact: bool
) -> None:
    """A decodes from 10 ms on, a step every 5; B comes at 20, computed for 10 ms beside A."""
    trace = trace_of((4, 12), (4, 2), arrivals_ms=[0.0, 20.0])
    log = run(trace, is_async=is_async, exact=exact).requests
    start_ms = 25.0 if is_async else 20.0
    assert log.scheduled_ms[1] == start_ms
    assert log.first_token_ms[1] == start_ms + 15.0  # the step decodes A, too
    assert log.finish_ms[1] == start_ms + 20.0


@KINDS
def test_an_arrival_in_the_middle_of_a_step_waits_for_its_end(is_async: bool, exact: bool) -> None:
    trace = trace_of((4, 12), (4, 2), arrivals_ms=[0.0, 20.001])
    log = run(trace, is_async=is_async, exact=exact).requests
    assert log.scheduled_ms[1] == (30.0 if is_async else 25.0)


@KINDS
def test_a_seat_that_gets_free_is_taken_in_the_next_step_or_with_a_pipeline_the_one_after(
    is_async: bool, exact: bool
) -> None:
    spec = replace(SPEC, max_num_seqs=2)
    trace = trace_of((4, 3), (4, 9), (4, 2))
    log = run(trace, spec, is_async=is_async, exact=exact).requests
    assert log.finish_ms[0] == 20.0  # both prompts in one step of 10 ms, then two of 5
    assert log.scheduled_ms[2] == (25.0 if is_async else 20.0)


@KINDS
def test_a_head_that_found_no_room_finds_it_once_an_arrival_makes_its_first_chunk_smaller(
    is_async: bool, exact: bool
) -> None:
    """Three blocks are free. Of two requests one may take 64 tokens a step, of three 42."""
    spec = replace(
        SPEC,
        num_gpu_blocks=5,
        max_model_len=64,
        block_size=16,
        max_num_batched_tokens=128,
        long_prefill_token_threshold=16,
        long_prefill_token_threshold_adaptive=True,
        scheduler_reserve_full_isl=False,
    )
    trace = trace_of((4, 12), (60, 1), (4, 1), arrivals_ms=[0.0, 12.0, 21.0])
    log = run(trace, spec, is_async=is_async, exact=exact).requests
    assert log.scheduled_ms[1] == (30.0 if is_async else 25.0)


@pytest.mark.parametrize("exact", [False, True])
def test_cpu_workers_are_the_last_ones_and_take_their_time(exact: bool) -> None:
    result = run_twin(
        trace_of((4, 3), (4, 3), (4, 3)),
        engine=SPEC,
        timing=TIMING,
        num_workers=3,
        cpu_workers=2,
        cpu_step_time_scale=2.5,
        exact_stepping=exact,
    )
    assert result.requests.worker_id.tolist() == [0, 1, 2]
    assert result.requests.finish_ms.tolist() == [20.0, 50.0, 50.0]
    assert result.end_ms == 50.0
