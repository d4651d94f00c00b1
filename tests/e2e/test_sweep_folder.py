"""The folder of a sweep under attack: a second sweep, a full disk, a changed digit."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dynosim.cli import main

SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 30, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512}
timing: {kind: polynomial}
load: {search: fixed}
space: {cluster.workers: [1, 2]}
"""
FILES = ("trials.parquet", "pareto.parquet", "pareto.png", "report.html", "summary.json")
ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("inline_workers")


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP_FILE)
    return path


def sweep(*arguments: object) -> int:
    return main(["sweep", *map(str, arguments)])


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Writing beyond that fails, in this process and its children, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_second_sweep_in_the_folder_of_a_running_one_is_refused(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    out = tmp_path / "out"
    keys = (
        "space.engine.max_num_seqs={min: 1, max: 40, step: 1}",
        "workload.synthetic.requests=500",
    )  # so much that it runs on while we look
    many = [word for key in keys for word in ("--set", key)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dynosim", "sweep", sweep_file, "--out", out, "--jobs", "1", *many],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        ledger = out / "ledger.jsonl"
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        assert sweep(sweep_file, "--out", out, option, *many) == 2
        message = capsys.readouterr().err
        assert f"{out}: a sweep is running there already (process {process.pid})" in message
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    finally:
        process.kill()
        process.wait()
    assert sweep(sweep_file, "--out", out, option, "--jobs", 1) == (
        2 if option == "--resume" else 0
    )


def test_a_changed_digit_is_not_taken_over(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep(sweep_file, "--out", out, "--jobs", 1) == 0
    ledger = out / "ledger.jsonl"
    text = ledger.read_text()
    value = json.loads(text.splitlines()[1])["report"]["mean_ttft_ms"]
    changed = str(value).replace(str(value)[0], str((int(str(value)[0]) + 1) % 10), 1)
    ledger.write_text(text.replace(str(value), changed, 1))
    assert sweep(sweep_file, "--out", out, "--resume") == 2
    assert "ledger.jsonl:2: damaged" in capsys.readouterr().err


@pytest.mark.live
def test_a_full_disk_costs_one_message_and_nothing_that_was_finished(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert sweep(sweep_file, "--out", whole, "--jobs", 1) == 0
    sizes = sorted((whole / name).stat().st_size for name in (*FILES, "ledger.jsonl"))
    capsys.readouterr()
    for size in [1, *(size - 1 for size in sizes)]:
        with files_of_at_most(size):
            code = sweep(sweep_file, "--out", cut, "--jobs", 1, "--resume")
        message = capsys.readouterr().err
        assert code == 1, (size, message)
        assert "Traceback" not in message and "error: " in message, (size, message)
        assert not any((cut / name).exists() for name in FILES), size
    assert sweep(sweep_file, "--out", cut, "--jobs", 1, "--resume") == 0
    for name in FILES:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
