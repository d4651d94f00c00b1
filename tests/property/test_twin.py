"""Laws of the twin on random workloads: bulk equals single steps, nothing is lost."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_routing, random_spec, random_timing, random_trace

from dynosim.cluster import simulate
from dynosim.metrics import check_conservation
from dynosim.records import RunResult

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


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_bulk_when_compared_with_single_steps_gives_the_same_times(seed: int) -> None:
    bulk, single = runs(seed, exact=False), runs(seed, exact=True)
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
