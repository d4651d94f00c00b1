"""Where there is one worker nobody chooses: the run and its report are those of a router."""

import random
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from clusters import equal_workers, run_twin
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_spec, random_timing, random_trace
from test_router_laws import CROWDED_TIMING, crowded_spec, crowded_trace

from dynosim.cluster.control import ControlPlane
from dynosim.cluster.lone_placer import LonePlacer
from dynosim.cluster.router_placer import RouterPlacer
from dynosim.cluster.routing import make_placer
from dynosim.engine.spec import EngineSpec
from dynosim.records import RunResult, Trace
from dynosim.router.busy import BusyThresholds
from dynosim.router.knobs import AffinitySpec, CostSpec, RouterSpec
from dynosim.router.spec import DelaySpec, RoutingSpec
from dynosim.timing.formulas import FixedModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.prefill_estimate import StepTimeEstimator
from dynosim.workload.extents import prefix_extents

SEEDS = st.integers(0, 2**32 - 1)


def idle(control: ControlPlane) -> Iterator[Any]:
    """A process that does nothing; for all that is known beforehand, it might launch workers."""
    yield control.env.timeout(1.0)


def both_ways(trace: Trace, engine: EngineSpec, timing: StepTimeModel) -> list[RunResult]:
    routing = RoutingSpec(RouterSpec(engine.block_size, mode="kv"))
    return [
        run_twin(trace, engine=engine, timing=timing, routing=routing, processes=processes)
        for processes in ((), (idle,))
    ]


def assert_equal(ours: Any, theirs: Any) -> None:
    """Every field, to the last bit."""
    for entry in fields(ours):
        one, other = getattr(ours, entry.name), getattr(theirs, entry.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=entry.name)
        else:
            assert one == other, entry.name


def assert_same_run(lone: RunResult, routed: RunResult) -> None:
    assert lone.routing is not None and routed.routing is not None
    assert lone.num_scheduling_events == routed.num_scheduling_events
    for part in ("requests", "steps", "routing"):
        assert_equal(getattr(lone, part), getattr(routed, part))


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_one_worker_serves_alike_with_a_router_and_without(seed: int) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng)
    engine = replace(random_spec(rng, trace), enable_prefix_caching=rng.random() < 0.9)
    assert_same_run(*both_ways(trace, engine, random_timing(rng, engine)))


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_and_where_runs_under_way_evict_what_is_asked_for(seed: int) -> None:
    rng = random.Random(seed)
    trace = crowded_trace(rng)
    assert_same_run(*both_ways(trace, crowded_spec(rng, trace), CROWDED_TIMING))


def placer_of(settings: RouterSpec, workers: int = 1, **routing: Any) -> object:
    engine = EngineSpec(num_gpu_blocks=100, max_model_len=400, block_size=16)
    trace = crowded_trace(random.Random(1))
    cluster = equal_workers(
        engine,
        CROWDED_TIMING,
        num_workers=workers,
        routing=RoutingSpec(settings, **routing),
    )
    assert cluster.routing is not None
    extents = prefix_extents(trace, 16)
    return make_placer(cluster.routing, trace, extents, cluster.cards(), may_change=False)


def test_nothing_is_chosen_only_where_nothing_could_be() -> None:
    plain = RouterSpec(16, mode="kv")
    assert isinstance(placer_of(plain), LonePlacer)
    assert isinstance(placer_of(plain, workers=2), RouterPlacer)


@pytest.mark.parametrize(
    ("settings", "routing"),
    [
        ({"affinity": AffinitySpec(100.0)}, {}),
        ({"busy": BusyThresholds(active_prefill_tokens_threshold=10)}, {}),
        ({"cost": CostSpec(temperature=0.5)}, {}),
        ({}, {"frontends": 2}),
        ({}, {"use_kv_events": False}),
        ({}, {"index": "radix"}),
        ({}, {"events": DelaySpec(delay_ms=1.0)}),
        ({}, {"records_events": True}),
        ({}, {"estimator": StepTimeEstimator(FixedModel(1.0, 1.0), 100)}),
    ],
)
def test_what_may_refuse_a_request_or_know_less_needs_a_router(
    settings: dict[str, Any], routing: dict[str, Any]
) -> None:
    assert isinstance(placer_of(RouterSpec(16, mode="kv", **settings), **routing), RouterPlacer)
