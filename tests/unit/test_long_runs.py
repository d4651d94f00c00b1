"""Runs of many requests: what they keep in memory, and what they tell while they go on."""

import gc
import importlib
import tracemalloc

import numpy as np
import pytest
from clusters import equal_workers, run_twin
from probing import Ask, trace_of

from dynosim.cluster import simulate
from dynosim.engine.block_pool import BlockPool
from dynosim.engine.spec import EngineSpec
from dynosim.records import RunResult, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel

ENGINE = EngineSpec(num_gpu_blocks=101, max_model_len=80, block_size=4)
TIMING = FixedModel(prefill_ms=10.0, decode_ms=5.0)


def steady_trace(num_requests: int) -> Trace:
    """A request every 12 ms; each prompt begins as one of twenty others do."""
    asks = [Ask(12.0 * i, (i % 20, 20 + i), 0, output_tokens=6) for i in range(num_requests)]
    return trace_of(asks, 4)


def run(trace: Trace, mode: str = "kv") -> RunResult:
    routing = RoutingSpec(RouterSpec(ENGINE.block_size, mode=mode))
    return run_twin(trace, engine=ENGINE, timing=TIMING, num_workers=3, routing=routing)


@pytest.mark.parametrize("mode", ["round-robin", "kv"])
def test_a_request_leaves_a_row_behind_and_no_objects(mode: str) -> None:
    """Each has two rows of 96 bytes, twice as they become columns, and some forty columns more."""
    run(steady_trace(50), mode)  # what is imported and kept once is there
    peaks = []
    for num_requests in (500, 2500):
        trace = steady_trace(num_requests)
        tracemalloc.start()
        result = run(trace, mode)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(result.steps.worker_id) <= 2 * num_requests
    assert (peaks[1] - peaks[0]) / 2000 < 850


def test_a_run_that_is_over_keeps_nothing_for_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        result = run(steady_trace(50))
        assert not [found for found in gc.get_objects() if isinstance(found, BlockPool)]
    finally:
        gc.enable()
    assert result.routing is not None


# ---- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part_s", [0.0, 1e9])
def test_a_run_is_the_same_in_however_many_parts(
    part_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With parts that always take too long each is one instant in the end."""
    trace = steady_trace(60)
    whole = run(trace)
    module = importlib.import_module("dynosim.cluster.simulate")
    monkeypatch.setattr(module, "PART_S", part_s)
    parted = run(trace)
    for name in ("start_ms", "duration_ms", "worker_id", "num_steps"):
        np.testing.assert_array_equal(getattr(parted.steps, name), getattr(whole.steps, name))
    np.testing.assert_array_equal(parted.requests.finish_ms, whole.requests.finish_ms)


def test_a_run_tells_how_many_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("dynosim.cluster.simulate")
    monkeypatch.setattr(module, "PART_S", 0.0)
    told: list[tuple[int, int]] = []
    cluster = equal_workers(ENGINE, TIMING)
    simulate(steady_trace(400), cluster, progress=lambda ended, of: told.append((ended, of)))
    assert told == sorted(told) and {of for _, of in told} == {400}
    assert len(told) > 20 and told[-1] == (400, 400)
