"""Data-parallel ranks: nothing is lost, and in lock step none gets ahead of another."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
from clusters import equal_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_same
from strategies import random_routing, random_spec, random_timing, random_trace

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.control import ControlPlane, Process, ProcessGenerator
from dynosim.engine.rank_balance import BalancingRule
from dynosim.engine.ranks import RankSpec
from dynosim.metrics import check_conservation
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.timing.experts import ExpertCurve
from dynosim.workers.lifecycle import Phase

SEEDS = st.integers(0, 2**32 - 1)


def with_ranks(cluster: ClusterSpec, ranks: RankSpec) -> ClusterSpec:
    pools = [replace(one, ranks=ranks, gpus_per_worker=2 * ranks.number) for one in cluster.pools]
    return replace(cluster, pools=tuple(pools))


def random_ranks(rng: random.Random, *, number: int, in_lock_step: bool) -> RankSpec:
    rule = BalancingRule(counts_in_flight=rng.random() < 0.5, rotates=rng.random() < 0.5)
    return RankSpec(
        number=number,
        in_lock_step=in_lock_step,
        padded_up_to=rng.choice([0, 8, 512]),
        rule=rng.choice([None, rule, rule]),
    )


def drawn(seed: int, *, in_lock_step: bool, number: int) -> tuple[Trace, ClusterSpec]:
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = random_spec(rng, trace)
    timing = random_timing(rng, spec)
    if rng.random() < 0.5:
        timing.experts = ExpertCurve([1.0, 100.0], [0.5, 3.0])
    ranks = random_ranks(rng, number=number, in_lock_step=in_lock_step)
    routing = random_routing(rng, spec)
    if ranks.rule is not None:
        load_mode = rng.choice(["round-robin", "least-loaded", "random"])
        routing = replace(routing, settings=replace(routing.settings, mode=load_mode))
    cluster = equal_workers(spec, timing, num_workers=rng.randint(1, 2), routing=routing)
    return trace, with_ranks(cluster, ranks)


def acting(seed: int) -> Process:
    """Workers come, drain and fail now and then."""

    def act(control: ControlPlane) -> ProcessGenerator:
        rng = random.Random(seed)
        while len(control.workers) < 16:
            yield control.env.timeout(rng.uniform(5.0, 900.0))
            alive = [w for w in control.workers if w.phase in (Phase.READY, Phase.DRAINING)]
            what = rng.choice([control.drain, control.fail, None])
            if what is None or not alive:
                control.launch()
            else:
                what(rng.choice(alive).worker_id)

    return act


def run(seed: int, *, in_lock_step: bool, steered: bool = False) -> tuple[Trace, RunResult]:
    trace, cluster = drawn(seed, in_lock_step=in_lock_step, number=2 + seed % 3)
    processes = [acting(seed)] if steered else []
    return trace, simulate(trace, cluster, processes=processes)


@settings(max_examples=14, deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_nothing_is_lost_among_ranks(seed: int, in_lock_step: bool, steered: bool) -> None:
    trace, result = run(seed, in_lock_step=in_lock_step, steered=steered)
    check_conservation(result, trace)
    completed = result.requests.status == RequestStatus.COMPLETED
    produced = result.requests.output_tokens
    np.testing.assert_array_equal(produced[completed], trace.output_tokens[completed])
    assert steered or completed.all()


@settings(max_examples=14, deadline=None)
@given(SEEDS, st.booleans())
def test_ranks_in_lock_step_begin_and_end_their_steps_together(seed: int, steered: bool) -> None:
    _, result = run(seed, in_lock_step=True, steered=steered)
    number = result.workers.ranks_per_worker
    steps = result.steps
    for worker in range(len(result.workers) // number):
        mine = steps.worker_id // number == worker
        starts, ends = steps.start_ms[mine], steps.start_ms[mine] + steps.duration_ms[mine]
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
        is_new = np.diff(starts) > 0
        assert (ends[1:][~is_new] == ends[:-1][~is_new]).all()
        assert (starts[1:][is_new] >= ends[:-1][is_new] - 1e-6).all()
    log = result.lock_step
    assert log is not None
    assert log.rank_steps - log.dummy_rank_steps >= len(steps.start_ms)  # a cut-off ends none
    assert 0 <= log.waiting_ms <= log.rank_ms


@settings(max_examples=14, deadline=None)
@given(SEEDS)
def test_one_rank_in_lock_step_is_a_plain_engine_to_the_last_digit(seed: int) -> None:
    trace, cluster = drawn(seed, in_lock_step=True, number=1)
    cluster = with_ranks(cluster, RankSpec(in_lock_step=True))
    plain = with_ranks(cluster, RankSpec())
    ours, theirs = (
        simulate(trace, one, RunOptions(exact_stepping=True)) for one in (cluster, plain)
    )
    assert_same(theirs, ours)
    for name in ("first_token_ms", "second_token_ms", "finish_ms", "scheduled_ms"):
        mine, plains = getattr(ours.requests, name), getattr(theirs.requests, name)
        np.testing.assert_array_equal(mine, plains, err_msg=name)
    np.testing.assert_array_equal(ours.steps.duration_ms, theirs.steps.duration_ms)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.booleans())
def test_ranks_that_do_the_same_are_as_fast_as_one(seed: int, is_padded: bool) -> None:
    """The step of a model with ranks is one in which all do the same."""
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = random_spec(rng, trace)
    timing = random_timing(rng, spec)
    timing.experts = ExpertCurve([1.0, 100.0], [0.5, 3.0])
    one = equal_workers(spec, timing)
    ranks = RankSpec(number=2, in_lock_step=True, padded_up_to=512 if is_padded else 0)
    alone, both = simulate(trace, one), simulate(twice(trace), with_ranks(one, ranks))
    served = both.requests.worker_id.reshape(-1, 2)
    np.testing.assert_array_equal(served, [[0, 1]] * len(trace))
    for name in ("first_token_ms", "finish_ms"):
        theirs = getattr(both.requests, name).reshape(-1, 2)
        ours = np.stack([getattr(alone.requests, name)] * 2, axis=1)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6, err_msg=name)
    assert both.lock_step is not None and both.lock_step.dummy_rank_steps == 0


def twice(trace: Trace) -> Trace:
    """Every request two times in succession."""
    sizes = np.diff(trace.hash_offsets)
    ids: list[Any] = []
    for row in range(len(trace)):
        mine = trace.hash_ids[trace.hash_offsets[row] : trace.hash_offsets[row + 1]]
        ids += [*mine, *mine]
    assert trace.priority is not None
    return replace(
        trace,
        arrival_ms=np.repeat(trace.arrival_ms, 2),
        input_tokens=np.repeat(trace.input_tokens, 2),
        output_tokens=np.repeat(trace.output_tokens, 2),
        priority=np.repeat(trace.priority, 2),
        hash_ids=np.array(ids, np.int64),
        hash_offsets=np.concatenate([[0], np.cumsum(np.repeat(sizes, 2))]),
    )


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_ranks_that_nobody_waits_for_go_in_bulk_as_singly(seed: int) -> None:
    trace, cluster = drawn(seed, in_lock_step=False, number=3)
    bulk, single = (simulate(trace, cluster, RunOptions(exact_stepping=x)) for x in (False, True))
    assert_same(bulk, single)
