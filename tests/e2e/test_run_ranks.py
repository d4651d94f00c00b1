"""`dynosim run` of a model with experts on two data-parallel ranks."""

import json
from pathlib import Path

import pytest

from dynosim.cli import main

RUN_FILE = """\
name: moe
model: Qwen/Qwen3-30B-A3B
hardware: h100_sxm
workload:
  synthetic: {requests: 120, isl: 700, osl: 60, rate_rps: 12}
engine: {data_parallel: 2, expert_parallel: true, max_model_len: 4096}
timing: {kind: roofline}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN_FILE)
    return path


@pytest.mark.parametrize("kind", ["roofline", "aiconfigurator"])
def test_two_ranks_in_lock_step(
    run_file: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    arguments = [str(run_file), "--set", f"timing.kind={kind}", "--check"]
    assert main(["run", *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    sizes = [report[key] for key in ("num_gpus", "num_workers", "gpus_per_worker")]
    assert (sizes, report["ranks_per_worker"]) == ([2, 1, 2], 2)
    assert report["completed_requests"] == 120
    assert 0 < report["rank_waiting_share"] < 0.5
    assert 0 < report["dummy_step_share"] < 0.5
    assert "data_parallel 2 (whole experts on each GPU)" in report["timing_description"]
    assert main(["run", *arguments]) == 0
    text = capsys.readouterr().out
    assert "2 GPUs (1 workers of 2 in 2 ranks)" in text and "per rank" in text
    assert "lock step; " in text and " of steps are dummies" in text


def test_experts_of_a_dense_model_are_refused_in_one_line(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(run_file), "--set", "model=Qwen/Qwen3-32B"]) == 2
    error = capsys.readouterr().err
    assert "engine.expert_parallel: Qwen/Qwen3-32B has no experts (leave it out" in error
    assert "Traceback" not in error
