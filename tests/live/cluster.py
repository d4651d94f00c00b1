"""A real deployment, started and stopped with the command that users type."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from deploy_support import whole_rows
from waiting import is_running

ROOT = Path(__file__).resolve().parents[2]
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
AIPERF = ROOT / ".venv-aiperf" / "bin" / "aiperf"


def dynosim(
    *arguments: str | Path, cwd: Path = ROOT, timeout_s: float = 600.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its standard output and exit code."""
    command = [sys.executable, "-m", "dynosim", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s)


def write_plan(folder: Path, **sections: Any) -> Path:
    """A run file of the sections given; JSON is YAML."""
    path = folder / "plan.yaml"
    path.write_text(json.dumps(sections, default=str))
    return path


# Of vLLM: in bfloat16 two logits are often equal but for how a prompt was cut into chunks.
EXACT = ["--dtype", "float32"]

# How long the frontend may take to answer while engines start beside it on the same two cores.
PATIENCE_S = 120.0


class Cluster:
    """`dynosim deploy` around a block of code; the folder `out` keeps logs and records."""

    def __init__(self, plan: Path, out: Path, *arguments: str | Path) -> None:
        self.out = out
        self._command = [
            sys.executable, "-m", "dynosim", "deploy", str(plan), "--out", str(out),
            "--port", "0", "--json", *map(str, arguments),
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            self._wait_for_start()
        except BaseException:  # a test run that is interrupted meanwhile leaves nothing running
            self._process.terminate()
            self._process.wait(timeout=300)
            raise
        return self

    def _wait_for_start(self) -> None:
        assert self._process.stdout is not None
        started = self._process.stdout.readline()
        if not started:
            _, errors = self._process.communicate()
            raise AssertionError(f"deploy did not start: {errors}")
        rest = (
            ""
            if started.rstrip().endswith("}") and started.count("{") == started.count("}")
            else _rest_of_document(started, self._process.stdout)
        )
        self.description = json.loads(started + rest)
        self.url: str = self.description["url"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            _, self.errors = self._process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        if kind is None:
            assert self._process.returncode in (0, 130), self.errors
            for process in self.description["processes"]:
                assert not is_running(process["pid"]), f"{process['name']} still runs"

    def pid_of(self, name: str) -> int:
        """The process of a worker or of the frontend, as it was when all were ready."""
        pids = [p["pid"] for p in self.description["processes"] if p["name"] == name]
        assert len(pids) == 1, f"{name}: {self.description['processes']}"
        return int(pids[0])

    def workers(self) -> dict[str, Any]:
        """The frontend's view of its workers, by name."""
        rows = httpx.get(f"{self.url}/workers", timeout=PATIENCE_S).json()["workers"]
        return {row["name"]: row for row in rows}

    def metric(self, name: str) -> float:
        """The sum of a metric of the frontend over its labels."""
        return metric_of(self.url, name)

    def records(self) -> list[dict[str, Any]]:
        """The frontend's records so far."""
        return whole_rows(self.out / "requests.jsonl")

    def replay(self) -> dict[str, Any]:
        """What `dynosim replay-log` says of the router's log. Call after the deployment's end."""
        result = dynosim("replay-log", self.out / "router", "--json")
        assert result.returncode == 0, result.stdout + result.stderr
        document: dict[str, Any] = json.loads(result.stdout)
        return document


def metric_of(url: str, name: str) -> float:
    """The sum of a Prometheus metric over its labels."""
    total = 0.0
    for line in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")):
            total += float(line.rpartition(" ")[2])
    return total


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no memory")


def wait_until(condition: Any, *, timeout_s: float = 300.0) -> None:
    """Look every 50 ms until `condition()` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def _rest_of_document(first_line: str, lines: Any) -> str:
    rest = ""
    while True:
        rest += lines.readline()
        try:
            json.loads(first_line + rest)
        except json.JSONDecodeError:
            continue
        return rest
