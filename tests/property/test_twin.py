"""Laws of the twin on random workloads: bulk equals single steps, nothing is lost, time adds up."""

import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
from clusters import run_twin
from hypothesis import example, given, settings
from hypothesis import strategies as st
from probing import Ask, trace_of
from same_runs import assert_close, assert_same
from strategies import (
    bounded_spec,
    pressed_spec,
    pressing_trace,
    random_routing,
    random_timing,
    random_trace,
    with_lossy_events,
    with_rarer_routing,
    with_sessions,
)

from dynosim.engine.spec import EngineSpec
from dynosim.metrics import check_conservation
from dynosim.records import NO_REQUEST, RequestStatus, RunResult, Trace
from dynosim.router.busy import BusyThresholds
from dynosim.timing.formulas import LinearModel
from dynosim.timing.model import StepTimeModel

SEEDS = st.integers(0, 2**32 - 1)
NONE = BusyThresholds()


class Outside(LinearModel):
    """A linear law whose requests spend time outside of engines, too."""

    ingress_ms = 3.25
    egress_ms = 1.5


def some_timing(rng: random.Random, usual: StepTimeModel) -> StepTimeModel:
    if rng.random() < 0.8:
        return usual
    return Outside(
        base_ms=4.0, per_prefill_token_ms=0.03, per_decode_ms=0.2, per_context_token_ms=0.001
    )


def some_run(seed: int) -> tuple[Trace, dict[str, Any]]:
    """A trace, and all that `run_twin` asks for besides it."""
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = bounded_spec(rng, trace)
    timing = random_timing(rng, spec)
    num_workers = rng.choice([1, 1, 2, 3])
    routing = random_routing(rng, spec)
    concurrency = rng.choice([None, None, 3])
    until_ms = rng.choice([None, rng.uniform(0, 3000)])
    own = random.Random(f"{seed}/more")  # leaves the draws above to old seeds
    if own.random() < 0.3:
        trace = pressing_trace(own)
        spec = pressed_spec(own, trace)
        timing = random_timing(own, spec)
        routing = random_routing(own, spec)
        num_workers = 1
        until_ms = own.choice([None, own.uniform(0, 800)])
    if own.random() < 0.3:
        trace = with_sessions(own, trace)
    timing = some_timing(own, timing)
    if own.random() < 0.5:
        routing = with_rarer_routing(routing, timing, spec)
    cpu_workers = 0
    if num_workers > 1 and own.random() < 0.2:
        cpu_workers = 1
    return trace, {
        "engine": spec,
        "timing": timing,
        "num_workers": num_workers,
        "routing": with_lossy_events(own, routing),
        "cpu_workers": cpu_workers,
        "cpu_step_time_scale": 3.0,
        "concurrency": concurrency,
        "until_ms": until_ms,
    }


def runs(seed: int, *, exact: bool = False) -> RunResult:
    trace, options = some_run(seed)
    return run_twin(trace, **options, exact_stepping=exact)


def tied_trace(rng: random.Random, step_ms: float) -> Trace:
    """Requests of one or two kinds that come a whole number of steps after each other."""
    trace = random_trace(rng)
    count = len(trace)
    steps = np.array([rng.randint(0, 60) for _ in range(count)])
    outputs = rng.choice([[5], [5, 9], [40], [3, 60]])
    ids = [rng.choice([0, index + 1]) for index in range(count)]
    tied = Trace(
        arrival_ms=step_ms * np.sort(steps - steps.min()),
        input_tokens=np.full(count, rng.choice([8, 16]), np.int64),
        output_tokens=np.array([rng.choice(outputs) for _ in range(count)], np.int64),
        hash_ids=np.array(ids, np.int64),
        hash_offsets=np.arange(count + 1),
        trace_block_size=16,
        priority=trace.priority,
    )
    if rng.random() < 0.3:
        turns = [k - 3 if k >= 3 and rng.random() < 0.7 else NO_REQUEST for k in range(count)]
        think_ms = step_ms * np.array([rng.randint(0, 3) for _ in range(count)])
        tied = replace(tied, previous_turn=np.array(turns), delay_ms=think_ms)
    return tied


def tied_runs(seed: int, *, exact: bool) -> RunResult:
    """All steps take one time or a small multiple: nearly everything happens at equal times."""
    rng = random.Random(seed)
    step_ms = rng.choice([0.1, 1 / 3, 0.7, 5.0, 6.6])
    trace = tied_trace(rng, step_ms)
    spec = bounded_spec(rng, trace)
    return run_twin(
        trace,
        engine=replace(spec, num_gpu_blocks=spec.num_gpu_blocks * rng.choice([1, 8])),
        timing=LinearModel(
            base_ms=step_ms,
            per_prefill_token_ms=rng.choice([0.0, 0.0, step_ms]),
            per_decode_ms=rng.choice([0.0, step_ms]),
            per_context_token_ms=0.0,
        ),
        num_workers=rng.choice([1, 2, 3, 4, 6]),
        routing=random_routing(rng, spec),
        concurrency=rng.choice([None, 2, 3, 5, 8, 12]),
        until_ms=rng.choice([None, None, step_ms * rng.randint(1, 200)]),
        exact_stepping=exact,
    )


@settings(max_examples=90, deadline=None)
@given(SEEDS)
@example(320254)
@example(11588)
def test_bulk_when_compared_with_single_steps_gives_the_same_times(seed: int) -> None:
    assert_same(runs(seed), runs(seed, exact=True))


@settings(max_examples=70, deadline=None)
@given(SEEDS)
def test_bulk_does_as_single_steps_do_where_everything_happens_at_once(seed: int) -> None:
    assert_same(tied_runs(seed, exact=False), tied_runs(seed, exact=True))


