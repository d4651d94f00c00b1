"""A run that is ended early is one that would not have been carried, and few others go on."""

import numpy as np
import pytest

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.engine.spec import EngineSpec
from dynosim.metrics.carried import Bounds, SlaTarget, judge_load
from dynosim.metrics.hopeless import HopelessLoad
from dynosim.records import Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel
from dynosim.workload.scaling import start_sessions_faster

ENGINE = EngineSpec(block_size=16, num_gpu_blocks=4000, max_num_seqs=16, max_model_len=4096)
TIMES = LinearModel(
    base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.2, per_context_token_ms=0.0
)
CLUSTER = ClusterSpec(
    pools=(PoolSpec(engine=ENGINE, times=TIMES, workers=2),),
    routing=RoutingSpec(RouterSpec(16, mode="least-loaded")),
)


def trace_of(seed: int, num_requests: int = 600, *, has_turns: bool) -> Trace:
    rng = np.random.default_rng(seed)
    previous = None
    if has_turns:
        previous = np.where(np.arange(num_requests) % 3 == 2, np.arange(num_requests) - 1, -1)
    return Trace(
        arrival_ms=np.cumsum(rng.exponential(100.0, num_requests)),
        input_tokens=rng.integers(20, 2000, num_requests),
        output_tokens=rng.integers(1, 120, num_requests),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(num_requests + 1, np.int64),
        trace_block_size=512,
        previous_turn=previous,
        delay_ms=None if previous is None else np.where(previous >= 0, 500.0, 0.0),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("load", [0.3, 1.0, 1.3, 2.0, 4.0])
@pytest.mark.parametrize(
    "bounds", [Bounds(ttft_ms=400.0), Bounds(tpot_ms=13.0), Bounds(500.0, 15.0, 3000.0)]
)
def test_what_is_ended_early_would_not_have_been_carried(
    seed: int, load: float, bounds: Bounds
) -> None:
    target = SlaTarget(bounds, 0.95)
    trace = start_sessions_faster(trace_of(seed, has_turns=seed % 2 == 0), load)
    whole = judge_load(simulate(trace, CLUSTER, RunOptions()).requests, target)
    watch = HopelessLoad(trace, target)
    result = simulate(trace, CLUSTER, RunOptions(), watch=watch)
    if watch.stopped_ms is None:
        assert judge_load(result.requests, target) == whole
    else:
        assert not whole.is_carried
        assert result.end_ms == watch.stopped_ms


def test_an_overloaded_run_ends_early() -> None:
    trace = start_sessions_faster(trace_of(1, has_turns=False), 8.0)
    full = simulate(trace, CLUSTER, RunOptions())
    watch = HopelessLoad(trace, SlaTarget(Bounds(ttft_ms=400.0)))
    ended = simulate(trace, CLUSTER, RunOptions(), watch=watch)
    assert watch.stopped_ms is not None and watch.stopped_ms < trace.arrival_ms[-1]
    assert ended.num_scheduling_events < full.num_scheduling_events / 2


def test_it_ends_at_the_same_time_every_time() -> None:
    trace = start_sessions_faster(trace_of(2, has_turns=True), 4.0)
    ends = []
    for _ in range(2):
        watch = HopelessLoad(trace, SlaTarget(Bounds(ttft_ms=400.0)))
        simulate(trace, CLUSTER, RunOptions(), watch=watch)
        ends.append(watch.stopped_ms)
    assert ends[0] is not None and ends[0] == ends[1]
