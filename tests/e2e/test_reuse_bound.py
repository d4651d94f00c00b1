"""`dynosim run --reuse-bound`: what the reuse of a run is to be measured against."""

import json
from pathlib import Path

import pytest

from dynosim.cli import main

RUN_FILE = """\
workload:
  synthetic: {requests: 60, isl: 320, osl: 20, rate_rps: 10, shared_prefix_ratio: 0.5,
              prefix_groups: 25, block_size: 32}
engine: {num_gpu_blocks: 90, max_num_seqs: 16, block_size: 16}
timing: {kind: polynomial}
cluster: {workers: 2}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN_FILE)
    return path


def test_it_stands_beside_the_reuse_in_report_page_and_terminal(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", str(run_file), "--out", str(out), "--reuse-bound"]) == 0
    report = json.loads((out / "report.json").read_text())
    bound = report["reuse_bound"]
    assert bound["capacity_blocks"] == 2 * 89  # one block of each worker holds nothing
    assert 0 < report["prefix_cache_reused_ratio"] < bound["optimal"] <= bound["endless"]
    line = f"({100 * bound['optimal']:.1f} % with perfect foresight and as many blocks"
    assert line in capsys.readouterr().out
    assert "with perfect foresight" in (out / "report.html").read_text()


def test_it_is_worked_out_only_if_asked_for(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(run_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reuse_bound"] is None


def test_with_a_warm_up_it_is_refused(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warm_up = ["--set", "workload.warm_up_requests=5"]
    assert main(["run", str(run_file), "--reuse-bound", *warm_up]) == 2
    assert "--reuse-bound: what a warm-up leaves" in capsys.readouterr().err
