"""The frontend's stages: nothing but later arrivals, each by its own time."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
from clusters import equal_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_same, assert_same_requests
from strategies import random_routing, random_spec, random_timing, random_trace, with_sessions
from test_disagg_laws import clusters, traces

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.metrics_recorder import MetricsRecorder
from dynosim.metrics import check_conservation
from dynosim.planner import frontend_metrics as names
from dynosim.planner.metric_series import MetricSeries
from dynosim.records import RunResult, Trace
from dynosim.router.frontend import FrontendSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec

SEEDS = st.integers(0, 2**32 - 1)
LABELS = FrontendLabels("test", "m")
SAME_MS = 1e-6


def random_frontend(rng: random.Random) -> FrontendSpec:
    """Round times and others; some stages take none."""
    return FrontendSpec(
        preprocess_ms=rng.choice([0.0, 5.0, rng.uniform(0, 50)]),
        preprocess_us_per_token=rng.choice([0.0, 100.0, rng.uniform(0, 2000)]),
        route_ms=rng.choice([0.0, 5.0, rng.uniform(0, 20)]),
        dispatch_ms=rng.choice([0.0, rng.uniform(0, 20)]),
        startup_ms=rng.choice([0.0, 0.0, 30.0]),
    )


def drawn(seed: int, *, has_sessions: bool) -> tuple[Trace, ClusterSpec, RunOptions]:
    rng = random.Random(seed)
    trace = random_trace(rng)
    if has_sessions and rng.random() < 0.5:
        trace = with_sessions(rng, trace)
    spec = random_spec(rng, trace)
    cluster = equal_workers(
        spec,
        random_timing(rng, spec),
        num_workers=rng.randint(1, 3),
        routing=random_routing(rng, spec),
    )
    options: dict[str, Any] = {"concurrency": rng.choice([None, 2]) if has_sessions else None}
    return trace, replace(cluster, frontend=random_frontend(rng)), RunOptions(**options)


def delays_ms(trace: Trace, spec: FrontendSpec) -> Any:
    per_token_ms = spec.preprocess_us_per_token / 1e3
    fixed_ms = spec.preprocess_ms + spec.route_ms + spec.dispatch_ms
    return fixed_ms + per_token_ms * trace.input_tokens


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_stages_are_as_if_requests_came_later(seed: int) -> None:
    """Where timestamps alone bring requests: the trace with each one moved gives the same run."""
    trace, cluster, options = drawn(seed, has_sessions=False)
    assert cluster.frontend is not None
    result = simulate(trace, cluster, options)
    begun_ms = np.maximum(trace.arrival_ms, cluster.frontend.startup_ms)
    visible_ms = begun_ms + delays_ms(trace, cluster.frontend)
    order = np.argsort(visible_ms, kind="stable")
    moved = trace.at(visible_ms).take(order)
    other = simulate(moved, replace(cluster, frontend=None), options)
    np.testing.assert_array_equal(result.requests.arrival_ms, trace.arrival_ms)
    for name in ("dispatch_ms", "scheduled_ms", "first_token_ms", "finish_ms", "worker_id"):
        ours, theirs = getattr(result.requests, name)[order], getattr(other.requests, name)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME_MS, err_msg=name)
    assert result.steps.num_steps.sum() == other.steps.num_steps.sum()
    check_conservation(result, trace)


def watched(
    trace: Trace, cluster: ClusterSpec, options: RunOptions
) -> tuple[RunResult, MetricSeries]:
    recorder = MetricsRecorder(17.3, LABELS)
    result = simulate(trace, cluster, options, processes=[recorder])
    return result, recorder.series


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_the_same_in_single_steps(seed: int) -> None:
    trace, cluster, options = drawn(seed, has_sessions=True)
    bulk, seen = watched(trace, cluster, options)
    single, as_seen = watched(trace, cluster, replace(options, exact_stepping=True))
    assert_same(bulk, single)
    assert seen.at_ms == as_seen.at_ms
    for name in (names.STAGE_REQUESTS, names.ACTIVE_REQUESTS):
        for sample in (one for one in seen.values if one.startswith(name)):
            assert seen.values[sample] == as_seen.values[sample]


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_every_request_is_in_its_stage(seed: int) -> None:
    """Also of turns and in a closed loop; counted from the times at which requests came."""
    trace, cluster, options = drawn(seed, has_sessions=True)
    spec = cluster.frontend
    assert spec is not None
    result, series = watched(trace, cluster, options)
    log, ingress_ms = result.requests, cluster.pools[0].times.ingress_ms
    begun_ms = np.maximum(log.arrival_ms, spec.startup_ms)
    per_token_ms = spec.preprocess_us_per_token / 1e3
    routed_ms = begun_ms + spec.preprocess_ms + per_token_ms * trace.input_tokens
    for scrape in series.scrapes():
        now_ms = scrape.at_ms - ingress_ms
        is_near = np.abs(np.stack((begun_ms, routed_ms)) - now_ms).min() < SAME_MS
        if is_near:
            continue
        preprocessed = int(((begun_ms <= now_ms) & (now_ms < routed_ms)).sum())
        stage = {"stage": "preprocess", "phase": "", "dynamo_namespace": "test"}
        assert scrape.values[names.sample_name(names.STAGE_REQUESTS, stage)] == preprocessed
        stages = [v for name, v in scrape.values.items() if name.startswith(names.STAGE_REQUESTS)]
        active = scrape.values[names.sample_name(names.ACTIVE_REQUESTS, LABELS.common)]
        assert active == sum(stages)
        ended = sum(v for name, v in scrape.values.items() if name.startswith(names.REQUESTS))
        assert active + ended == int((begun_ms <= now_ms).sum())


@settings(max_examples=30, deadline=None)
@given(traces(), clusters(), st.sampled_from([None, 3]), st.floats(0, 60))
def test_constant_times_are_what_a_hop_is(
    trace: Trace, cluster: ClusterSpec, concurrency: int | None, delay_ms: float
) -> None:
    """Also between pools, and where ends of requests bring others."""
    options = RunOptions(concurrency=concurrency)
    routing = cluster.routing or RoutingSpec(RouterSpec(4, mode="round-robin"))
    spec = FrontendSpec(preprocess_ms=delay_ms / 2, route_ms=delay_ms / 3, dispatch_ms=delay_ms / 6)
    staged = replace(cluster, routing=routing, frontend=spec)
    hopping = replace(cluster, routing=replace(routing, hop_ms=delay_ms))
    ours, theirs = (simulate(trace, one, options) for one in (staged, hopping))
    assert_same_requests(ours.requests, theirs.requests)
    check_conservation(ours, trace)
