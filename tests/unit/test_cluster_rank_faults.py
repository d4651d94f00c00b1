"""Workers with data-parallel ranks that crash, hang, slow down or are replaced: all ranks do."""

from dataclasses import replace

import numpy as np
import pytest
from clusters import equal_workers
from probing import Ask, trace_of

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.scenario import Crash, Replacement, ScenarioEvent, Slow, WorkerTarget, play
from dynosim.cluster.updates import RollingUpdate
from dynosim.engine.ranks import RankSpec
from dynosim.engine.spec import EngineSpec
from dynosim.metrics import check_conservation
from dynosim.planner.rolling import RollingLimits
from dynosim.records import RequestStatus, RunResult
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel

ENGINE = EngineSpec(num_gpu_blocks=101, max_model_len=200, block_size=4, async_scheduling=False)
TIMES = FixedModel(prefill_ms=10.0, decode_ms=5.0)
FIRST = WorkerTarget("workers", 0)
IN_LOCK_STEP = pytest.mark.parametrize("in_lock_step", [False, True])


def cluster_of(*, in_lock_step: bool, workers: int = 2) -> ClusterSpec:
    routing = RoutingSpec(RouterSpec(4, mode="round-robin"))
    cluster = equal_workers(ENGINE, TIMES, num_workers=workers, routing=routing)
    ranks = RankSpec(number=2, in_lock_step=in_lock_step)
    pool = replace(cluster.pools[0], ranks=ranks, gpus_per_worker=2)
    return replace(cluster, pools=(pool,))


def run(
    cluster: ClusterSpec, wanted: list[int], *events: ScenarioEvent, every_ms: float = 0.0
) -> RunResult:
    """Requests that come at these intervals and want so many tokens, in turn on all ranks."""
    asks = [Ask(every_ms * i, (i,), 0, output_tokens=n) for i, n in enumerate(wanted)]
    trace = trace_of(asks, 4)
    bulk, single = [
        simulate(trace, cluster, RunOptions(exact_stepping=exact), processes=play(events))
        for exact in (False, True)
    ]
    np.testing.assert_allclose(bulk.requests.finish_ms, single.requests.finish_ms)
    check_conservation(bulk, trace)
    assert (bulk.requests.status == RequestStatus.COMPLETED).all()
    return bulk


@IN_LOCK_STEP
@pytest.mark.parametrize("detect_ms", [0.0, 100.0])
def test_all_ranks_are_lost_and_one_worker_replaces_them(
    in_lock_step: bool, detect_ms: float
) -> None:
    crash = Crash(at_ms=42.0, target=FIRST, detect_ms=detect_ms, replacement=Replacement())
    result = run(cluster_of(in_lock_step=in_lock_step), [20, 20, 20, 20], crash)
    lost_ms = 42.0 + detect_ms
    assert result.workers.ended_ms[:2].tolist() == [lost_ms] * 2
    assert np.isnan(result.workers.ended_ms[2:]).all() and len(result.workers) == 6
    assert result.requests.migrations.tolist() == [1, 1, 0, 0]
    # Seven tokens each by 42 ms (10, 15 ... 40), whenever that is noticed.
    assert (result.requests.finish_ms[:2] >= lost_ms + 10.0 + 12 * 5.0).all()
    if in_lock_step and detect_ms:
        assert result.lock_step is not None and result.lock_step.rank_steps > 2 * 7


@IN_LOCK_STEP
def test_all_ranks_are_slow(in_lock_step: bool) -> None:
    slow = Slow(at_ms=22.0, target=FIRST, factor=3.0, for_ms=40.0)
    log = run(cluster_of(in_lock_step=in_lock_step), [10, 10, 10, 10], slow).requests
    # Tokens at 10, 15, 20, 25, then 40, 55, 70, and every 5 ms again.
    assert log.finish_ms.tolist() == [85.0, 85.0, 55.0, 55.0]


@IN_LOCK_STEP
def test_an_update_counts_workers_not_ranks(in_lock_step: bool) -> None:
    cluster = cluster_of(in_lock_step=in_lock_step, workers=4)
    update = RollingUpdate(at_ms=10.0, pools=("workers",), limits=RollingLimits(1, 0))
    result = run(cluster, [150] * 8, update, every_ms=1000.0)
    generations = result.workers.generation
    assert generations is not None and generations.tolist() == [0] * 8 + [1] * 8
    assert not result.requests.migrations.any()
