"""Deployments of small stand-in processes: readiness, restarts, refusals, and a clean end."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE_S, is_running, until

from dynosim.config import RunConfig
from dynosim.config.loading import run_config_from_dict
from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch.children import marked_processes
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.specs import DeployOptions
from dynosim_runtime.launch.supervised import ProcessStatus

FAKE = (sys.executable, str(Path(__file__).with_name("fake_live_process.py")))


def plan(workers: int = 2, **live: float) -> RunConfig:
    return run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
            "timing": {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1},
            "engine": {"num_gpu_blocks": 100},
            "cluster": {"workers": workers},
            "live": {"ready_timeout_s": PATIENCE_S, "drain_timeout_s": PATIENCE_S, **live},
        }
    )


class Watched:
    """A deployment of stand-ins, and what was said of it."""

    def __init__(self, out: Path, config: RunConfig, port: int = 0) -> None:
        self.said: list[str] = []
        self.pids: set[int] = set()
        options = DeployOptions(out=out, engine="mock", port=port)
        self.deployment = LocalDeployment(config, options, observe=self.observe, dynosim=FAKE)

    def observe(self, status: ProcessStatus, text: str) -> None:
        self.said.append(f"{status.name}: {text}")
        if status.pid is not None:
            self.pids.add(status.pid)

    def order(self, name: str, text: str) -> int:
        """When something was said."""
        return next(i for i, line in enumerate(self.said) if line.startswith(f"{name}: {text}"))

    def assert_nothing_runs(self) -> None:
        assert self.pids
        assert not [pid for pid in self.pids if is_running(pid)]
        mark = self.deployment._mark
        names = [status.name for status in self.deployment.processes]
        assert not [pid for name in names for pid in marked_processes(f"{mark}/{name}")]


def misbehave(monkeypatch: pytest.MonkeyPatch, **words: list[str]) -> None:
    monkeypatch.setenv("FAKES", json.dumps({k.replace("_", "-"): v for k, v in words.items()}))


async def test_everything_is_ready_inside_and_gone_afterwards(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "out", plan())
    async with watched.deployment as deployment:
        assert {status.state for status in deployment.processes} == {"ready"}
        assert [s.name for s in deployment.processes] == ["worker-0", "worker-1", "frontend"]
        assert all(is_running(pid) for pid in watched.pids)
        summary = json.loads((tmp_path / "out" / "deployment.json").read_text())
        assert summary == json.loads(json.dumps(deployment.summary()))
        assert summary["schema"] == "dynosim.deployment/1"
        assert summary["url"] == f"http://127.0.0.1:{summary['processes'][-1]['port']}"
    watched.assert_nothing_runs()
    assert "worker-0 stops" in (tmp_path / "out" / "logs" / "worker-0.log").read_text()
    assert "frontend: ready" in (tmp_path / "out" / "logs" / "deploy.log").read_text()


async def test_workers_are_stopped_before_the_frontend(tmp_path: Path) -> None:
    watched = Watched(tmp_path, plan())
    async with watched.deployment:
        pass
    told = watched.order("frontend", "told to stop")
    assert max(watched.order(name, "stopped") for name in ("worker-0", "worker-1")) < told


async def test_a_killed_worker_and_a_killed_frontend_come_back(tmp_path: Path) -> None:
    watched = Watched(tmp_path, plan(workers=1))
    async with watched.deployment as deployment:
        for status in deployment.processes:
            assert status.pid is not None
            os.kill(status.pid, signal.SIGKILL)
        await until(lambda: all(s.restarts == 1 for s in deployment.processes))
        await until(lambda: {s.state for s in deployment.processes} == {"ready"})
    assert "worker-0: ended by SIGKILL; starts again in 0.5 s" in watched.said
    watched.assert_nothing_runs()


async def test_what_a_dead_worker_leaves_behind_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, worker_0=["helper", ""])
    watched = Watched(tmp_path, plan(workers=1))
    async with watched.deployment as deployment:
        mark = f"{deployment._mark}/worker-0"
        with_helper = marked_processes(mark)
        assert len(with_helper) == 2
        pid = deployment.processes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: deployment.processes[0].restarts == 1)
        assert not set(with_helper) & set(marked_processes(mark))
    watched.assert_nothing_runs()


@pytest.mark.live
async def test_a_worker_that_crashes_at_the_start_is_given_other_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, worker_0=["exit-1", "exit-1", ""])
    watched = Watched(tmp_path, plan(workers=1))
    async with watched.deployment as deployment:
        assert deployment.processes[0].restarts == 2
    assert "worker-0: ended with exit code 1; starts again in 1 s" in watched.said


@pytest.mark.parametrize(
    ("word", "said"),
    [("exit-3", "ended with exit code 3, 3 times"), ("exit-2", "ended with exit code 2. Its log")],
)
async def test_a_worker_that_never_comes_up_ends_the_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, said: str
) -> None:
    misbehave(monkeypatch, worker_0=[word])
    watched = Watched(tmp_path, plan(workers=1))
    with pytest.raises(LiveError) as caught:
        await watched.deployment.__aenter__()
    assert str(caught.value).startswith(f"worker-0: {said}")
    assert "  the reason is here" in str(caught.value)
    watched.assert_nothing_runs()


async def test_a_worker_that_is_not_ready_in_time_ends_the_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, worker_0=["hang"])
    watched = Watched(tmp_path, plan(workers=1, ready_timeout_s=0.5))
    with pytest.raises(LiveError, match=r"(worker-0|frontend): not ready within 0\.5 s"):
        await watched.deployment.__aenter__()
    watched.assert_nothing_runs()


async def test_a_process_that_ignores_the_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynosim_runtime.launch.deployment.STOP_GRACE_S", 0.1)
    misbehave(monkeypatch, worker_0=["stubborn"])
    watched = Watched(tmp_path, plan(workers=1, drain_timeout_s=0.2))
    async with watched.deployment:
        pass
    assert "worker-0: killed, since it did not end" in watched.said
    watched.assert_nothing_runs()


async def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        watched = Watched(tmp_path / "out", plan(workers=1), port=port)
        with pytest.raises(LiveError, match=f"127.0.0.1:{port}: the port is in use"):
            await watched.deployment.__aenter__()
    assert not watched.said
    assert not (tmp_path / "out").exists()


async def test_two_deployments_do_not_share_a_folder(tmp_path: Path) -> None:
    async with Watched(tmp_path, plan(workers=1)).deployment as deployment:
        second = Watched(tmp_path, plan(workers=1))
        with pytest.raises(LiveError, match="another deployment is running there already"):
            await second.deployment.__aenter__()
        assert not second.said
        assert {status.state for status in deployment.processes} == {"ready"}


async def test_a_cancelled_start_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, worker_0=["hang"])
    watched = Watched(tmp_path, plan(workers=1))
    entering = asyncio.create_task(watched.deployment.__aenter__())
    await until(lambda: "frontend: ready" in watched.said)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    watched.assert_nothing_runs()


@pytest.mark.live
async def test_logs_stay_small_and_the_last_words_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, worker_0=["talk-40000-3"])
    watched = Watched(tmp_path, plan(workers=1, process_log_mib=1, process_log_files=2))
    with pytest.raises(LiveError, match="line 39999"):
        await watched.deployment.__aenter__()
    logs = tmp_path / "logs"
    assert sorted(p.name for p in logs.glob("worker-0*")) == ["worker-0.log", "worker-0.log.1"]
    assert all(path.stat().st_size < (1 << 20) + 1000 for path in logs.glob("worker-0*"))
    text = (logs / "worker-0.log.1").read_text() + (logs / "worker-0.log").read_text()
    numbers = [int(line.split()[1]) for line in text.splitlines() if line.startswith("line")]
    assert numbers[-30_000:] == list(range(10_000, 40_000))
    watched.assert_nothing_runs()
