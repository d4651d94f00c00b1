"""`dynosim sweep` as its users call it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from dynosim.cli import main
from dynosim.config import load_run

SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 30, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512}
timing: {kind: polynomial}
load: {search: fixed}
space:
  cluster.workers: [1, 2, 3, 4]
  router.mode: [round-robin, least-loaded]
  engine.num_gpu_blocks: [20, 200]
constraints: {gpu_budget: 3, sla: {ttft_ms: 1000}}
"""
GOOD_LINE = '{"timestamp": 0, "input_length": 9, "output_length": 3, "hash_ids": [1]}\n'
FILES = ("trials.parquet", "pareto.parquet", "pareto.png", "report.html", "summary.json")


pytestmark = pytest.mark.usefixtures("inline_workers")


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP_FILE)
    return path


def sweep(*arguments: object) -> int:
    return main(["sweep", *map(str, arguments)])


def ledger_lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("worker_processes")
def test_results_do_not_depend_on_jobs(sweep_file: Path, tmp_path: Path) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "a", "--jobs", 1) == 0
    assert sweep(sweep_file, "--out", tmp_path / "b", "--jobs", 3) == 0
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_infeasible_points_are_listed_with_their_reason(sweep_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file, "--out", out, "--jobs", 2) == 0
    trials = pl.read_parquet(out / "trials.parquet")
    assert trials["trial_id"].to_list() == list(range(16))
    reasons = dict(zip(trials["trial_id"], trials["reason"], strict=True))
    assert "gpu_budget is 3" in reasons[12]
    assert "max_model_len" in reasons[0]
    assert reasons[1] is None
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"] == {"ok": 6, "infeasible": 10, "failed": 0}
    assert len(summary["not_run"]) == 10
    front = pl.read_parquet(out / "pareto.parquet")
    assert front["is_pareto"].all() and len(front) > 0


def test_best_configurations_run_as_they_are(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file, "--out", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    best = summary["top"][0]
    config = load_run(out / best["config"])
    assert config.cluster.workers == best["values"]["cluster.workers"]
    assert main(["run", str(out / best["config"]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output_tok_s_per_gpu"] == best["output_tok_s_per_gpu"]


def test_resume_repeats_nothing_and_ends_the_same(sweep_file: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert sweep(sweep_file, "--out", whole) == 0
    lines = (whole / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    cut.mkdir()
    (cut / "ledger.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:25])
    assert sweep(sweep_file, "--out", cut, "--resume") == 0
    ids = [line["trial_id"] for line in ledger_lines(cut)[1:]]
    assert len(ids) == len(set(ids)) == len(lines) - 1
    for name in FILES:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def test_finished_folder_is_kept_unless_told(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file, "--out", out) == 0
    before = (out / "ledger.jsonl").read_bytes()
    assert sweep(sweep_file, "--out", out) == 2
    assert "--resume" in capsys.readouterr().err
    assert sweep(sweep_file, "--out", out, "--resume", "--set", "seed=1") == 2
    assert "another sweep" in capsys.readouterr().err
    assert (out / "ledger.jsonl").read_bytes() == before
    assert sweep(sweep_file, "--out", out, "--resume") == 0
    assert (out / "ledger.jsonl").read_bytes() == before
    assert sweep(sweep_file, "--out", out, "--overwrite", "--set", "seed=1") == 0


def test_a_changed_trace_is_another_sweep(sweep_file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(GOOD_LINE)
    overrides = ["--set", "workload.synthetic=null", "--set", f"workload.trace={trace}"]
    assert sweep(sweep_file, "--out", tmp_path / "out", *overrides) == 0
    trace.write_text(GOOD_LINE.replace("3", "4"))
    assert sweep(sweep_file, "--out", tmp_path / "out", *overrides, "--resume") == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workload.trace=/nowhere/t.jsonl", "exclude each other"),
        ("space.engine.max_num_seq=[1]", "did you mean engine.max_num_seqs?"),
        ("space.engine.max_num_seqs=[0]", "must be >= 1"),
        ("model=Qwen/Qwen3-33B", "model"),
        ("search.method=halving", "not in this version yet"),
    ],
)
def test_bad_input_leaves_nothing(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out", "--set", override) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_trace_stops_the_sweep_and_leaves_nothing(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(GOOD_LINE * 5 + "nonsense\n")
    overrides = ["--set", "workload.synthetic=null", "--set", f"workload.trace={trace}"]
    assert sweep(sweep_file, "--out", tmp_path / "out", *overrides) == 2
    assert f"{trace}:6" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert sweep(sweep_file, "--out", tmp_path / "out", *overrides, "--skip-bad-lines") == 0


def test_space_where_nothing_can_run_is_reported(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    override = "space.cluster.workers=[50, 60]"
    assert sweep(sweep_file, "--out", out, "--set", override) == 2
    assert "gpu_budget is 3" in capsys.readouterr().err
    assert len(pl.read_parquet(out / "trials.parquet")) == 8


def test_unknown_executor_is_refused(sweep_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(sweep_file, "--executor", "cloud") == 2
    assert "cloud: unknown (use local or ray)" in capsys.readouterr().err
    assert sweep(sweep_file, "--ray-address", "127.0.0.1:6379") == 2
    assert "add --executor ray" in capsys.readouterr().err


@pytest.mark.live
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_was_finished(
    sweep_file: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """Many small trials, stopped in the middle, then resumed."""
    out = tmp_path / "out"
    space = ["--set", "space.engine.max_num_seqs={min: 1, max: 8, step: 1}"]
    command = [sys.executable, "-m", "dynosim", "sweep", str(sweep_file), "--out", str(out)]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [*command, "--jobs", "2", *space],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": root},
    )
    ledger = out / "ledger.jsonl"
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate()
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert b"--resume" in errors and b"Traceback" not in errors
    finished = ledger.read_bytes().count(b"\n") - 1
    assert sweep(sweep_file, "--out", out, "--resume", "--jobs", 2, *space) == 0
    ids = [line["trial_id"] for line in ledger_lines(out)[1:]]
    assert finished <= len(ids) == len(set(ids))
