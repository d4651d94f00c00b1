"""What a log tells of the KV capacity: from wrong starts to the true one, or that it tells none."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from recorded_runs import SETUP, TRUE, engines, workload

from dynosim.fit.alternatives import fit_recorded
from dynosim.fit.capacity import FoundCapacity, Start, fit_with_capacity, start_of
from dynosim.fit.deployment import deployment_of
from dynosim.fit.measurements import Measurements
from dynosim.fit.needed import longest_blocks, needed_blocks
from dynosim.fit.prior import Prior
from dynosim.fit.replay import Engines, replay
from dynosim.records import Trace
from dynosim.timing.fitted import Fit, FittedModel

KNEE = 2.5
TRUTH = Fit(parameters=TRUE, knee=KNEE)
OFF = replace(TRUTH, parameters=replace(TRUE, overhead_ms=2.6, weights_ms=7.0))
PRIOR = Prior(OFF, {"overhead_ms": 1.0, "weights_ms": 1.0}, "test")
TRUE_BLOCKS = 700


def log_of(trace: Trace, blocks: int, *, jitter_ms: float = 0.0, **setup: Any) -> Measurements:
    rng = np.random.default_rng(3)
    moved = np.maximum.accumulate(trace.arrival_ms + rng.uniform(0, jitter_ms, len(trace)))
    is_async = setup.get("is_async", False)
    served_by = engines(num_gpu_blocks=blocks, is_async=is_async)
    run = replay(trace, served_by, FittedModel(TRUTH), "engine", arrival_ms=moved)
    return Measurements(
        source="log",
        setup={name: value for name, value in setup.items() if name != "is_async"},
        clock="engine",
        arrival_ms=trace.arrival_ms,
        input_tokens=trace.input_tokens,
        output_tokens=trace.output_tokens,
        ttft_ms=run.ttft_ms,
        decode_ms=run.decode_ms,
        block_tokens=0,
        hashes=((),) * len(trace),
    )


def unhashed(trace: Trace) -> Trace:
    nothing = np.zeros(0, np.int64)
    return replace(trace, hash_ids=nothing, hash_offsets=np.zeros(len(trace) + 1, np.int64))


TIGHT = unhashed(workload(60, rate_rps=12.0))


def with_blocks(blocks: int) -> Engines:
    found = engines(num_gpu_blocks=blocks)
    length = min(2048, (blocks - 1) * 16)
    return replace(found, engine=replace(found.engine, max_model_len=length))


@pytest.mark.parametrize(
    "factor",
    [pytest.param(0.5, marks=pytest.mark.live), 2.0, pytest.param(10.0, marks=pytest.mark.live)],
)
def test_a_full_engines_capacity_is_found_from_any_wrong_one(factor: float) -> None:
    measured = log_of(TIGHT, TRUE_BLOCKS, jitter_ms=5.0)
    start = Start(round(factor * TRUE_BLOCKS), "blind")
    found, fitted, capacity = fit_with_capacity(measured, PRIOR, with_blocks, start, count=60)
    assert capacity.is_told
    assert capacity.blocks == pytest.approx(TRUE_BLOCKS, rel=0.01)
    assert found == with_blocks(capacity.blocks)
    decode_ms = fitted.predicted.decode_ms.sum() / measured.decode_ms.sum()
    assert decode_ms == pytest.approx(1.0, abs=0.01)
    assert "explain the log clearly better than" in capacity.note
    floor_ms = fitted.fit.parameters.overhead_ms + fitted.fit.parameters.weights_ms
    assert floor_ms == pytest.approx(TRUE.overhead_ms + TRUE.weights_ms, rel=0.02)


@pytest.mark.live
def test_a_stated_capacity_that_explains_the_log_is_obeyed_one_that_does_not_is_not() -> None:
    measured = log_of(TIGHT, TRUE_BLOCKS)
    for blocks, is_kept in ((TRUE_BLOCKS, True), (4 * TRUE_BLOCKS, False)):
        start = Start(blocks, "given")
        capacity = fit_with_capacity(measured, PRIOR, with_blocks, start, count=60)[2]
        assert (capacity.blocks == blocks) is is_kept
        assert capacity.blocks == pytest.approx(TRUE_BLOCKS, rel=0.01)


def test_an_engine_that_was_never_full_tells_only_what_it_had_at_least() -> None:
    measured = log_of(unhashed(workload(40)), 20_000)
    needed = needed_blocks(measured, 16)
    capacity = fit_with_capacity(measured, PRIOR, with_blocks, Start(5000, "blind"), count=40)[2]
    assert capacity == FoundCapacity(Start(5000, "blind"), 5000, is_told=False, at_least=needed)
    assert f"not told by this log: at least about {needed} blocks" in capacity.note


def test_what_a_log_needs_is_what_its_requests_held_at_its_fullest_moment() -> None:
    trace = unhashed(workload(40, rate_rps=30.0))
    full = log_of(trace, TRUE_BLOCKS)
    assert needed_blocks(full, 16) == pytest.approx(TRUE_BLOCKS, rel=0.05)
    assert needed_blocks(full, 16, num_ranks=2) == pytest.approx(TRUE_BLOCKS / 2, rel=0.05)
    one = full.first(1)
    tokens = int(one.input_tokens[0] + one.output_tokens[0])
    assert needed_blocks(one, 16) == longest_blocks(one, 16) == -(-tokens // 16) + 2


def test_blocks_that_requests_share_are_needed_once() -> None:
    alone = log_of(unhashed(workload(40, rate_rps=30.0)), 20_000)
    sharing = replace(alone, block_tokens=16, hashes=((1, 2, 3),) * 40)
    most = max(
        int(((alone.arrival_ms + alone.ttft_ms <= t) & (alone.end_ms >= t)).sum())
        for t in alone.end_ms
    )
    saved = needed_blocks(alone, 16) - needed_blocks(sharing, 16)
    assert 0 < saved <= 3 * (most - 1)


def test_a_start_is_stated_or_blind_or_needed_and_never_endless() -> None:
    measured = log_of(unhashed(workload(20)), 20_000)
    names = {"model": "Qwen/Qwen3-8B", "hardware": "rtx_4090"}
    stated = deployment_of(names | {"num_gpu_blocks": 77})
    assert start_of(stated, measured) == Start(77, "given")
    blind = deployment_of(names)
    assert start_of(blind, measured) == Start(blind.blind_blocks() or 0, "blind")
    needed = needed_blocks(measured, 16)
    unknown = start_of(deployment_of({}), measured)
    assert (unknown.blocks, unknown.source) == (needed, "needed")
    assert unknown.warning is not None and f"the {needed:,} blocks" in unknown.warning


@pytest.mark.parametrize("was_async", [pytest.param(False, marks=pytest.mark.live), True])
def test_the_versions_loop_is_taken_unless_the_log_says_otherwise_by_a_margin(
    was_async: bool,
) -> None:
    trace = unhashed(workload(60, rate_rps=3.0))
    for version, default in (("0.19.0", True), ("0.11.0", False)):
        setup = SETUP | {"vllm_version": version}
        measured = log_of(trace, 20_000, is_async=was_async, **setup)
        deployment = deployment_of(measured.setup)
        held = Prior(TRUTH, {"overhead_ms": 0.2}, "test")
        start = Start(20_000, "given")
        found = fit_recorded(measured, held, deployment, start, count=60)
        if default == was_async:
            assert found.chosen.is_async is default and found.other is None
            assert f"the default of vLLM {version}, explains the log" in found.reason
            continue
        # One step of the way: whether it shows depends on the load; if it does, by the margin.
        gain = abs((found.other or found.chosen).own.ks - found.chosen.own.ks)
        assert (found.chosen.is_async is was_async) is (found.other is not None and gain > 0.24)
