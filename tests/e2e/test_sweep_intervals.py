"""`dynosim sweep` says how sure its frontier is."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from recorded_runs import TRUE

from dynosim.cli import main
from dynosim.silicon.fitted_file import write_fit
from dynosim.timing.fitted import Fit, MeasuredRange

SWEEP = """\
name: sure
workload: {synthetic: {requests: 30, isl: 200, osl: 20, rate_rps: 30}}
engine: {num_gpu_blocks: 2000}
timing: {kind: fitted, file: timing.json}
load: {search: fixed}
space:
  cluster.workers: [1, 2, 3]
  engine.max_num_seqs: [1, 8]
objectives: {output_tok_s_per_gpu: max, mean_ttft_ms: min}
constraints: {sla: {ttft_ms: 5000}}
"""
DRAWS = tuple(replace(TRUE, weights_ms=8.0 + 0.1 * number) for number in range(-8, 9))
MEASURED = MeasuredRange(prefill_tokens=4096, num_decodes=100, mean_context=5000.0)
PER_GPU = "output_tok_s_per_gpu"
PLAIN = ("--set", "timing={kind: polynomial}")


pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    fit = Fit(parameters=TRUE, knee=2.5, draws=DRAWS, measured=MEASURED)
    write_fit(fit, tmp_path / "timing.json")
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def sweep(*arguments: object) -> int:
    return main(["sweep", *map(str, arguments)])


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def contents(out: Path) -> dict[str, bytes]:
    """All files but the ledger, whose order is that of the workers."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "ledger.jsonl"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def interval_lines(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if "intervals" in line]


@pytest.mark.usefixtures("worker_processes")
def test_frontier_has_intervals_that_do_not_depend_on_jobs(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    assert sweep(sweep_file, "--out", one, "--jobs", 1) == 0
    shown = capsys.readouterr()
    assert sweep(sweep_file, "--out", three, "--jobs", 3) == 0
    assert contents(one) == contents(three)
    assert "(low..high): 95 % of 16 replays with other constants of step times" in shown.out
    assert ".." in shown.out.splitlines()[4]
    assert "intervals, " in shown.err  # progress
    front = pl.read_parquet(one / "pareto.parquet")
    assert (front[f"{PER_GPU}_low"] < front[f"{PER_GPU}_high"]).all()
    trials = pl.read_parquet(one / "trials.parquet")
    others = trials.filter(~(pl.col("is_pareto") | pl.col("is_sla_pareto")))
    assert len(others) > 0 and others[f"{PER_GPU}_low"].null_count() == len(others)
    assert "95 % of replays" in (one / "report.html").read_text()
    for brief in summary_of(one)["pareto"]:
        low, high = brief["intervals"]["metrics"]["mean_itl_ms"]
        assert low < brief["mean_itl_ms"] < high
        assert brief["meets_sla_share"] == 1
        assert 0 < brief["is_pareto_share"] == brief["is_sla_pareto_share"] <= 1


def test_a_winner_run_by_itself_gets_the_same_intervals(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file, "--out", out, "--intervals", 4) == 0
    winner = out / "agg" / "top1"
    capsys.readouterr()
    assert main(["run", str(winner / "config.yaml"), "--json", "--intervals", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["intervals"] == json.loads((winner / "intervals.json").read_text())
    assert report["intervals"]["replays"] == 4


def test_resume_makes_only_what_is_missing(sweep_file: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sweep_file, "--intervals", 4, "--jobs", 1]
    assert sweep(*command, "--out", whole) == 0
    lines = (whole / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    count = len(interval_lines(whole))
    assert count == len(summary_of(whole)["pareto"]) > 1
    cut.mkdir()
    (cut / "ledger.jsonl").write_bytes(b"".join(lines[: 1 - count]) + lines[1 - count][:40])
    assert sweep(*command, "--out", cut, "--resume") == 0
    assert (cut / "ledger.jsonl").read_bytes() == b"".join(lines)
    assert contents(whole) == contents(cut)


def test_none_are_made_when_not_wanted_or_without_draws(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert sweep(sweep_file, "--out", out, "--intervals", 0) == 0
    assert sweep(sweep_file, "--out", plain, *PLAIN) == 0
    assert "low..high" not in capsys.readouterr().out
    for folder in (out, plain):
        assert interval_lines(folder) == []
        columns = pl.read_parquet(folder / "trials.parquet").columns
        assert [c for c in columns if "_low" in c] == ["kv_capacity_low_blocks"]  # of its own kind
        assert "intervals" not in (folder / "summary.json").read_text()
        assert not list(folder.rglob("intervals.json"))
        assert "95 % of replays" not in (folder / "report.html").read_text()
    without = contents(out)
    assert sweep(sweep_file, "--out", out, "--resume") == 0  # wanted after all
    assert "intervals" in (out / "summary.json").read_text()
    assert sweep(sweep_file, "--out", out, "--resume", "--intervals", 0) == 0
    assert contents(out) == without


def test_other_step_times_vary_seeds_only(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out", *PLAIN, "--intervals", 3, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    kinds = [brief["intervals"]["varied"] for brief in summary["pareto"]]
    assert kinds and all(kind == ["seed of the workload", "seed of the router"] for kind in kinds)
    assert sweep(sweep_file, "--out", tmp_path / "none", "--intervals", 1) == 2
    assert "one replay has no spread" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.live
def test_interrupt_keeps_trials_and_finished_intervals(sweep_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(sweep_file), "--out", str(out), "--jobs", "1", "--intervals", "50"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dynosim", "sweep", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    ledger = out / "ledger.jsonl"
    while not ledger.exists() or b'"intervals":' not in ledger.read_bytes():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert b"--resume" in errors and b"--intervals 0" in errors and b"Traceback" not in errors
    kept = interval_lines(out)
    assert kept and not (out / "summary.json").exists()
    assert sweep(*arguments[:-2], "--resume", "--intervals", 0) == 0
    assert summary_of(out)["counts"]["ok"] == 6
    assert interval_lines(out) == kept
    assert sweep(*arguments, "--resume") == 0
    assert interval_lines(out)[: len(kept)] == kept
    made = [line["trial_id"] for line in interval_lines(out)]
    assert len(set(made)) == len(made) == len(summary_of(out)["pareto"])
