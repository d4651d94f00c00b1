"""`dynosim sweep` with a search for capacities, as its users call it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import disk_support
import polars as pl
import pytest
from inline_workers import InlineWorker
from no_pictures import leave_out_pictures

from dynosim.cli import main

SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 400, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  cluster.workers: [1, 2, 3]
  router.mode: [round-robin, least-loaded]
constraints: {gpu_budget: 2, sla: {ttft_ms: 150, itl_ms: 30}}
load: {search: capacity, min_requests: 0}
"""
FILES = (
    "trials.parquet",
    "probes.parquet",
    "pareto.parquet",
    "pareto.png",
    "curves.png",
    "attainment.png",
    "effects.png",
    "report.html",
    "summary.json",
)

pytestmark = pytest.mark.usefixtures("inline_workers")


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP_FILE)
    return path


def sweep(*arguments: object) -> int:
    return main(["sweep", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the sweep as it is. Tests only read them."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "sweep.yaml").write_text(SWEEP_FILE)
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        patch.setattr("dynosim.sweep.executor._Worker", InlineWorker)
        assert sweep(folder / "sweep.yaml", "--out", folder / "out", "--jobs", 1) == 0
    return folder / "out"


def probes(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()[1:]]
    return [(line["trial_id"], line["probe"]["load"]) for line in lines]


@pytest.mark.usefixtures("no_pictures")
def test_the_answer_comes_first_and_fits_the_terminal(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small: 3 layouts; the workload asks 20")
    assert lines[1] == "SLA: 95 % of requests with TTFT <= 150 ms, time per token <= 30 ms"
    assert lines[2].split()[:4] == ["layout", "GPUs", "req/s", "x"]
    assert lines[3].startswith("1*")
    assert lines[-3].startswith("deploy  dynosim deploy ")
    assert lines[-1].startswith("engine  ") and "agg/top1/engine.sh" in lines[-1]
    table = [line for line in lines if not line.startswith(("deploy", "prove", "engine"))]
    assert max(map(len, table)) <= 80


def test_one_worker_behind_any_router_is_tried_once(finished: Path) -> None:
    trials = pl.read_parquet(finished / "trials.parquet")
    assert trials["same_as"].to_list()[:4] == [None, 0, None, None]
    assert trials["capacity_load"][0] == trials["capacity_load"][1]
    assert {index for index, _ in probes(finished)} == {0, 2, 3}


def test_more_workers_carry_more_and_nothing_overloaded_is_recommended(finished: Path) -> None:
    trials = pl.read_parquet(finished / "trials.parquet").filter(pl.col("status") == "ok")
    loads = dict(zip(trials["trial_id"], trials["capacity_load"], strict=True))
    assert loads[3] > 1.7 * loads[0]
    assert (trials["capacity_load_failed"] <= trials["capacity_load"] * 1.03 + 1e-9).all()
    front = trials.filter(pl.col("is_pareto"))
    assert not front["saturated"].any() and (front["capacity_attainment"] >= 0.95).all()


def test_every_load_that_was_tried_is_in_a_table(finished: Path) -> None:
    table = pl.read_parquet(finished / "probes.parquet")
    tried = list(zip(table["trial_id"], table["load"], strict=True))
    assert tried == sorted(tried) and sorted(probes(finished)) == tried
    whole = table.filter(~pl.col("is_stopped"))
    assert whole["attainment"].null_count() == 0 and whole["mean_ttft_ms"].null_count() == 0
    assert table.filter("is_stopped")["attainment"].null_count() == table["is_stopped"].sum()
    best = table.filter("is_carried").group_by("trial_id").agg(pl.col("load").max())
    trials = pl.read_parquet(finished / "trials.parquet")
    assert dict(best.iter_rows()) == {
        index: trials["capacity_load"][index] for index in best["trial_id"]
    }


@pytest.mark.usefixtures("worker_processes", "no_pictures")
def test_results_do_not_depend_on_jobs(sweep_file: Path, finished: Path, tmp_path: Path) -> None:
    assert sweep(sweep_file, "--out", tmp_path / "b", "--jobs", 3) == 0
    for name in FILES:
        assert (finished / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.usefixtures("no_pictures")
def test_killed_at_any_point_it_goes_on(sweep_file: Path, finished: Path, tmp_path: Path) -> None:
    """The ledger, cut where a kill may leave it."""
    content = (finished / "ledger.jsonl").read_bytes()
    for number, cut in enumerate(random.Random(3).sample(range(1, len(content)), 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(content[:cut])
        assert sweep(sweep_file, "--out", folder, "--resume") == 0
        assert sorted(probes(folder)) == sorted(probes(finished))
        for name in FILES:
            assert (finished / name).read_bytes() == (folder / name).read_bytes(), name


def command(sweep_file: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "dynosim", "sweep", str(sweep_file), "--out", str(out),
            "--jobs", "2", "--resume"]  # fmt: skip


@pytest.mark.usefixtures("worker_processes")
@pytest.mark.live
def test_five_kills_at_random_points_lose_no_finished_probe(
    sweep_file: Path, tmp_path: Path
) -> None:
    """Each ends a real process at once, as does a machine that runs out of memory."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert sweep(sweep_file, "--out", whole, "--jobs", 2) == 0
    num_probes = len(probes(whole))
    ledger = killed / "ledger.jsonl"
    found: list[tuple[int, float]] = []
    for until in sorted(random.Random(7).sample(range(1, num_probes - 1), 5)):
        process = subprocess.Popen(
            command(sweep_file, killed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while not ledger.exists() or ledger.read_bytes().count(b"\n") <= until:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
        content = ledger.read_bytes()
        ledger.write_bytes(content[: content.rfind(b"\n") + 1])  # a torn line is no probe
        assert probes(killed)[: len(found)] == found
        found = probes(killed)
    assert sweep(sweep_file, "--out", killed, "--resume") == 0
    assert probes(killed)[: len(found)] == found
    assert sorted(probes(killed)) == sorted(probes(whole))
    for name in FILES:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


@pytest.mark.live
@disk_support.needs_mount
@pytest.mark.usefixtures("worker_processes")
def test_a_full_disk_loses_no_finished_probe(sweep_file: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert sweep(sweep_file, "--out", whole, "--jobs", 2) == 0
    size_kib = (whole / "ledger.jsonl").stat().st_size // 2048
    with disk_support.small_disk(tmp_path / "disk", size_kib) as disk:
        out = disk.folder / "out"
        done = subprocess.run(command(sweep_file, out), capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert f"{out / 'ledger.jsonl'}: No space left on device (what it holds" in done.stderr
        content = (out / "ledger.jsonl").read_bytes()
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    (resumed / "ledger.jsonl").write_bytes(content)
    num_kept = content.count(b"\n") - 1
    assert num_kept > 2
    assert sweep(sweep_file, "--out", resumed, "--resume") == 0
    assert (resumed / "ledger.jsonl").read_bytes().startswith(content[: content.rfind(b"\n") + 1])
    assert sorted(probes(resumed)) == sorted(probes(whole))
    for name in FILES:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


@pytest.mark.usefixtures("no_pictures")
def test_another_sla_is_another_sweep(
    sweep_file: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    for override in ("constraints.sla.attainment=0.9", "load.tolerance=0.1"):
        assert sweep(sweep_file, "--out", out, "--resume", "--set", override) == 2
        assert "another sweep" in capsys.readouterr().err


def test_interrupted_it_keeps_its_probes(sweep_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dynosim", "sweep", str(sweep_file), "--out", str(out)]
    more = ["--set", "workload.synthetic.requests=4000", "--jobs", "2"]
    process = subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True)
    ledger = out / "ledger.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        ledger.exists() and ledger.read_bytes().count(b"\n") > 2
    ):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "probes of 3 layouts are kept" in errors
    assert "Traceback" not in errors


@pytest.mark.usefixtures("no_pictures")
def test_an_sla_that_nothing_meets_says_which_layouts_and_why(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tight = ["--set", "constraints.sla.ttft_ms=20"]
    assert sweep(sweep_file, "--out", tmp_path / "a", *tight) == 2
    told = capsys.readouterr()
    assert "3 layouts, none carries any load from 0.02 to 8" in told.out
    why = "100 % miss TTFT (median prompt 300 tokens)"
    assert f" -  1x rr: none, at 0.02x {why}" in told.out
    assert "no layout meets the SLA, even at 0.02x: the nearest is 1x rr with 0.0 %" in told.err
    assert why in told.err and "relax that bound" in told.err
    assert (tmp_path / "a" / "report.html").exists()
    assert sweep(sweep_file, "--out", tmp_path / "b", *tight, "--fail-if-none") == 3


@pytest.mark.usefixtures("no_pictures")
def test_the_nearest_miss_is_the_one_that_keeps_most(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every fifth prompt is too long, whatever the load; a slower engine misses more."""
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 50 * n, "input_length": 400 if n % 5 else 4000, "output_length": 5,
         "hash_ids": list(range(9 * n, 9 * n + (1 if n % 5 else 8)))}
        for n in range(400)
    ]  # fmt: skip
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        f"workload={{trace: {trace}, format: mooncake}}", "engine.num_gpu_blocks=2000",
        "timing={kind: polynomial}", "engine.max_model_len=8192",
        "space={engine.max_num_batched_tokens: [128, 1024]}", "constraints.sla={ttft_ms: 60}",
    ]  # fmt: skip
    sets = [word for option in options for word in ("--set", option)]
    assert sweep(sweep_file, "--out", tmp_path / "o", *sets) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert "% miss TTFT (median prompt 4,000 tokens)" in errors
    trials = pl.read_parquet(tmp_path / "o" / "trials.parquet")
    most = trials["capacity_attainment"].max()
    assert isinstance(most, float) and f"with {100 * most:.1f} % of requests within it" in errors


@pytest.mark.usefixtures("no_pictures")
def test_a_load_that_nothing_meets_fails_if_that_is_asked_for(
    sweep_file: Path, tmp_path: Path
) -> None:
    """As it is, at one load: an answer, not a bad question."""
    fixed = ["--set", "load={search: fixed}", "--set", "constraints.sla.ttft_ms=20"]
    assert sweep(sweep_file, "--out", tmp_path / "a", *fixed) == 0
    assert sweep(sweep_file, "--out", tmp_path / "b", *fixed, "--fail-if-none") == 3
    met = ["--set", "load={search: fixed}", "--set", "constraints.sla.ttft_ms=9999"]
    assert sweep(sweep_file, "--out", tmp_path / "c", *met, "--fail-if-none") == 0


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("load.range=[2, 1]", "is empty"),
        ("load.range=[1]", "expected two numbers"),
        ("constraints.sla={ttft_ms: 9, attainment: 0.9, statistic: p95}", "takes the place of"),
        ("load={search: fixed}", None),
        ("load={search: fixed, tolerance: 0.1}", "has no effect with `search: fixed`"),
        ("space={workload.speedup: [1, 2]}", "varies beside the load"),
    ],
)
def test_bad_loads_are_one_message(
    sweep_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    words: str | None,
) -> None:
    code = sweep(sweep_file, "--out", tmp_path / "out", "--set", override)
    errors = capsys.readouterr().err
    assert code == (0 if words is None else 2), errors
    if words is not None:
        assert words in errors and "Traceback" not in errors
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_pictures")
def test_in_flight_requests_can_be_the_load(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = "load={search: capacity, vary: concurrency, range: [1, 64]}"
    assert sweep(sweep_file, "--out", tmp_path / "out", "--set", override) == 0
    assert "in flight" in capsys.readouterr().out.splitlines()[0]
    trials = pl.read_parquet(tmp_path / "out" / "trials.parquet")
    loads = trials.filter(pl.col("status") == "ok")["capacity_load"].drop_nulls()
    assert (loads == loads.round()).all() and len(loads)
