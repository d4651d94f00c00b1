"""`--executor ray` on a cluster of several machines (here: several of Ray's nodes on this one)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

pytestmark = [pytest.mark.live, pytest.mark.timeout(1200)]

SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 1500, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  cluster.workers: [1, 2, 3]
  engine.num_gpu_blocks: {min: 40, max: 200, step: 40}
constraints: {sla: {ttft_ms: 150, itl_ms: 30}}
load: LOAD
"""
LOADS = {"fixed": "{search: fixed}", "capacity": "{search: capacity, min_requests: 0}"}
SEARCHES = {"grid": "{method: grid}", "tpe": "{method: tpe, trials: 12, batch: 6}"}
FILES = ("trials.parquet", "pareto.parquet", "pareto.png", "report.html", "summary.json")
ROOT = str(Path(__file__).parents[2])
MIB = 1 << 20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without cores; machines of one core are added."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 80 * MIB, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    try:
        yield made
    finally:
        made.shutdown()


def add_machine(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 * MIB)


def kill_machine(node: Any, *, at_work: bool = True) -> None:
    """Its raylet and what that has started, at once; `at_work`: while it runs a task."""
    (raylet,) = (info.process.pid for info in node.all_processes["raylet"])
    deadline_s = time.monotonic() + 300
    while at_work and not any([is_caught_at_work(pid) for pid in children_of(raylet)]):
        assert time.monotonic() < deadline_s, "it got no task"
        time.sleep(0.005)
    for pid in (raylet, *children_of(raylet)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_caught_at_work(pid: int) -> bool:
    """Whether a worker of Ray's runs a task, which it names as its command; if so it is halted."""
    command = Path(f"/proc/{pid}/cmdline")
    with suppress(OSError):
        if b"_answered" in command.read_bytes():
            os.kill(pid, signal.SIGSTOP)  # or it may have answered by the time that it is killed
            if b"_answered" in command.read_bytes():
                return True
            os.kill(pid, signal.SIGCONT)
    return False


def children_of(parent: int) -> list[int]:
    """A process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def write_sweep(folder: Path, load: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP_FILE.replace("LOAD", LOADS[load]))
    return path


def started(*arguments: object, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "dynosim", "sweep", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT, **env},
    )


def done(process: "subprocess.Popen[str]", timeout_s: float = 600) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=timeout_s)
    return process.returncode, out, errors


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()[1:]]


def wait_for_lines(out: Path, number: int, process: "subprocess.Popen[str]") -> None:
    ledger = out / "ledger.jsonl"
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def assert_same(one: Path, other: Path) -> None:
    for name in (*FILES, *(["probes.parquet"] if (one / "probes.parquet").exists() else [])):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    ("load", "search"), [("fixed", "grid"), ("capacity", "grid"), ("capacity", "tpe")]
)
def test_a_machine_killed_in_mid_sweep_costs_nothing(
    cluster: Any, tmp_path: Path, load: str, search: str
) -> None:
    path = write_sweep(tmp_path, load)
    options = ["--set", f"search={SEARCHES[search]}"]
    local, on_ray = tmp_path / "local", tmp_path / "ray"
    code, _, errors = done(started(path, "--out", local, "--jobs", 2, *options))
    assert code == 0, errors
    doomed = add_machine(cluster)
    process = started(
        path, "--out", on_ray, "--executor", "ray", "--ray-address", cluster.address, *options
    )
    wait_for_lines(on_ray, 5, process)
    kill_machine(doomed, at_work=search != "tpe")  # there it may wait between batches
    add_machine(cluster)
    code, out, errors = done(process)
    assert code == 0, errors
    assert "Traceback" not in errors and "aylet" not in errors + out
    assert search == "tpe" or "were run again elsewhere" in errors  # between batches it waits
    told = [(line["trial_id"], line.get("probe", {}).get("load")) for line in lines(on_ray)]
    assert len(told) == len(set(told)) == len(lines(local))
    assert_same(local, on_ray)


def test_a_machine_that_joins_is_used_and_ctrl_c_keeps_what_was_finished(
    cluster: Any, tmp_path: Path
) -> None:
    path, out = write_sweep(tmp_path, "fixed"), tmp_path / "out"
    ray = ["--executor", "ray"]
    wide = ["--set", "space.engine.max_num_batched_tokens={min: 512, max: 1024, step: 16}"]
    add_machine(cluster)
    process = started(path, "--out", out, *ray, *wide, RAY_ADDRESS=cluster.address)
    wait_for_lines(out, 3, process)
    add_machine(cluster)
    wait_for_lines(out, 10, process)
    process.send_signal(signal.SIGINT)
    code, _, errors = done(process)
    assert code == 130, errors
    assert "trials are kept in" in errors and "Traceback" not in errors
    narrow = ["--jobs", 2, "--resume", *ray, *wide]
    finished = len(lines(out))
    code, _, errors = done(started(path, "--out", out, *narrow, RAY_ADDRESS=cluster.address))
    assert code == 0, errors
    ids = [line["trial_id"] for line in lines(out)]
    assert finished < len(ids) == len(set(ids)) == 3 * 5 * 33


def test_without_an_address_ray_is_started_and_ended(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, "capacity")
    local, on_ray = tmp_path / "local", tmp_path / "ray"
    assert done(started(path, "--out", local))[0] == 0
    before = set(Path("/tmp").glob("dynosim-ray-*"))
    code, _, errors = done(started(path, "--out", on_ray, "--executor", "ray", TMPDIR="/tmp"))
    assert code == 0, errors
    assert_same(local, on_ray)
    assert set(Path("/tmp").glob("dynosim-ray-*")) <= before
