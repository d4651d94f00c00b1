"""`dynosim sweep` with points that are chosen by what others gave."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from dynosim.cli import main

SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 60, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  engine.max_num_seqs: {min: 1, max: 40, step: 1}
  engine.num_gpu_blocks: [20, 50, 200]
  cluster.workers: [1, 2, 3, 4]
constraints: {gpu_budget: 3, sla: {ttft_ms: 150}}
search: {method: METHOD, trials: 22, batch: 8, seed: 1}
load: LOAD
"""
FIXED = "{search: fixed}"
CAPACITY = "{search: capacity, min_requests: 0, tolerance: 0.2}"
FILES = ("trials.parquet", "pareto.parquet", "pareto.png", "report.html", "summary.json")
BOTH_LOADS = pytest.mark.parametrize(
    "load",
    [
        pytest.param(FIXED, id="fixed"),
        pytest.param(CAPACITY, id="capacity", marks=pytest.mark.live),
    ],
)
ROOT = str(Path(__file__).parents[2])

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


def sweep_file(folder: Path, method: str = "tpe", load: str = FIXED) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP_FILE.replace("METHOD", method).replace("LOAD", load))
    return path


def sweep(*arguments: object) -> int:
    return main(["sweep", *map(str, arguments)])


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()[1:]]


def assert_same(one: Path, other: Path) -> None:
    names = [*FILES, *(["probes.parquet"] if (one / "probes.parquet").exists() else [])]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.live
@BOTH_LOADS
@pytest.mark.usefixtures("worker_processes")
def test_results_do_not_depend_on_jobs(tmp_path: Path, load: str) -> None:
    path = sweep_file(tmp_path, "tpe", load)
    for jobs in (1, 2, 4):
        assert sweep(path, "--out", tmp_path / str(jobs), "--jobs", jobs) == 0
        assert_same(tmp_path / "1", tmp_path / str(jobs))


@BOTH_LOADS
@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_cut_anywhere_it_goes_on_to_the_same(tmp_path: Path, method: str, load: str) -> None:
    path = sweep_file(tmp_path, method, load)
    whole = tmp_path / "whole"
    assert sweep(path, "--out", whole) == 0
    content = (whole / "ledger.jsonl").read_bytes()
    for number, cut in enumerate(random.Random(5).sample(range(1, len(content)), 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(content[:cut])
        assert sweep(path, "--out", folder, "--resume") == 0
        assert len(lines(folder)) == len(lines(whole))
        assert_same(whole, folder)


@pytest.mark.live
@pytest.mark.usefixtures("worker_processes")
def test_killed_at_a_random_point_it_goes_on_to_the_same(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert sweep(path, "--out", whole, "--jobs", 2) == 0
    command = [sys.executable, "-m", "dynosim", "sweep", str(path), "--out", str(killed)]
    process = subprocess.Popen(
        [*command, "--jobs", "2"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    ledger = killed / "ledger.jsonl"
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < 12:  # in the second batch
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sweep(path, "--out", killed, "--resume", "--jobs", 2) == 0
    ids = [line["trial_id"] for line in lines(killed)]
    assert len(ids) == len(set(ids))
    assert_same(whole, killed)


def test_the_summary_says_how_points_were_chosen(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file(tmp_path, "nsga2"), "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    sampler = summary["search"].pop("sampler")
    assert summary["search"] == {"method": "nsga2", "trials": 22, "seed": 1, "batch": 8}
    assert sampler.startswith("optuna ")
    assert summary["num_trials"] == 22


def test_points_that_cannot_run_are_listed_and_count(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file(tmp_path), "--out", out, "--set", "search.trials=40") == 0
    trials = pl.read_parquet(out / "trials.parquet")
    assert trials["trial_id"].to_list() == list(range(40))
    others = trials.filter(pl.col("status") == "infeasible")
    too_large = others.filter(pl.col("cluster.workers") == 4)
    assert len(too_large) and too_large["reason"].str.contains("gpu_budget is 3").all()
    assert others.filter(pl.col("cluster.workers") != 4)["reason"].str.contains("blocks").all()
    wasted = trials["status"] == "infeasible"
    assert wasted[16:].mean() < 0.5 * (1 - 3 / 4 * 2 / 3)  # half as often as by chance


@pytest.mark.live
def test_it_finds_what_the_grid_finds(tmp_path: Path) -> None:
    """The grid has 480 points."""
    best = {}
    for name, search in (("grid", "{method: grid}"), ("tpe", "{method: tpe, trials: 48}")):
        out = tmp_path / name
        path = sweep_file(tmp_path)
        assert sweep(path, "--out", out, "--set", f"search={search}") == 0
        best[name] = json.loads((out / "summary.json").read_text())["top"][0]
    per_gpu = [best[name]["output_tok_s_per_gpu"] for name in ("tpe", "grid")]
    assert per_gpu[0] >= 0.99 * per_gpu[1]


@pytest.mark.live
def test_more_trials_go_on_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = sweep_file(tmp_path), tmp_path / "out"
    assert sweep(path, "--out", out) == 0
    before = (out / "ledger.jsonl").read_bytes()
    more = ["--set", "search.trials=30"]
    assert sweep(path, "--out", out, "--resume", *more) == 0
    assert (out / "ledger.jsonl").read_bytes().startswith(before)
    assert sweep(path, "--out", tmp_path / "new", *more) == 0
    assert_same(out, tmp_path / "new")
    for other in ("search.seed=2", "search.batch=4", "search.method=nsga2",
                  "constraints.sla.ttft_ms=100", "objectives={mean_ttft_ms: min}",
                  "space.cluster.workers=[1, 2]", "workload.synthetic.osl=21"):  # fmt: skip
        capsys.readouterr()
        assert sweep(path, "--out", out, "--resume", "--set", other) == 2
        assert "another sweep" in capsys.readouterr().err


def test_a_trial_that_crashed_is_run_again_and_what_followed_from_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its crash said nothing to the search, so that other points followed."""
    from dynosim.sweep import trial

    path, out = sweep_file(tmp_path), tmp_path / "out"
    with monkeypatch.context() as patched:
        run = trial.run

        def crashing(config: object, **rest: object) -> object:
            if config.name == "small-2":  # type: ignore[attr-defined]
                raise ZeroDivisionError("a crash")
            return run(config, **rest)  # type: ignore[arg-type]

        patched.setattr(trial, "run", crashing)
        assert sweep(path, "--out", out) == 1
    assert sweep(path, "--out", out, "--resume") == 0
    assert sweep(path, "--out", tmp_path / "whole") == 0
    assert_same(tmp_path / "whole", out)


def test_a_missing_optuna_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep(sweep_file(tmp_path), "--out", tmp_path / "out") == 2
    assert "pip install 'dynosim[search]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
