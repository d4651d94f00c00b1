"""A worker joins at 60 s, one drains at 120 s, one fails at 180 s: what a scenario looks like."""

import numpy as np
import pytest
from clusters import equal_workers

from dynosim.cluster import RunOptions, simulate
from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.engine.spec import EngineSpec
from dynosim.metrics import check_conservation, summarize
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel

SPEC = EngineSpec(num_gpu_blocks=2000, max_model_len=4096)
TIMES = LinearModel(
    base_ms=8.0, per_prefill_token_ms=0.05, per_decode_ms=0.2, per_context_token_ms=0.0005
)


def scenario(control: ControlPlane) -> ProcessGenerator:
    yield control.env.timeout(60_000)
    control.launch()
    yield control.env.timeout(60_000)
    control.drain(0)
    yield control.env.timeout(60_000)
    control.fail(1)


def conversations(count: int = 900, span_ms: float = 240_000) -> Trace:
    """Prompts of 512 tokens, whose first half is one of eight texts; 150 tokens are asked for."""
    rng = np.random.default_rng(3)
    own = np.arange(100, 100 + count)
    ids = np.stack([rng.integers(0, 8, count), own], axis=1)
    return Trace(
        arrival_ms=np.sort(rng.uniform(0, span_ms, count)),
        input_tokens=np.full(count, 512),
        output_tokens=np.full(count, 150),
        hash_ids=ids.ravel(),
        hash_offsets=np.arange(0, 2 * count + 1, 2),
        trace_block_size=256,
    )


def run(trace: Trace, *, exact: bool = False) -> RunResult:
    routing = RoutingSpec(RouterSpec(SPEC.block_size, mode="kv"))
    cluster = equal_workers(SPEC, TIMES, num_workers=2, routing=routing)
    return simulate(trace, cluster, RunOptions(exact_stepping=exact), processes=[scenario])


@pytest.fixture(scope="module")
def trace() -> Trace:
    return conversations()


@pytest.fixture(scope="module")
def result(trace: Trace) -> RunResult:
    return run(trace)


def test_every_request_completes_though_its_worker_failed(result: RunResult, trace: Trace) -> None:
    check_conservation(result, trace)
    log = result.requests
    assert (log.status == RequestStatus.COMPLETED).all()
    moved = log.migrations > 0
    assert 0 < moved.sum() < 40
    assert (log.arrival_ms[moved] < 180_000).all() and (log.finish_ms[moved] > 180_000).all()
    assert set(log.worker_id[moved]) == {2}  # the only one that is left
    assert len(result.stalled_gaps_ms) > 0


def test_requests_go_only_to_workers_that_take_them(result: RunResult) -> None:
    log = result.requests
    placed = [
        log.dispatch_ms[(log.worker_id == worker) & (log.migrations == 0)] for worker in range(3)
    ]
    assert placed[0].max() < 120_000 and placed[1].max() < 180_000 and placed[2].min() >= 60_000
    assert min(map(len, placed)) > 50


def test_lives_and_gpu_hours_are_those_of_the_scenario(result: RunResult, trace: Trace) -> None:
    lives = result.workers
    np.testing.assert_array_equal(lives.launched_ms, [0, 0, 60_000])
    last_on_the_drained = result.requests.finish_ms[result.requests.worker_id == 0].max()
    np.testing.assert_array_equal(lives.ended_ms, [last_on_the_drained, 180_000, np.nan])
    assert last_on_the_drained > 120_000
    held_ms = last_on_the_drained + 180_000 + result.end_ms - 60_000
    report = summarize(result, TIMES, sla=None, wall_time_ms=0.0)
    assert report["gpu_hours"] == pytest.approx(held_ms / 3.6e6, rel=1e-12)
    assert report["num_workers"] == 3


def test_single_steps_tell_the_same(result: RunResult, trace: Trace) -> None:
    single = run(trace, exact=True).requests
    np.testing.assert_allclose(single.finish_ms, result.requests.finish_ms, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(single.worker_id, result.requests.worker_id)
    np.testing.assert_array_equal(single.migrations, result.requests.migrations)


def test_a_held_load_waits_outside_and_its_wait_counts() -> None:
    def hold(control: ControlPlane) -> ProcessGenerator:
        control.hold_load()
        yield control.env.timeout(5_000)
        assert control.num_requests == (0, 0) and control.num_ended == 0
        control.release_load()

    trace = conversations(40, 10_000.0)
    result = simulate(trace, equal_workers(SPEC, TIMES, num_workers=2), processes=[hold])
    log = result.requests
    held = trace.arrival_ms < 5_000
    assert held.any() and (~held).any()
    np.testing.assert_array_equal(log.arrival_ms, trace.arrival_ms)
    np.testing.assert_array_equal(log.dispatch_ms[held], 5_000)
    np.testing.assert_array_equal(log.dispatch_ms[~held], trace.arrival_ms[~held])


@pytest.mark.parametrize("wrong", ["drain", "fail"])
def test_what_cannot_happen_to_a_worker_is_refused_and_changes_nothing(wrong: str) -> None:
    def act(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(1_000)
        control.fail(0)
        before = control.workers
        with pytest.raises(ValueError, match="worker 0 is failed: not"):
            getattr(control, wrong)(0)
        with pytest.raises(ValueError, match="no worker 7; there are 2"):
            getattr(control, wrong)(7)
        with pytest.raises(ValueError, match="no pool 'prefill'; there are 'workers'"):
            control.launch("prefill")
        assert control.workers == before

    simulate(conversations(20, 4_000.0), equal_workers(SPEC, TIMES, num_workers=2), processes=[act])


def test_requests_without_a_worker_fail_and_arrivals_are_refused() -> None:
    def act(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(4_000)
        control.fail(0)

    trace = conversations(40, 8_000.0)
    result = simulate(trace, equal_workers(SPEC, TIMES), processes=[act])
    check_conservation(result, trace)
    log = result.requests
    late = trace.arrival_ms > 4_000
    assert set(log.status[late]) == {RequestStatus.REJECTED}
    assert set(log.status[~late]) == {RequestStatus.COMPLETED, RequestStatus.FAILED}
    failed = np.flatnonzero(log.status == RequestStatus.FAILED)
    assert all("no worker" in log.errors[int(row)] for row in failed)
