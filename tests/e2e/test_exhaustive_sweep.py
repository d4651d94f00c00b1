"""Layouts that are far from the best are left at that, unless all are asked for."""

import json
from pathlib import Path

import polars as pl
import pytest

from dynosim.cli import main

SWEEP = """
name: far
workload: {synthetic: {requests: 400, isl: 200, osl: 20, arrival: poisson, rate_rps: 5}}
engine: {num_gpu_blocks: 4000, max_num_batched_tokens: 8192}
timing: {kind: fixed, prefill_ms: 20, decode_ms: 5}
space:
  timing:
    - {kind: fixed, prefill_ms: 20, decode_ms: 5}
    - {kind: fixed, prefill_ms: 200, decode_ms: 60}
constraints: {sla: {ttft_ms: 1000, itl_ms: 200}}
load: {search: capacity, min_requests: 0}
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.replace("timing: {kind: fixed, prefill_ms: 20, decode_ms: 5}\n", "", 1))
    return path


@pytest.mark.live
def test_a_layout_far_from_the_best_is_not_pursued_and_all_can_be(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["sweep", str(sweep_file), "--out", str(out), "--jobs", "1"]) == 0
    assert "1 layout not pursued: far from the best" in capsys.readouterr().out
    answer = json.loads((out / "summary.json").read_text())["answer"]
    assert answer["best"] == 0 and answer["not_pursued"] == [1]
    trials = pl.read_parquet(out / "trials.parquet")
    assert "another carries" in trials["capacity_not_pursued"][1]
    assert trials["num_probes"][1] < trials["num_probes"][0]
    first = (out / "ledger.jsonl").read_bytes()

    again = ["sweep", str(sweep_file), "--out", str(out), "--resume", "--exhaustive"]
    assert main([*again, "--jobs", "1"]) == 0
    assert "not pursued" not in capsys.readouterr().out
    assert (out / "ledger.jsonl").read_bytes().startswith(first)
    answer = json.loads((out / "summary.json").read_text())["answer"]
    assert answer["not_pursued"] == [] and answer["ranked"] == [0, 1]
    low, high = (
        pl.read_parquet(out / "trials.parquet")
        .select("capacity_load", "capacity_load_failed")
        .row(1)
    )
    assert low < high <= low * 1.03
