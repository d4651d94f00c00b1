"""What a cluster may be made of, and who is who in it."""

from dataclasses import replace

import numpy as np
import pytest
from probing import Ask, trace_of

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.router.workers import WorkerCard
from dynosim.timing.formulas import FixedModel

ENGINE = EngineSpec(num_gpu_blocks=101, max_model_len=80, block_size=4)
POOL = PoolSpec(engine=ENGINE, times=FixedModel(10.0, 5.0), workers=2)
LARGE = PoolSpec(
    name="large",
    engine=replace(ENGINE, num_gpu_blocks=201, max_num_batched_tokens=64, async_scheduling=True),
    times=FixedModel(20.0, 2.5),
    workers=1,
    gpus_per_worker=4,
    device="cpu",
)


class Outside(FixedModel):
    """Requests spend 4 ms before the engine."""

    ingress_ms = 4.0


def test_workers_are_numbered_through_the_pools() -> None:
    cluster = ClusterSpec(pools=(POOL, replace(POOL, name="none", workers=0), LARGE))
    assert cluster.num_workers == 3
    names = [(worker_id, pool.name) for worker_id, pool in cluster.workers()]
    assert names == [(0, "workers"), (1, "workers"), (2, "large")]
    assert cluster.cards() == [
        WorkerCard(0, 4, total_kv_blocks=100, max_num_batched_tokens=8192),
        WorkerCard(1, 4, total_kv_blocks=100, max_num_batched_tokens=8192),
        WorkerCard(2, 4, total_kv_blocks=200, max_num_batched_tokens=64, device="cpu"),
    ]


@pytest.mark.parametrize("mode", ["round-robin", "kv"])
@pytest.mark.parametrize("exact", [False, True])
def test_each_pool_has_engines_and_step_times_of_its_own(exact: bool, mode: str) -> None:
    cluster = ClusterSpec(
        pools=(POOL, LARGE), routing=RoutingSpec(RouterSpec(4, mode=mode), use_kv_events=True)
    )
    asks = [Ask(0.1 * k, (k,), 0, output_tokens=3) for k in range(3)]
    result = simulate(trace_of(asks, 4), cluster, RunOptions(exact_stepping=exact))
    log = result.requests
    assert sorted(log.worker_id.tolist()) == [0, 1, 2]
    service_ms = np.where(log.worker_id < 2, 10.0 + 2 * 5.0, 20.0 + 2 * 2.5)
    np.testing.assert_allclose(log.finish_ms - log.dispatch_ms, service_ms)


def test_the_default_routing_goes_round_and_options_end_a_run() -> None:
    asks = [Ask(4.0 * k, (k,), 0, output_tokens=3) for k in range(4)]
    trace, cluster = trace_of(asks, 4), ClusterSpec(pools=(POOL,))
    assert simulate(trace, cluster).requests.worker_id.tolist() == [0, 1, 0, 1]
    assert simulate(trace, cluster, RunOptions(until_ms=12.5)).end_ms == 12.5
    alone = simulate(trace, cluster, RunOptions(concurrency=1)).requests
    np.testing.assert_allclose(alone.arrival_ms, [0.0, 20.0, 40.0, 60.0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"engine": replace(ENGINE, block_size=8)}, "engine.block_size: 4 in pool workers, 8 in"),
        ({"engine": replace(ENGINE, max_model_len=81)}, "engine.max_model_len: 80 in pool workers"),
        ({"engine": replace(ENGINE, enable_prefix_caching=False)}, "engine.enable_prefix_caching"),
        ({"times": Outside(10.0, 5.0)}, "times.ingress_ms: 0.0 in pool workers, 4.0 in pool other"),
    ],
)
def test_pools_agree_in_what_a_request_is(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ClusterSpec(pools=(POOL, replace(POOL, name="other", **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("pools", [(), (replace(POOL, workers=0),)])
def test_somebody_must_work(pools: tuple[PoolSpec, ...]) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.workers: at least 1 is needed, got 0"):
        ClusterSpec(pools=pools)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("workers", -1, "at least 0"),
        ("gpus_per_worker", -1, "at least 0"),
        ("startup_ms", float("nan"), "at least 0"),
        ("step_time_scale", 0.0, "more than 0"),
    ],
)
def test_a_pool_counts_from_zero(key: str, value: float, bound: str) -> None:
    with pytest.raises(ConfigError, match=f"pool workers: {key}: expected {bound}, got {value}"):
        replace(POOL, **{key: value})  # type: ignore[arg-type]


def test_every_pools_engine_must_hold_the_models_length() -> None:
    small = replace(POOL, name="small", engine=replace(ENGINE, num_gpu_blocks=20))
    with pytest.raises(InfeasibleError, match="19 usable blocks of 4 hold 76 tokens"):
        simulate(trace_of([Ask(0.0, (1,), 0)], 4), ClusterSpec(pools=(POOL, small)))


def test_an_index_bounded_by_capacity_needs_one_capacity() -> None:
    settings = RouterSpec(4, mode="kv")
    routing = RoutingSpec(settings, use_kv_events=False, approximate_cache_policy="lru")
    trace = trace_of([Ask(0.0, (1,), 0)], 4)
    simulate(trace, ClusterSpec(pools=(POOL,), routing=routing))
    with pytest.raises(ConfigError, match=r"approximate_cache_policy: lru .* \['100', '200'\]"):
        simulate(trace, ClusterSpec(pools=(POOL, LARGE), routing=routing))
