"""`dynosim sweep` that needs a load held, as its users call it."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dynosim.cli import main
from dynosim.config import load_run

SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 300, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  router.mode: [round-robin, least-loaded]
constraints: {gpu_budget: 8, sla: {ttft_ms: 150, itl_ms: 30}}
load: {search: capacity, min_requests: 0, need: {rps: 60}}
"""
FILES = (
    "trials.parquet",
    "probes.parquet",
    "sizing.parquet",
    "pareto.parquet",
    "report.html",
    "summary.json",
)

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP_FILE)
    return path


def sweep(*arguments: object) -> int:
    return main(["sweep", *map(str, arguments)])


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def test_the_fewest_gpus_are_those_that_trying_every_number_finds(
    sweep_file: Path, tmp_path: Path
) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "need") == 0
    need = "workload.arrival_scale"
    top = load_run(tmp_path / "need" / "agg" / "top1" / "config.yaml")
    every = ["space.cluster.workers=[1, 2, 3, 4, 5, 6]", "load={search: fixed}"]
    every += [f"{need}={top.workload.arrival_scale}"]
    options = [word for override in every for word in ("--set", override)]
    assert sweep(sweep_file, "--out", tmp_path / "grid", *options) == 0
    sizes = pl.read_parquet(tmp_path / "need" / "sizing.parquet")
    held = sizes.filter("is_held").group_by("trial_id").agg(pl.col("cluster.workers").min())
    grid = pl.read_parquet(tmp_path / "grid" / "trials.parquet").filter("meets_sla")
    modes = ("round-robin", "least-loaded")
    by_trying = {
        index: grid.filter(pl.col("router.mode") == mode)["cluster.workers"].min()
        for index, mode in enumerate(modes)
    }
    assert dict(held.iter_rows()) == by_trying
    assert summary_of(tmp_path / "need")["need"]["fewest_gpus"] == min(by_trying.values())


def test_the_answer_fits_the_terminal_and_says_what_is_left_and_what_limits(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file, "--out", out, "--set", "load.need.rps=40") == 0
    lines = capsys.readouterr().out.splitlines()
    gpus = summary_of(out)["need"]["fewest_gpus"]
    assert lines[0] == f"small: 2 layouts; 40 req/s takes {gpus} GPUs"
    assert lines[2].split()[:4] == ["layout", "GPUs", "carries", "head-room"]
    assert lines[3].startswith("1*") and lines[4].startswith("2=")
    (limits,) = [line for line in lines if line.startswith("limits")]
    assert f"with {gpus - 1} workers: " in limits and "miss" in limits
    table = [line for line in lines if not line.startswith(("deploy", "prove", "engine"))]
    assert max(map(len, table)) <= 80


def test_the_row_is_that_of_the_need_and_the_run_file_serves_it(
    sweep_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file, "--out", out) == 0
    trials = pl.read_parquet(out / "trials.parquet")
    assert trials["need_is_held"].all() and (trials["need_headroom"] >= 1.0).all()
    assert (trials["capacity_rps"] / trials["need_headroom"]).to_list() == pytest.approx([60.0] * 2)
    assert trials["own_load_carried"].all() and (trials["need_attainment"] >= 0.95).all()
    best = summary_of(out)["answer"]["best"]
    config = load_run(out / "agg" / "top1" / "config.yaml")
    assert config.cluster.workers == trials["cluster.workers"][best]
    assert main(["run", str(out / "agg" / "top1" / "config.yaml"), "--out", str(out / "run")]) == 0
    report = json.loads((out / "run" / "report.json").read_text())
    assert report["mean_ttft_ms"] == pytest.approx(trials["mean_ttft_ms"][best])


