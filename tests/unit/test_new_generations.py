"""Generations of workers that are others than those before: what a scenario says of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_runs import assert_same

import dynosim
from dynosim.experiment.run import RunOutcome

RUN = """
model: Qwen/Qwen3-32B
workload: {synthetic: {requests: 120, isl: 300, osl: 40, arrival: poisson, rate_rps: 12}}
engine: {num_gpu_blocks: 2000, max_model_len: 1024}
timing: {kind: polynomial}
"""
AGGREGATED = "cluster: {workers: 2}"
DISAGG = """
cluster: {mode: disagg, prefill: {workers: 2}, decode: {workers: 2}, transfer: {preset: ib}}
hardware: h200_sxm
"""


def run(folder: Path, cluster: str, event: str, **options: Any) -> RunOutcome:
    file = folder / "run.yaml"
    file.write_text(f"{RUN}{cluster}\nscenario:\n- {{at_s: 2, {event}}}\n")
    return dynosim.run(dynosim.load_run(file), **options)


def generations(outcome: RunOutcome) -> Any:
    assert outcome.result.workers.generation is not None
    return outcome.result.workers.generation


def most_running(outcome: RunOutcome, generation: int) -> int:
    """The most requests with a seat at a time in any worker of a generation."""
    steps = outcome.result.steps
    return int(steps.num_running[generations(outcome)[steps.worker_id] == generation].max())


UPDATE = "rolling_update: {{max_surge: 1, {}}}"
CANARY = "canary: {{share: 0.5, {}}}"


@pytest.mark.parametrize("event", [UPDATE, CANARY])
def test_new_workers_have_the_seats_and_blocks_that_are_said_of_them(
    tmp_path: Path, event: str
) -> None:
    outcome = run(
        tmp_path, AGGREGATED, event.format("engine: {max_num_seqs: 1, num_gpu_blocks: 500}")
    )
    assert most_running(outcome, 1) == 1 < most_running(outcome, 0)
    blocks = outcome.result.workers.usable_blocks
    assert set(blocks[generations(outcome) == 1]) == {499}
    assert set(blocks[generations(outcome) == 0]) == {1999}
    assert outcome.report["completed_requests"] == 120


def test_only_the_pools_that_are_updated_get_others(tmp_path: Path) -> None:
    event = UPDATE.format("pools: [decode], engine: {max_num_seqs: 1}")
    workers = run(tmp_path, DISAGG, event).result.workers
    assert workers.generation is not None and workers.generation.max() == 1
    both = UPDATE.format("engine: {num_gpu_blocks: 500}")
    outcome = run(tmp_path, DISAGG, both)
    is_new = generations(outcome) == 1
    assert is_new.sum() == 4 and set(outcome.result.workers.usable_blocks[is_new]) == {499}


def test_slower_workers_are_slower_in_reports_too(tmp_path: Path) -> None:
    event = UPDATE.format("step_time_factor: 3.0")
    bulk, single = [
        run(tmp_path, AGGREGATED, event, exact_stepping=exact) for exact in (False, True)
    ]
    assert_same(bulk.result, single.result)
    for key in ("mean_itl_ms", "median_itl_ms", "p99_itl_ms"):
        assert bulk.report[key] == pytest.approx(single.report[key], rel=1e-9)
    steps = bulk.result.steps
    ms = steps.duration_ms / steps.num_steps
    is_new = generations(bulk)[steps.worker_id] == 1
    alone = (steps.num_decodes == 1) & (steps.num_prefills == 0)
    ratio = np.median(ms[alone & is_new]) / np.median(ms[alone & ~is_new])
    assert ratio == pytest.approx(3.0, rel=0.05)


def test_nothing_said_is_the_same_again(tmp_path: Path) -> None:
    said = run(tmp_path, AGGREGATED, UPDATE.format("step_time_factor: 1, engine: {}"))
    unsaid = run(tmp_path, AGGREGATED, "rolling_update: {max_surge: 1}")
    drop = {key: None for key in said.report if "wall" in key}
    assert said.report | drop == unsaid.report | drop