# ---- accounts of one run ---------------------------------------------------------------------


@settings(max_examples=35, deadline=None)
@given(SEEDS, st.booleans())
def test_every_run_accounts_for_all_tokens_and_requests(seed: int, exact: bool) -> None:
    trace, _ = some_run(seed)
    result = runs(seed, exact=exact)
    log = result.requests
    gaps = int((result.steps.num_decodes * result.steps.num_steps).sum())
    produced = log.output_tokens[log.output_tokens > 0]
    assert gaps + len(result.stalled_gaps_ms) == int((produced - 1).sum())
    check_conservation(result, trace)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.booleans())
def test_a_run_that_is_not_cut_off_gives_everybody_all_in_time_that_adds_up(
    seed: int, exact: bool
) -> None:
    trace, options = some_run(seed)
    routing = replace(options["routing"], settings=replace(options["routing"].settings, busy=NONE))
    options |= {"until_ms": None, "routing": routing}
    result = run_twin(trace, **options, exact_stepping=exact)
    log, steps = result.requests, result.steps
    # Answers end where the model's context does; prompts that fill it get none.
    limit = options["engine"].max_model_len
    fits = trace.input_tokens < limit
    np.testing.assert_array_equal(log.status == RequestStatus.COMPLETED, fits)
    np.testing.assert_array_equal(log.status == RequestStatus.REJECTED, ~fits)
    assert set(log.errors) == set(np.flatnonzero(~fits).tolist())
    room = np.minimum(trace.output_tokens, limit - trace.input_tokens)
    np.testing.assert_array_equal(log.output_tokens, np.where(fits, room, 0))
    # The second of two tokens is the last, whatever came in between.
    pairs = fits & (log.output_tokens == 2)
    assert_close(log.second_token_ms[pairs], log.finish_ms[pairs], "second_token_ms")
    # A gap between two tokens is one step's length, or told in full if its request missed a step.
    decoding_ms = (steps.num_decodes * steps.duration_ms).sum() + result.stalled_gaps_ms.sum()
    assert_close(decoding_ms, (log.finish_ms - log.first_token_ms)[fits].sum(), "gaps")
    assert_close(result.end_ms, last_event_ms(result, options), "end_ms")


def last_event_ms(result: RunResult, options: dict[str, Any]) -> float:
    """The latest end, as told to the other frontends, or refusal, as told to the client."""
    log, timing = result.requests, options["timing"]
    outside_ms = timing.ingress_ms + timing.egress_ms
    refused_ms = log.arrival_ms[log.status == RequestStatus.REJECTED] + outside_ms
    told_ms = log.finish_ms + (options["routing"].sync_delay_ms or 0.0)
    return float(np.nanmax([*told_ms, *refused_ms]))


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_a_run_may_be_cut_off_in_the_middle_of_a_step_that_leaves_somebody_out(seed: int) -> None:
    rng = random.Random(seed)
    trace = pressing_trace(rng)
    spec = replace(pressed_spec(rng, trace), policy="priority")
    options: dict[str, Any] = {
        "engine": spec,
        "timing": random_timing(rng, spec),
        "num_workers": 1,
        "exact_stepping": rng.random() < 0.5,
    }
    steps = run_twin(trace, **(options | {"exact_stepping": True})).steps
    fewer = 1 + np.flatnonzero(steps.num_decodes[1:] < steps.num_decodes[:-1])
    middles_ms = (steps.start_ms + steps.duration_ms / 2)[fewer].tolist()
    for until_ms in rng.sample(middles_ms, min(6, len(middles_ms))):
        check_conservation(run_twin(trace, **options, until_ms=until_ms), trace)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_same_seed_when_run_twice_gives_the_same_bytes(seed: int) -> None:
    first, second = runs(seed), runs(seed)
    for logs in ((first.requests, second.requests), (first.steps, second.steps)):
        for column in fields(logs[0]):
            ours, theirs = (getattr(log, column.name) for log in logs)
            if column.name == "errors" or ours is None:
                assert ours == theirs, column.name
            else:
                assert ours.tobytes() == theirs.tobytes(), column.name


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_nobody_takes_the_blocks_of_others_for_ever(seed: int) -> None:
    """Where two or three prompts that come at once, cut into chunks, are too many for the cache.

    vLLM preempts the first of those who are equally urgent, also if that is the one it served last;
    but no two requests are, as no two arrive at one time.
    """
    rng = random.Random(seed)
    asks = [
        Ask(0.0, (number, *range(10, 13)), 0, rng.choice([1, 8, 30]))
        for number in range(rng.choice([2, 3]))
    ]
    trace = replace(trace_of(asks, 16), priority=np.zeros(len(asks), np.int64))
    longest = 64 + 30
    engine = EngineSpec(
        num_gpu_blocks=-(-longest // 4) + 1 + rng.choice([0, 2]),
        max_model_len=longest,
        block_size=4,
        max_num_seqs=8,
        max_num_batched_tokens=rng.choice([8, 16, 64]),
        enable_prefix_caching=rng.random() < 0.3,
        long_prefill_token_threshold=rng.choice([4, 8]),
        policy=rng.choice(["priority", "priority", "fcfs"]),
        scheduler_reserve_full_isl=rng.random() < 0.3,
        async_scheduling=rng.random() < 0.5,
    )
    timing = LinearModel(
        base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.1, per_context_token_ms=0.0005
    )
    result = run_twin(trace, engine=engine, timing=timing, num_workers=1, until_ms=60_000.0)
    assert (result.requests.status == RequestStatus.COMPLETED).all()
