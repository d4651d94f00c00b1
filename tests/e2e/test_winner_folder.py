"""What a sweep leaves of its winners: it runs, serves and is proved wherever it is copied to."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import yaml
from waiting import PATIENCE_S

from dynosim.cli import main
from dynosim.config import load_run
from dynosim.sweep import travelling_files

SWEEP_FILE = """\
name: small
workload: {trace: traces/chat.jsonl.gz, speedup: 1}
engine: {num_gpu_blocks: 300, max_model_len: 4096, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  engine.tensor_parallel: [1, 2]
  engine.max_num_seqs: [4, 8]
constraints: {gpu_budget: 2, sla: {ttft_ms: 300, itl_ms: 45}}
load: {search: capacity, min_requests: 250}
top: 2
"""

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace, a sweep file, and the sweep's results."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "traces").mkdir()
    synth = ["--sessions", "50", "--turns", "2", "--isl", "200", "--osl", "12"]
    rate = ["--rate-rps", "8", "--think-time-ms", "100"]
    assert main(["trace", "synth", str(folder / "traces" / "chat.jsonl.gz"), *synth, *rate]) == 0
    (folder / "sweep.yaml").write_text(SWEEP_FILE)
    assert main(["sweep", str(folder / "sweep.yaml"), "--out", str(folder / "out")]) == 0
    return folder


def report_of(*arguments: object) -> dict[str, Any]:
    """The report of `dynosim run`, in a process of its own with another current folder."""
    command = [sys.executable, "-m", "dynosim", "run", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_copied_folder_shows_the_load_that_was_carried(project: Path, tmp_path: Path) -> None:
    """To the last digit, whoever has it: the trace went along."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(project / "out" / "agg" / "top1", copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    assert config["workload"]["trace"] == "./inputs/chat.jsonl.gz"
    assert config["workload"]["repeat"] == 3 and "router" not in config
    row = pl.read_parquet(project / "out" / "trials.parquet").row(
        json.loads((project / "out" / "summary.json").read_text())["top"][0]["trial_id"],
        named=True,
    )
    assert config["workload"]["arrival_scale"] == row["capacity_load"]
    os.rename(project / "traces", project / "away")
    try:
        report = report_of(copy / "config.yaml")
    finally:
        os.rename(project / "away", project / "traces")
    same = [key for key in row if key in report and isinstance(report[key], int | float)]
    assert len(same) > 100
    assert {key: report[key] for key in same} == {key: row[key] for key in same}


def test_nothing_in_it_names_this_machine(project: Path) -> None:
    for top in (project / "out" / "agg").iterdir():
        for path in top.iterdir():
            if path.is_file():
                assert str(project) not in path.read_text(), path


def test_both_run_files_say_the_same(project: Path) -> None:
    for top in (project / "out" / "agg").iterdir():
        short, full = (load_run(top / name) for name in ("config.yaml", "config.full.yaml"))
        assert short.model_dump() == full.model_dump()
        assert (top / "config.yaml").stat().st_size < (top / "config.full.yaml").stat().st_size / 3


def test_each_family_has_its_folder(project: Path) -> None:
    top = json.loads((project / "out" / "summary.json").read_text())["top"]
    families = [entry["values"]["engine.tensor_parallel"] for entry in top]
    assert sorted(families[:2]) == [1, 2] and "best" in top[0]["roles"]
    for place, entry in enumerate(top, 1):
        readme = (project / "out" / "agg" / f"top{place}" / "README.md").read_text()
        assert ", ".join(entry["roles"]) in readme.splitlines()[0]


@pytest.mark.live
def test_a_large_trace_is_not_copied_and_said(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(travelling_files, "COPIED_BYTES_MAX", 100)
    out = project / "large"
    assert main(["sweep", str(project / "sweep.yaml"), "--out", str(out)]) == 0
    top = out / "agg" / "top1"
    assert not (top / "inputs").exists()
    text = (top / "config.yaml").read_text()
    sha = json.loads((top / "prediction.json").read_text())["inputs"]["workload.trace"]
    assert "trace: ../../../traces/chat.jsonl.gz" in text and sha[:16] in text.splitlines()[0]
    assert sha[:16] in (top / "README.md").read_text().splitlines()[5]
    assert report_of(top / "config.yaml")["completed_requests"] == 300
    shutil.copytree(top, tmp_path / "copy")
    trace = project / "traces" / "chat.jsonl.gz"
    again = report_of(tmp_path / "copy" / "config.yaml", "--set", f"workload.trace={trace}")
    assert again["completed_requests"] == 300


@pytest.mark.live
def test_a_copied_folder_is_deployed_and_proved(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project / "out" / "agg" / "top1", copy)
    command = [sys.executable, "-m", "dynosim", "deploy", "copy", "--mock", "--port", "0"]
    command += ["--speedup", "20", "--json", "--out", "dep"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            assert httpx.get(f"{url}/v1/models", timeout=PATIENCE_S).json()["data"]
            validate = [sys.executable, "-m", "dynosim", "validate", "copy", "--url", url]
            done = subprocess.run(
                [*validate, "--speedup", "20", "--intervals", "0", "--json"],
                capture_output=True, text=True, cwd=tmp_path, timeout=240,
            )  # fmt: skip
        finally:
            process.send_signal(signal.SIGTERM)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    saved = json.loads((copy / "prediction.json").read_text())
    assert document["prediction"]["is_used"] is True
    assert document["num_requests"] == saved["report"]["num_requests"] == 300
    for row in document["metrics"]:
        assert row["predicted"] == saved["report"][row["key"]]


@pytest.fixture
def validated(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return partial(validated_against_aiperf, capsys)


def validated_against_aiperf(
    capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str
) -> tuple[int, str, str]:
    """`dynosim validate` against results of AIPerf that are there already."""
    results = folder.parent / "aiperf"
    results.mkdir(exist_ok=True)
    summary = {"request_latency": {"avg": 200.0}, "time_to_first_token": {"avg": 60.0},
               "request_count": {"avg": 300}}  # fmt: skip
    (results / "profile_export_aiperf.json").write_text(json.dumps(summary))
    command = ["validate", str(folder), "--aiperf", str(results), "--intervals", "0"]
    capsys.readouterr()
    code = main([*command, *arguments])
    return code, *capsys.readouterr()


def test_the_folders_prediction_is_what_is_compared(
    project: Path, tmp_path: Path, validated: Callable[..., tuple[int, str, str]]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project / "out" / "agg" / "top1", copy)
    path = copy / "prediction.json"
    saved = json.loads(path.read_text())
    saved["report"]["mean_ttft_ms"] = 4321.0
    path.write_text(json.dumps(saved))
    code, out, _ = validated(copy)
    assert code == 0 and "4,321" in out and "what was saved is compared" in out


def test_a_changed_run_file_is_noticed(
    project: Path, tmp_path: Path, validated: Callable[..., tuple[int, str, str]]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project / "out" / "agg" / "top1", copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("num_gpu_blocks: 300", "num_gpu_blocks: 299"))
    code, out, _ = validated(copy)
    assert code == 0 and "engine.num_gpu_blocks: 300 then, 299 now" in out
    assert "predicted anew" in out
    code, out, _ = validated(copy, "--set", "engine.num_gpu_blocks=300", "--json")
    assert code == 0 and json.loads(out)["prediction"]["is_used"] is True


def test_a_damaged_prediction_is_refused(
    project: Path, tmp_path: Path, validated: Callable[..., tuple[int, str, str]]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project / "out" / "agg" / "top1", copy)
    (copy / "prediction.json").write_text("{")
    code, out, errors = validated(copy)
    assert code == 2 and "prediction.json" in errors and "Traceback" not in errors and not out


@pytest.mark.live
def test_a_full_disk_leaves_the_old_folders(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is full when the last folder's copy of the trace is to be written."""
    out = tmp_path / "out"
    assert main(["sweep", str(project / "sweep.yaml"), "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in (out / "agg").rglob("*") if path.is_file()}
    copied: list[Path] = []

    def copy(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", copy)
    changed = ["--overwrite", "--set", "constraints.sla.ttft_ms=400"]
    code = main(["sweep", str(project / "sweep.yaml"), "--out", str(out), *changed])
    assert code != 0 and len(copied) == 2
    after = {path: path.read_bytes() for path in (out / "agg").rglob("*") if path.is_file()}
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rows_for_aiperf_come_from_the_folder(project: Path, tmp_path: Path) -> None:
    top = project / "out" / "agg" / "top1"
    target = tmp_path / "rows.jsonl"
    halved = ["--set", "workload.arrival_scale=0.5", "--set", "workload.repeat=1"]
    assert main(["trace", "schedule", str(top), str(target), *halved]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(rows) == 100
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    assert main(["trace", "schedule", str(tmp_path), str(target)]) == 2
