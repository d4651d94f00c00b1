"""Rolling updates and canaries of simulated clusters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from clusters import equal_workers
from disagg_support import pools
from probing import Ask, trace_of

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.cluster.scenario import ScenarioEvent, play
from dynosim.cluster.spec import without_mixing
from dynosim.cluster.updates import Canary, RollingUpdate
from dynosim.engine.spec import EngineSpec
from dynosim.metrics import check_conservation
from dynosim.planner.rolling import RollingLimits
from dynosim.records import IntArray, RequestStatus, RunResult, Trace
from dynosim.timing.formulas import LinearModel
from dynosim.workers.lifecycle import Phase

ENGINE = EngineSpec(num_gpu_blocks=400, max_model_len=2048)
TIMES = LinearModel(
    base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.2, per_context_token_ms=0.0005
)


def steady(span_s: float = 120.0, per_s: float = 4.0) -> Trace:
    count = int(span_s * per_s)
    asks = [
        Ask(1e3 * i / per_s, tuple(range(40 * i, 40 * i + 8)), 0, last_tokens=16, output_tokens=60)
        for i in range(count)
    ]
    return trace_of(asks, 16)


def generations(result: RunResult) -> IntArray:
    assert result.workers.generation is not None
    return result.workers.generation


class Watcher:
    """Counts those that serve, and those that hold GPUs, every 100 ms."""

    def __init__(self, pool: str = "workers") -> None:
        self._pool = pool
        self.ready: list[int] = []
        self.present: list[int] = []

    def __call__(self, control: ControlPlane) -> ProcessGenerator:
        while True:
            yield control.env.timeout(100.0)
            mine = [one for one in control.workers if one.pool == self._pool]
            phases = [one.phase for one in mine]
            self.ready.append(phases.count(Phase.READY))
            over = phases.count(Phase.GONE) + phases.count(Phase.FAILED)
            self.present.append(len(phases) - over)


def run(cluster: ClusterSpec, events: Sequence[ScenarioEvent], *watchers: Watcher) -> RunResult:
    trace = steady()
    pools = tuple(replace(pool, startup_ms=3000.0) for pool in cluster.pools)
    cluster = replace(cluster, pools=pools)
    result = simulate(trace, cluster, RunOptions(), processes=[*play(events), *watchers])
    check_conservation(result, trace)
    assert (result.requests.status == RequestStatus.COMPLETED).all()
    assert not result.requests.migrations.any()
    return result


@pytest.mark.parametrize(
    ("workers", "limits", "fewest", "most"),
    [
        (4, RollingLimits(1, 0), 4, 5),
        (8, RollingLimits(0, 2), 6, 8),
        (10, RollingLimits(0.25, 0.25), 8, 13),
    ],
)
def test_workers_ready_and_present_stay_within_surge_and_unavailable(
    workers: int, limits: RollingLimits, fewest: int, most: int
) -> None:
    watcher = Watcher()
    cluster = equal_workers(ENGINE, TIMES, num_workers=workers)
    update = RollingUpdate(at_ms=5000.0, pools=("workers",), limits=limits)
    result = run(cluster, [update], watcher)
    assert (min(watcher.ready), max(watcher.present)) == (fewest, most)
    assert watcher.ready[-1] == watcher.present[-1] == workers
    assert Counter(generations(result).tolist()) == {0: workers, 1: workers}


def test_a_part_of_the_workers_is_replaced_where_a_share_is_stated() -> None:
    cluster = equal_workers(ENGINE, TIMES, num_workers=10)
    limits = RollingLimits(1, 0)
    update = RollingUpdate(at_ms=5000.0, pools=("workers",), limits=limits, share=0.3)
    result = run(cluster, [update])
    ended = ~np.isnan(result.workers.ended_ms)
    assert Counter(generations(result)[~ended].tolist()) == {0: 7, 1: 3}


def pairs(result: RunResult) -> Counter[tuple[int, int]]:
    """Requests by the generations of their prefill and decode workers."""
    log = result.requests
    assert log.handoffs is not None
    generation = generations(result)
    ours, theirs = generation[log.handoffs.prefill_worker_id], generation[log.worker_id]
    return Counter(zip(ours.tolist(), theirs.tolist(), strict=True))


def test_generations_of_two_pools_mix_unless_they_are_kept_apart() -> None:
    cluster = pools(prefill=4, decode=2, engine=ENGINE, times=TIMES, gb_s=10.0)
    update = RollingUpdate(at_ms=5000.0, pools=("prefill", "decode"), limits=RollingLimits(1, 0))
    mixed = pairs(run(cluster, [update]))
    assert mixed[0, 1] + mixed[1, 0] > 0
    watchers = Watcher("prefill"), Watcher("decode")
    # Prompts take long, so that there is always one whose answer has no worker yet.
    slow = LinearModel(
        base_ms=5.0, per_prefill_token_ms=2.0, per_decode_ms=0.2, per_context_token_ms=0.0
    )
    cluster = replace(cluster, pools=tuple(replace(pool, times=slow) for pool in cluster.pools))
    apart = pairs(run(without_mixing(cluster), [update], *watchers))
    assert set(apart) == {(0, 0), (1, 1)} and min(apart.values()) > 40
    for watcher, wanted in zip(watchers, (4, 2), strict=True):
        assert (min(watcher.ready), max(watcher.present)) == (wanted, wanted + 1)
        assert watcher.present[-1] == wanted


def test_a_canary_gets_its_share_and_goes() -> None:
    cluster = without_mixing(equal_workers(ENGINE, TIMES, num_workers=4))
    canary = Canary(at_ms=10_000.0, share=0.1, counts={"workers": 1}, for_ms=60_000.0)
    result = run(cluster, [canary])
    log = result.requests
    on_new = generations(result)[log.worker_id] == 1
    while_there = (log.arrival_ms > 14_000) & (log.arrival_ms < 70_000)
    assert on_new[while_there].mean() == pytest.approx(0.1, abs=0.01)
    assert not on_new[~while_there].any()
    assert not np.isnan(result.workers.ended_ms[4])