@pytest.mark.live
@pytest.mark.usefixtures("worker_processes")
def test_results_do_not_depend_on_jobs(sweep_file: Path, tmp_path: Path) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "a", "--jobs", 1) == 0
    assert sweep(sweep_file, "--out", tmp_path / "b", "--jobs", 3) == 0
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_killed_at_any_point_it_goes_on(sweep_file: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert sweep(sweep_file, "--out", whole) == 0
    content = (whole / "ledger.jsonl").read_bytes()
    for number, cut in enumerate(random.Random(5).sample(range(1, len(content)), 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(content[:cut])
        assert sweep(sweep_file, "--out", folder, "--resume") == 0
        lines = [(folder / "ledger.jsonl").read_bytes().count(b"\n"), content.count(b"\n")]
        assert lines[0] == lines[1], "nothing is tried twice"
        for name in FILES:
            assert (whole / name).read_bytes() == (folder / name).read_bytes(), name


def test_twice_the_need_never_needs_fewer(sweep_file: Path, tmp_path: Path) -> None:
    gpus = []
    for rps in (10, 20, 80):
        out = tmp_path / str(rps)
        assert sweep(sweep_file, "--out", out, "--set", f"load.need.rps={rps}") == 0
        gpus.append(summary_of(out)["need"]["fewest_gpus"])
    assert gpus == sorted(gpus) and gpus[0] == 1 and gpus[-1] >= 5


def test_what_no_budget_holds_says_what_could_be_had(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "load.need.rps=500", "--out"]
    assert sweep(sweep_file, *options, tmp_path / "a") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small: 2 layouts, none holds 500 req/s on 8 GPUs, the most is 1")
    assert lines[2].startswith(" -  8x ") and "req/s at most: " in lines[2]
    found = summary_of(tmp_path / "a")
    assert found["need"]["is_held"] is False and found["top"] == []
    trials = pl.read_parquet(tmp_path / "a" / "trials.parquet")
    nearest = trials.filter(pl.col("trial_id") == found["need"]["nearest"])
    assert found["need"]["nearest_rps"] == trials["capacity_rps"].max()
    assert nearest["capacity_rps"][0] < 500 and not trials["meets_sla"].any()
    assert sweep(sweep_file, *options, tmp_path / "b", "--fail-if-none") == 3


def test_bounds_that_an_idle_cluster_misses_are_a_bad_question(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "constraints.sla.ttft_ms=20", "--out"]
    assert sweep(sweep_file, *options, tmp_path / "a") == 2
    assert "no layout meets the SLA, even at 0.02x" in capsys.readouterr().err
    assert sweep(sweep_file, *options, tmp_path / "b", "--fail-if-none") == 3


@pytest.mark.parametrize("need", ["{sessions_per_s: 30}", "{rps: 30}"])
def test_sessions_and_requests_can_be_what_is_needed(
    sweep_file: Path, tmp_path: Path, need: str
) -> None:
    """Two turns a session: 30 sessions a second are 60 requests."""
    turns = "workload.synthetic={sessions: 150, turns: 2, isl: 99, osl: 9, rate_rps: 20}"
    options = ["--set", turns, "--set", f"load.need={need}"]
    assert sweep(sweep_file, "--out", tmp_path / "out", *options) == 0
    rps = pl.read_parquet(tmp_path / "out" / "sizing.parquet")["offered_rps"].unique().to_list()
    assert rps == pytest.approx([60.0 if "sessions" in need else 30.0])


def test_a_closed_loop_can_be_what_is_needed(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = "load={search: capacity, requests_per_slot: 8, min_requests: 0, need:"
    assert sweep(sweep_file, "--out", tmp_path / "a", "--set", f"{load} {{concurrency: 40}}}}") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "40 in flight takes 5 GPUs" in told
    assert "for each in flight: set load.requests_per_slot to 40" in told
    trials = pl.read_parquet(tmp_path / "a" / "trials.parquet")
    assert (trials["capacity_load"] >= 40).all()
    assert load_run(tmp_path / "a" / "agg" / "top1" / "config.yaml").workload.concurrency == 40


def test_listed_numbers_of_workers_are_bounds(sweep_file: Path, tmp_path: Path) -> None:
    workers = ["--set", "space.cluster.workers=[3, 6]", "--set", "load.need.rps=5"]
    assert sweep(sweep_file, "--out", tmp_path / "out", *workers) == 0
    assert pl.read_parquet(tmp_path / "out" / "trials.parquet")["cluster.workers"].to_list() == [
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("load.need={rps: 1, concurrency: 2}", "give one of rps, sessions_per_s and concurrency"),
        ("load.need={}", "give one of rps, sessions_per_s and concurrency"),
        ("load={vary: rate, need: {concurrency: 2}}", "is not what vary: rate varies"),
        ("load={vary: concurrency, need: {rps: 2}}", "is not what vary: concurrency varies"),
        ("load.need={rps: 0}", "must be > 0"),
        ("load={search: fixed, need: {rps: 5}}", "has no effect with `search: fixed`"),
        ("constraints={sla: {ttft_ms: 9}}", "must know how many GPUs there are"),
        ("cluster.workers=4", "finds how many workers it takes"),
        ("search={method: random, trials: 2}", "tries every point of the space"),
    ],
)
def test_bad_needs_are_one_message(
    sweep_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    words: str,
) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out", "--set", override) == 2
    errors = capsys.readouterr().err
    assert words in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_budget_too_small_for_one_worker_is_told(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = ["--set", "engine.tensor_parallel=16"]
    assert sweep(sweep_file, "--out", tmp_path / "out", *larger) == 2
    assert "needs 16 GPUs, constraints.gpu_budget is 8" in capsys.readouterr().err
