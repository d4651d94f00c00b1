"""A log of another GPU than the one that is named shows by its step times."""

from dataclasses import replace

import numpy as np
import pytest
from recorded_runs import TRUE, engines, workload

from dynosim.fit.deployment import deployment_of
from dynosim.fit.measurements import Measurements
from dynosim.fit.other_gpu import cached_tokens, gpu_warning, nearest_by_bandwidth, step_times_of
from dynosim.fit.replay import replay
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.fitted import Fit, FittedModel
from dynosim.timing.scaled import ScaledModel

TABLE = FittedModel(Fit(parameters=TRUE, knee=2.5))
SETUP = {"model": "Qwen/Qwen3-8B", "engine_kwargs": {"max_num_seqs": 32}}
DEPLOYMENT = deployment_of(SETUP, hardware="h100_sxm")


def log_of(factor: float) -> Measurements:
    trace = workload(60)
    run = replay(trace, engines(), ScaledModel(TABLE, factor), "engine")
    return Measurements(
        source="log",
        setup=SETUP,
        clock="engine",
        arrival_ms=trace.arrival_ms,
        input_tokens=trace.input_tokens,
        output_tokens=trace.output_tokens,
        ttft_ms=run.ttft_ms,
        decode_ms=run.decode_ms,
        block_tokens=0,
        hashes=((),) * len(trace),
    )


@pytest.mark.parametrize(
    ("factor", "is_other"), [(0.4, True), (0.75, False), (1.0, False), (1.4, False), (2.4, True)]
)
def test_step_times_far_from_the_tables_are_told(factor: float, is_other: bool) -> None:
    measured = log_of(factor)
    found = step_times_of(measured, DEPLOYMENT, TABLE)
    assert found is not None and found.decode == pytest.approx(factor, rel=0.2)
    assert found.prompts is None  # without hashes nobody knows what was cached
    text = gpu_warning(measured, DEPLOYMENT, TABLE)
    assert (text is not None) is is_other
    if text is not None:
        assert text.startswith(f"step times are {found.decode:.1f} times those of h100_sxm")
        assert "is it another GPU? nearest by bandwidth: " in text


def test_first_tokens_cannot_be_early_without_a_cache() -> None:
    measured = log_of(1.0)
    hashes = tuple((10 * row,) for row in range(60))
    early = replace(measured, ttft_ms=0.1 * measured.ttft_ms, block_tokens=16, hashes=hashes)
    found = step_times_of(early, DEPLOYMENT, TABLE)
    assert found is not None and found.prompts is not None and found.prompts < 0.6
    assert found.is_other
    late = replace(early, ttft_ms=50 * measured.ttft_ms)
    assert not step_times_of(late, DEPLOYMENT, TABLE).is_other  # type: ignore[union-attr]


def test_single_tokens_tell_nothing() -> None:
    single = replace(log_of(1.0), output_tokens=np.ones(60, np.int64))
    assert step_times_of(single, DEPLOYMENT, TABLE) is None
    assert gpu_warning(single, DEPLOYMENT, TABLE) is None


def test_the_nearest_gpu_reads_memory_as_fast_as_the_log_shows() -> None:
    named = hardware_sheet("h100_sxm").memory_gb_per_s
    near = nearest_by_bandwidth("h100_sxm", 4.0)
    assert hardware_sheet(near).memory_gb_per_s == pytest.approx(named / 4.0, rel=0.05)
    assert nearest_by_bandwidth("h100_sxm", 1.0) != "h100_sxm"


def test_cached_tokens_are_leading_blocks_that_were_there_before() -> None:
    measured = replace(
        log_of(1.0).first(4), block_tokens=16, hashes=((1, 2, 3), (1, 2, 9), (7, 1), (1, 2, 3))
    )
    assert cached_tokens(measured).tolist() == [0, 32, 0, 48]
