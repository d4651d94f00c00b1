"""Ranks of a worker in the twin, to the millisecond.

A prefill step takes 10 ms and a decode step 5.
"""

from dataclasses import replace

import numpy as np
import pytest
from probing import Ask, trace_of
from test_cluster_lives import at
from test_placers import SPEC, TIMING

from dynosim.cluster import ClusterSpec, PoolSpec, simulate
from dynosim.engine.rank_balance import BalancingRule
from dynosim.engine.ranks import RankSpec
from dynosim.errors import ConfigError
from dynosim.records import RunResult
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec

RULE = BalancingRule(counts_in_flight=False, rotates=False)
TOGETHER = RankSpec(number=2, in_lock_step=True)
ALONE = RankSpec(number=2)


def cluster(ranks: RankSpec, *, workers: int = 1, is_async: bool = False) -> ClusterSpec:
    engine = replace(SPEC, async_scheduling=is_async)
    pool = PoolSpec(
        engine=engine, times=TIMING, workers=workers, gpus_per_worker=2 * ranks.number, ranks=ranks
    )
    return ClusterSpec(pools=(pool,))


def two_requests(ranks: RankSpec, *, is_async: bool) -> RunResult:
    """One on each rank, the second 3 ms later."""
    asks = [Ask(0.0, (1,), 0, output_tokens=4), Ask(3.0, (2,), 0, output_tokens=2)]
    return simulate(trace_of(asks, 4), cluster(ranks, is_async=is_async))


@pytest.mark.parametrize("is_async", [False, True])
def test_a_decode_waits_for_the_other_ranks_prompt_and_that_for_the_step_before(
    is_async: bool,
) -> None:
    result = two_requests(TOGETHER, is_async=is_async)
    log = result.requests
    np.testing.assert_array_equal(log.worker_id, [0, 1])
    np.testing.assert_array_equal(log.scheduled_ms, [0.0, 10.0])
    np.testing.assert_array_equal(log.first_token_ms, [10.0, 20.0])
    np.testing.assert_array_equal(log.second_token_ms, [20.0, 25.0])
    np.testing.assert_array_equal(log.finish_ms, [30.0, 25.0])
    counts = result.lock_step
    assert counts is not None
    assert (counts.rank_steps, counts.dummy_rank_steps) == (8, 2)  # the first and the last step
    assert (counts.rank_ms, counts.waiting_ms) == (60.0, 5.0)
    assert (counts.dummy_share, counts.waiting_share) == (0.25, 5 / 60)


def test_a_queue_behind_asynchronous_scheduling_waits_one_step_more() -> None:
    """What comes to a rank with work in the course of step k begins with step k + 2."""
    asks = [
        Ask(0.0, (1,), 0, output_tokens=9),
        Ask(0.0, (2,), 0, output_tokens=9),
        Ask(12.0, (3,), 0, output_tokens=1),
    ]
    result = simulate(trace_of(asks, 4), cluster(TOGETHER, is_async=True))
    assert result.requests.scheduled_ms.tolist() == [0.0, 0.0, 20.0]
    result = simulate(trace_of(asks, 4), cluster(TOGETHER, is_async=False))
    assert result.requests.scheduled_ms.tolist() == [0.0, 0.0, 15.0]


@pytest.mark.parametrize("is_async", [False, True])
def test_ranks_of_a_dense_model_do_not_wait(is_async: bool) -> None:
    result = two_requests(ALONE, is_async=is_async)
    np.testing.assert_array_equal(result.requests.first_token_ms, [10.0, 13.0])
    np.testing.assert_array_equal(result.requests.finish_ms, [25.0, 18.0])
    assert result.lock_step is None


def test_gpus_and_blocks_are_counted_by_rank() -> None:
    workers = two_requests(TOGETHER, is_async=False).workers
    assert (len(workers), workers.ranks_per_worker) == (2, 2)
    assert workers.gpus.tolist() == [2, 2]
    assert workers.usable_blocks.tolist() == [100, 100]


def test_a_front_end_chooses_a_worker_and_that_one_a_rank() -> None:
    asks = [Ask(0.1 * n, (n,), 0, output_tokens=50) for n in range(8)]
    ranks = replace(TOGETHER, rule=RULE)
    result = simulate(trace_of(asks, 4), cluster(ranks, workers=2))
    assert result.requests.worker_id.tolist() == [0, 2, 1, 3, 0, 2, 1, 3]


def test_a_router_follows_the_cache_of_each_rank() -> None:
    asks = [Ask(200.0 * n, (n % 2, 9 + n % 2), 0, output_tokens=2) for n in range(6)]
    routing = RoutingSpec(RouterSpec(4, mode="kv"))
    result = simulate(trace_of(asks, 4), replace(cluster(TOGETHER), routing=routing))
    served = result.requests.worker_id
    for prefix in (0, 1):
        assert len(set(served[prefix::2])) == 1
    assert result.requests.cached_tokens.tolist() == [0, 0, 4, 4, 4, 4]


def test_ranks_die_together_and_leave_nothing_behind() -> None:
    asks = [Ask(0.0, (n,), 0, output_tokens=8) for n in range(4)]
    ranks = replace(TOGETHER, rule=RULE)
    process = at((12.0, lambda control: control.fail(0)))
    result = simulate(trace_of(asks, 4), cluster(ranks, workers=2), processes=[process])
    np.testing.assert_array_equal(result.workers.ended_ms, [12.0, 12.0, np.nan, np.nan])
    assert result.requests.migrations.sum() == 2
    assert set(result.requests.worker_id) == {2, 3}
    assert result.requests.output_tokens.tolist() == [8] * 4


def test_a_worker_is_gone_when_all_its_ranks_are_done() -> None:
    asks = [Ask(0.0, (1,), 0, output_tokens=2), Ask(0.0, (2,), 0, output_tokens=9)]
    process = at((1.0, lambda control: control.drain(0)))
    for ranks in (TOGETHER, ALONE):
        result = simulate(trace_of(asks, 4), cluster(ranks), processes=[process])
        assert result.workers.ended_ms.tolist() == [50.0, 50.0]


def test_a_worker_that_is_launched_has_all_its_ranks() -> None:
    asks = [Ask(100.0 * n, (n,), 0, output_tokens=2) for n in range(4)]
    process = at((1.0, lambda control: control.launch()))
    result = simulate(trace_of(asks, 4), cluster(TOGETHER), processes=[process])
    assert len(result.workers) == 4
    assert set(result.requests.worker_id) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpus_per_worker": 3}, "3 GPUs of a worker do not go into 2 ranks"),
        ({"ranks": RankSpec(number=0)}, "do not go into 0 ranks"),
    ],
)
def test_ranks_that_cannot_be_are_refused(change: dict[str, object], reason: str) -> None:
    pool = PoolSpec(engine=SPEC, times=TIMING, workers=1, gpus_per_worker=2, ranks=TOGETHER)
    with pytest.raises(ConfigError, match=reason):
        replace(pool, **change)  # type: ignore[arg-type]


def test_all_workers_have_the_same_ranks() -> None:
    pool = PoolSpec(engine=SPEC, times=TIMING, workers=1, gpus_per_worker=2, ranks=TOGETHER)
    other = replace(pool, name="others", ranks=ALONE)
    with pytest.raises(ConfigError, match="pools workers and others: all workers need the same"):
        ClusterSpec(pools=(pool, other))
