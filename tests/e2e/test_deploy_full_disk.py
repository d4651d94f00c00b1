"""A deployment whose disk is full, and one crash: records may be lost, service may not."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from disk_support import SmallDisk, needs_mount, small_disk
from test_deploy_command import RUN, Deployed
from test_deploy_processes import Watched, plan
from waiting import PATIENCE_S, is_running, until, wait_until

from dynosim_runtime.launch.display import StartProgress

LEFT_EMPTY = {".lock", "requests.jsonl"}  # files that may hold nothing


def empty_leftovers(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if not path.stat().st_size and path.name not in LEFT_EMPTY]


@pytest.mark.live
@needs_mount
async def test_crashes_on_a_full_disk_are_survived(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 200) as disk:
        out = disk.folder / "out"
        watched = Watched(out, plan())
        async with asyncio.timeout(PATIENCE_S), watched.deployment as deployment:
            disk.fill()
            for status in deployment.processes[1:]:  # a worker and the frontend
                assert status.pid is not None
                os.kill(status.pid, signal.SIGKILL)
            await until(lambda: [s.restarts for s in deployment.processes] == [0, 1, 1])
            await until(lambda: {s.state for s in deployment.processes} == {"ready"})
            assert empty_leftovers(out) == []
            shown = json.loads((out / "deployment.json").read_bytes())["processes"]
            assert [row["restarts"] for row in shown] == [0, 1, 1]
            assert [row["state"] for row in shown] == ["ready"] * 3
            disk.free()
        watched.assert_nothing_runs()
        assert "frontend: stopped" in (out / "logs" / "deploy.log").read_text()


def test_progress_needs_nobody_to_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for file in (open("/dev/full", "w"), os.fdopen(writer, "w")):
        monkeypatch.setattr(sys, "stderr", file)
        with StartProgress(1) as progress:
            for _ in range(3):
                progress.say("x" * 10_000)
        monkeypatch.undo()
        try:
            file.close()
        except OSError:  # what it still holds cannot be written either
            pass


# ---- the real thing ------------------------------------------------------------------------------


class OnFullDisk(Deployed):
    """`dynosim deploy` with its folder on a small disk, and its stderr where nothing fits."""

    def __init__(self, disk: SmallDisk, run_file: Path) -> None:
        run_file.write_text(RUN)
        self.disk = disk
        self.out = disk.folder / "out"
        with open("/dev/full", "w") as full:
            process = subprocess.Popen(
                [sys.executable, "-m", "dynosim", "deploy", str(run_file), "--mock", "--port", "0",
                 "--out", str(self.out), "--json", "--speedup", "10",
                 "--set", "cluster.workers=2"],
                stdout=subprocess.PIPE, stderr=full, text=True,
            )  # fmt: skip
        super().__init__(process)

    def shown(self, name: str) -> dict[str, object]:
        document = json.loads((self.out / "deployment.json").read_bytes())
        return next(row for row in document["processes"] if row["name"] == name)

    def serves(self) -> bool:
        try:
            return self.complete().status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self, name: str, signal_number: signal.Signals) -> None:
        """Returns when it serves again."""
        pid = self.shown(name)["pid"]
        assert isinstance(pid, int)
        os.kill(pid, signal_number)
        wait_until(lambda: self.shown(name)["pid"] not in (pid, None))
        wait_until(lambda: self.shown(name)["state"] == "ready")


@pytest.mark.live
@needs_mount
def test_a_real_deployment_serves_on_with_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 600) as disk:
        running = OnFullDisk(disk, tmp_path / "run.yaml")
        try:
            assert running.serves()
            disk.fill()
            before = len((running.out / "requests.jsonl").read_text().splitlines())
            assert all(running.serves() for _ in range(30))
            running.kill("worker-0", signal.SIGKILL)
            wait_until(lambda: set(running.workers()) == {"worker-0", "worker-1"})
            assert all(running.serves() for _ in range(5))
            running.kill("frontend", signal.SIGKILL)
            wait_until(lambda: set(running.workers()) == {"worker-0", "worker-1"})
            assert all(running.serves() for _ in range(5))
            assert empty_leftovers(running.out) == []
            disk.free()
            wait_until(lambda: _goes_on(running, before))
            time.sleep(1.5)  # for the router's log to be handed to the system
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(PATIENCE_S) == 0
            assert not [pid for pid in running.pids.values() if is_running(pid)]
            router = running.out / "router"
            replay = subprocess.run(
                [sys.executable, "-m", "dynosim", "replay-log", str(router), "--json"],
                capture_output=True, text=True,
            )  # fmt: skip
            assert replay.returncode == 0 and json.loads(replay.stdout)["equal"], replay.stderr
        finally:
            running.process.kill()
            running.process.wait()


def _goes_on(running: OnFullDisk, before: int) -> bool:
    """Records and the router's log are written again."""
    assert running.serves()
    lines = (running.out / "requests.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)
    page = httpx.get(f"{running.url}/metrics", timeout=PATIENCE_S).text
    failing = [line for line in page.splitlines() if line.startswith("dynosim_router_log_failing")]
    return len(lines) > before and failing[0].endswith(" 0.0")
