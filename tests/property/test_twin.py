"""Laws of the twin on random workloads: bulk equals single steps, nothing is lost."""

import random
from dataclasses import replace

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import random_routing, random_spec, random_timing, random_trace

from dynosim.cluster import simulate
from dynosim.metrics import check_conservation
from dynosim.records import NO_REQUEST, RunResult, Trace
from dynosim.timing.formulas import LinearModel

TIMES = ("arrival_ms", "scheduled_ms", "first_token_ms", "second_token_ms", "finish_ms")
COUNTS = ("cached_tokens", "preemptions", "status", "worker_id", "output_tokens")
SEEDS = st.integers(0, 2**32 - 1)


def runs(seed: int, *, exact: bool) -> RunResult:
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = random_spec(rng, trace)
    return simulate(
        trace,
        engine=spec,
        timing=random_timing(rng, spec),
        num_workers=rng.choice([1, 1, 2, 3]),
        routing=random_routing(rng, spec),
        concurrency=rng.choice([None, None, 3]),
        max_sim_time_ms=rng.choice([None, rng.uniform(0, 3000)]),
        exact_stepping=exact,
    )


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
    spec = random_spec(rng, trace)
    return simulate(
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
        max_sim_time_ms=rng.choice([None, None, step_ms * rng.randint(1, 200)]),
        exact_stepping=exact,
    )


def assert_same(bulk: RunResult, single: RunResult) -> None:
    for name in TIMES:
        ours, theirs = getattr(bulk.requests, name), getattr(single.requests, name)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=name)
    for name in COUNTS:
        np.testing.assert_array_equal(
            getattr(bulk.requests, name), getattr(single.requests, name), err_msg=name
        )
    np.testing.assert_allclose(
        np.sort(bulk.stalled_gaps_ms), np.sort(single.stalled_gaps_ms), rtol=0, atol=1e-6
    )
    assert bulk.steps.num_steps.sum() == single.steps.num_steps.sum()


@settings(max_examples=150, deadline=None)
@given(SEEDS)
@example(320254)
def test_bulk_when_compared_with_single_steps_gives_the_same_times(seed: int) -> None:
    assert_same(runs(seed, exact=False), runs(seed, exact=True))


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_bulk_does_as_single_steps_do_where_everything_happens_at_once(seed: int) -> None:
    assert_same(tied_runs(seed, exact=False), tied_runs(seed, exact=True))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_every_run_accounts_for_all_tokens_and_requests(seed: int) -> None:
    result = runs(seed, exact=False)
    log = result.requests
    gaps = int((result.steps.num_decodes * result.steps.num_steps).sum())
    produced = log.output_tokens[log.output_tokens > 0]
    assert gaps + len(result.stalled_gaps_ms) == int((produced - 1).sum())
    rng = random.Random(seed)
    check_conservation(result, random_trace(rng))


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_same_seed_when_run_twice_gives_the_same_bytes(seed: int) -> None:
    first, second = runs(seed, exact=False), runs(seed, exact=False)
    for name in (*TIMES, *COUNTS):
        assert getattr(first.requests, name).tobytes() == getattr(second.requests, name).tobytes()
