"""Workers that come and go while a deployment runs: stand-ins first, then real mock workers."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from deploy_support import busy_until, scaled, whole_rows
from live_scaling_support import PLANNER, scaled_plan
from waiting import is_running, until, wait_until

from dynosim.cli import main
from dynosim.workers.lifecycle import Phase
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.specs import DeployOptions
from dynosim_runtime.planner.lives import ALIVE

FAKE = (sys.executable, str(Path(__file__).with_name("fake_live_process.py")))


def deployment_of_stand_ins(out: Path) -> LocalDeployment:
    options = DeployOptions(out=out, engine="mock", port=0)
    return LocalDeployment(scaled_plan(), options, dynosim=FAKE)


def phases(deployment: LocalDeployment) -> list[tuple[str, int, Phase]]:
    return [(life.name, life.worker_id, life.phase) for life in deployment.lives.lives(*ALIVE)]


async def test_workers_are_launched_and_drained_and_one_that_crashes_lives_again(
    tmp_path: Path,
) -> None:
    pids: set[int] = set()
    async with deployment_of_stand_ins(tmp_path / "out") as deployment:
        assert phases(deployment) == [("worker-0", 0, Phase.READY)]
        assert await deployment.launch(None) == "worker-1"
        assert phases(deployment)[1] == ("worker-1", 1, Phase.STARTING)
        await until(lambda: all(phase is Phase.READY for *_, phase in phases(deployment)))
        assert [s.name for s in deployment.processes] == ["worker-0", "worker-1", "frontend"]
        pids |= {s.pid for s in deployment.processes if s.pid is not None}

        (first, _, _) = deployment.processes
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: ("worker-0", 0, Phase.READY) not in phases(deployment))
        assert ("worker-0", 2, Phase.STARTING) in phases(deployment), "it will serve again"
        await until(lambda: ("worker-0", 2, Phase.READY) in phases(deployment))

        deployment.drain("worker-0")
        assert ("worker-0", 2, Phase.DRAINING) in phases(deployment)
        deployment.drain("worker-0")  # told twice is told once
        await until(lambda: [s.name for s in deployment.processes] == ["worker-1", "frontend"])
        assert phases(deployment) == [("worker-1", 1, Phase.READY)]
        assert await deployment.launch(None) == "worker-2", "no name is used twice"
        deployment.drain("worker-1")
    summary = json.loads((tmp_path / "out" / "deployment.json").read_text())
    assert {row["state"] for row in summary["processes"]} == {"stopped"}
    assert not [pid for pid in pids if is_running(pid)]


async def test_the_drain_of_a_deployments_first_worker_does_not_end_it(tmp_path: Path) -> None:
    async with deployment_of_stand_ins(tmp_path / "out") as deployment:
        waiting = asyncio.create_task(deployment.wait())
        await deployment.launch(None)
        deployment.drain("worker-0")
        await until(lambda: [s.name for s in deployment.processes] == ["worker-1", "frontend"])
        assert not waiting.done()
        waiting.cancel()


# ---- the command, with real mock workers ---------------------------------------------------------


def replayed(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["replay-log", str(out / "decisions"), "--json"]) == 0
    verdict: dict[str, Any] = json.loads(capsys.readouterr().out)
    return verdict


def test_a_load_step_brings_workers_and_its_end_sends_them_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quick: one worker becomes two, which serve, and one again; all decisions come out again."""
    quick = {**PLANNER, "max_endpoint": 2, "load_adjustment_interval_ms": 250}
    with scaled(tmp_path, "--speedup", "2", planner=quick) as deployed:
        pids = deployed.pids()
        two_serve = busy_until(
            deployed, lambda: len(served_by(deployed.out)) > 1, num_clients=16, max_tokens=50
        )
        assert asyncio.run(two_serve) == {200}
        pids |= deployed.pids()
        wait_until(lambda: len(deployed.ready()) == 1 and len(deployed.pids()) == 2)
        ready = 'dynamo_planner_replicas{phase="ready",pool="workers"} 1.0'
        wait_until(lambda: ready in deployed.metrics())
        sizes = deployed.sizes()
        assert set(sizes) == {1, 2} and sizes[0] == sizes[-1] == 1
    assert not [name for name, pid in pids.items() if is_running(pid)]
    verdict = replayed(tmp_path / "out", capsys)
    assert verdict["equal"] and verdict["num_decisions"] >= 3


def served_by(out: Path) -> set[int]:
    return {row["decode_worker_id"] for row in whole_rows(out / "requests.jsonl")}
