"""`dynosim deploy` with its real frontend and real mock workers, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import PATIENCE_S, is_running, wait_until

RUN = """\
name: small
workload: {synthetic: {requests: 10, isl: 64, osl: 16, rate_rps: 4}}
timing: {kind: fixed, prefill_ms: 10, decode_ms: 5}
engine: {num_gpu_blocks: 2000, max_model_len: 4096}
cluster: {workers: 1}
router: {mode: kv}
live: {ready_timeout_s: 120, drain_timeout_s: 120}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


class Deployed:
    """A running `dynosim deploy --json` and the document it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        self.document: dict[str, Any] = json.loads(line)
        self.url: str = self.document["url"]
        self.pids = {row["name"]: row["pid"] for row in self.document["processes"]}

    def models(self) -> list[str]:
        """The names of those that the frontend serves."""
        rows = httpx.get(f"{self.url}/v1/models", timeout=PATIENCE_S).json()["data"]
        return [row["id"] for row in rows]

    def complete(self, prompt: str = "Once upon a time", **fields: Any) -> httpx.Response:
        body = {
            "model": self.models()[0],
            "prompt": prompt,
            "max_tokens": 8,
            "ignore_eos": True,
            **fields,
        }
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=PATIENCE_S)

    def workers(self) -> dict[str, str]:
        """Names and addresses of those the frontend sends requests to."""
        rows = httpx.get(f"{self.url}/workers", timeout=PATIENCE_S).json()["workers"]
        return {row["name"]: row["url"] for row in rows if not row["is_draining"]}

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Exit code and stderr after this signal."""
        self.process.send_signal(number)
        stderr = self.process.communicate(timeout=PATIENCE_S)[1]
        return self.process.returncode, stderr


@contextmanager
def deployed(run_file: Path, *options: str) -> Iterator[Deployed]:
    process = subprocess.Popen(
        [sys.executable, "-m", "dynosim", "deploy", str(run_file), "--mock", "--port", "0",
         "--out", str(run_file.parent / "out"), "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        yield Deployed(process)
    finally:
        process.terminate()  # a second signal kills what still runs
        process.communicate(timeout=PATIENCE_S)


def test_it_serves_until_ctrl_c_and_leaves_nothing_running(run_file: Path) -> None:
    with deployed(run_file, "--speedup", "10", "--set", "cluster.workers=2") as running:
        assert [row["state"] for row in running.document["processes"]] == ["ready"] * 3
        assert set(running.workers()) == {"worker-0", "worker-1"}
        assert all(is_running(pid) for pid in running.pids.values())
        assert running.complete().json()["usage"]["completion_tokens"] == 8
        code, stderr = running.end(signal.SIGINT)
        assert code == 130
        assert "worker-0: ready" in stderr
        assert "everything is stopped" in stderr
        assert not [pid for pid in running.pids.values() if is_running(pid)]
        out = run_file.parent / "out"
        assert (out / "plan" / "config.yaml").is_file()
        logs = {path.name for path in (out / "logs").iterdir()}
        assert logs == {"deploy.log", "frontend.log", "worker-0.log", "worker-1.log"}


@pytest.mark.live
def test_a_killed_worker_is_replaced_and_a_terminated_deployment_finishes_what_it_has(
    run_file: Path,
) -> None:
    with deployed(run_file) as running:
        before = running.workers()
        os.kill(running.pids["worker-0"], signal.SIGKILL)
        wait_until(lambda: "worker-0" in running.workers() and running.workers() != before)
        # What discovery shows already, a frontend may not have seen yet.
        wait_until(lambda: bool(running.models()))
        body = {"model": running.models()[0], "max_tokens": 300, "stream": True, "prompt": "x",
                "ignore_eos": True}  # fmt: skip
        url = f"{running.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=PATIENCE_S) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            running.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert running.process.wait(PATIENCE_S) == 0
        assert running.process.stderr is not None
        said = running.process.stderr.read()
        assert "worker-0: ended by SIGKILL; starts again in 0.5 s" in said
        assert not [pid for pid in running.pids.values() if is_running(pid)]


@pytest.mark.live
def test_a_second_ctrl_c_kills(run_file: Path) -> None:
    with deployed(run_file, "--set", "live.drain_timeout_s=600") as running:
        os.kill(running.pids["worker-0"], signal.SIGSTOP)  # does not react to being told to stop
        running.process.send_signal(signal.SIGINT)
        assert running.process.stderr is not None
        for line in running.process.stderr:
            if "once more to kill" in line:
                break
        assert running.end(signal.SIGINT)[0] == 130
        assert not [pid for pid in running.pids.values() if is_running(pid)]


@pytest.mark.live
def test_nothing_outlives_a_killed_deployment(run_file: Path) -> None:
    with deployed(run_file) as running:
        running.process.kill()
        wait_until(lambda: not [pid for pid in running.pids.values() if is_running(pid)])


def test_a_plan_that_needs_gpus_says_what_is_missing(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi
    done = subprocess.run(
        [sys.executable, "-m", "dynosim", "deploy", str(run_file), "--real", "--port", "0",
         "--set", "engine.tensor_parallel=4", "--set", "cluster.workers=2",
         "--set", "model=Qwen/Qwen3-32B"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "error: plan needs 2 workers x TP 4 = 8 GPUs, this machine has none: nvidia-smi not found; "
        "use --mock, or --engine vllm-cpu --model DIR for the real engine on a CPU\n"
    )
    assert not (tmp_path / "deployments").exists()
