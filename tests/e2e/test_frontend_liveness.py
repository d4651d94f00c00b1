"""Processes that run but do not answer: shown, waited for a little, and started again."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from test_deploy_processes import Watched, plan
from waiting import PATIENCE_S, is_running, until

from dynosim_runtime.card import LiveCard
from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch import readiness, supervised
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.process_log import ProcessLog
from dynosim_runtime.launch.specs import ProcessSpec
from dynosim_runtime.launch.supervised import ProcessStatus, SupervisedProcess
from dynosim_runtime.testing.discovery import card_of

NEVER_S = 10 * PATIENCE_S


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes come quickly, and few silent ones are enough where a test says so."""
    monkeypatch.setattr(supervised, "LIVENESS_INTERVAL_S", 0.02)
    monkeypatch.setattr(readiness, "LIVENESS_TIMEOUT_S", 0.1)
    monkeypatch.setattr(supervised, "PATIENCE_S", {"frontend": NEVER_S, "worker": NEVER_S})


# ---- frozen for real -----------------------------------------------------------------------------


def shown(deployment: LocalDeployment, name: str) -> dict[str, Any]:
    """What deployment.json says of a process."""
    document = json.loads((deployment.out / "deployment.json").read_bytes())
    return next(row for row in document["processes"] if row["name"] == name)


@pytest.mark.live
async def test_frozen_processes_are_shown_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "SILENT_STOP_S", 0.2)
    watched = Watched(tmp_path, plan(workers=1, lease_s=1.0, drain_timeout_s=NEVER_S))
    names = ("frontend", "worker-0")
    async with asyncio.timeout(PATIENCE_S):
        async with watched.deployment as deployment:
            pids = {name: shown(deployment, name)["pid"] for name in names}
            for name, pid in pids.items():
                os.kill(pid, signal.SIGSTOP)
                await until(lambda name=name: shown(deployment, name)["state"] == "not answering")
                # Only now: one that is out of breath on a busy machine must not be killed, too.
                role = name.partition("-")[0]
                monkeypatch.setitem(supervised.PATIENCE_S, role, 0.1)
                await until(lambda name=name: shown(deployment, name)["restarts"] == 1)
                monkeypatch.setitem(supervised.PATIENCE_S, role, NEVER_S)
                await until(lambda name=name: shown(deployment, name)["state"] == "ready")
                assert shown(deployment, name)["pid"] not in (pid, None)
            os.kill(shown(deployment, "frontend")["pid"], signal.SIGSTOP)
            await until(lambda: shown(deployment, "frontend")["state"] == "not answering")
    for name in names:
        said = [line.partition(": ")[2] for line in watched.said if line.startswith(name)]
        reason = "killed, since it has not answered for "
        (killed,) = [place for place, text in enumerate(said) if text.startswith(reason)]
        assert said[killed - 1] == "does not answer"
        assert said[killed].endswith(" s; starts again in 0.5 s")
    # it is given little time to end then: not that of a process which answers
    assert "frontend: killed, since it did not end" in watched.said
    watched.assert_nothing_runs()


# ---- what silence means, on a process that does nothing ------------------------------------------


class Sleeper:
    """A supervised process that only sleeps.

    `answers` is what its probes find when those that are `scripted` have been.
    """

    def __init__(self, folder: Path, role: Literal["frontend", "worker"]) -> None:
        self.answers = True
        self.scripted: list[bool] = []
        self.num_probes = 0
        self.said: list[str] = []
        spec = ProcessSpec(name="p", role=role, command=("sleep", "600"))
        self.process = SupervisedProcess(
            spec,
            log=ProcessLog(folder / "p.log"),
            mark=f"test/{folder.name}",
            probe=self._ready,
            liveness=self._is_alive,
            ready_timeout_s=PATIENCE_S,
            observe=self._observe,
        )

    async def _ready(self, spec: ProcessSpec) -> int | None:
        return None

    async def _is_alive(self, spec: ProcessSpec) -> bool:
        self.num_probes += 1
        return self.scripted.pop(0) if self.scripted else self.answers

    def _observe(self, status: ProcessStatus, text: str) -> None:
        self.said.append(text)

    async def probes(self, count: int) -> None:
        """Wait for so many more."""
        wanted = self.num_probes + count
        await until(lambda: self.num_probes >= wanted)


@asynccontextmanager
async def sleeper(folder: Path, role: Literal["frontend", "worker"]) -> AsyncIterator[Sleeper]:
    it = Sleeper(folder, role)
    async with asyncio.timeout(PATIENCE_S):
        it.process.run()
        await until(lambda: it.process.is_ready)
        it.process.may_give_up = False
        yield it
        pid = it.process.status.pid
        await it.process.stop(1.0)
        assert pid is None or not is_running(pid)


async def test_a_process_that_answers_again_in_time_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "PATIENCE_S", {"worker": NEVER_S})
    async with sleeper(tmp_path, "worker") as it:
        pid = it.process.status.pid
        await it.probes(3)
        for _ in range(2):
            it.answers = False
            await it.probes(10)
            assert it.process.status.state == "not answering"
            it.answers = True
            await it.probes(2)
            assert it.process.status.state == "ready"
        assert (it.process.status.pid, it.process.status.restarts) == (pid, 0)
    assert it.said[2:6] == ["does not answer", "answers again"] * 2


async def test_a_silence_that_is_long_but_seen_once_or_twice_is_no_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that was itself suspended finds one at its first probe."""
    monkeypatch.setattr(supervised, "PATIENCE_S", {"frontend": 0.0})
    async with sleeper(tmp_path, "frontend") as it:
        almost = [False] * (supervised.MAX_SILENT_PROBES - 1)
        it.scripted = [*almost, True] * 3
        await it.probes(3 * supervised.MAX_SILENT_PROBES + 2)
        assert it.process.status.restarts == 0
        it.scripted = [*almost, False]
        await until(lambda: it.process.status.restarts == 1)
    (killed,) = [text for text in it.said if text.startswith("killed")]
    assert re.fullmatch(
        r"killed, since it has not answered for \d+ s; starts again in 0\.5 s", killed
    )


@pytest.mark.parametrize(("role", "other"), [("worker", "frontend"), ("frontend", "worker")])
async def test_each_role_has_its_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Any, other: str
) -> None:
    monkeypatch.setattr(supervised, "PATIENCE_S", {role: 0.1, other: NEVER_S})
    async with sleeper(tmp_path, role) as it:
        it.answers = False
        await until(lambda: it.process.status.restarts == 1)


@pytest.mark.live
async def test_a_process_that_cannot_be_started_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = supervised.start_child
    failures = iter(["no more processes"] * 2)

    def start_later(*args: Any) -> Any:
        for reason in failures:
            raise LiveError(reason)
        return start(*args)

    async with sleeper(tmp_path, "worker") as it:
        monkeypatch.setattr(supervised, "start_child", start_later)
        pid = it.process.status.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: it.process.status.restarts == 1)
    assert [text for text in it.said if "no more" in text] == [
        "no more processes; another try in 1 s",
        "no more processes; another try in 2 s",
    ]
    with pytest.raises(LiveError, match="no such program"):
        await _never_started(tmp_path)


async def _never_started(folder: Path) -> None:
    """Before the deployment has been ready, that ends it."""
    it = Sleeper(folder, "worker")
    it.process._spec = ProcessSpec(name="no such program", role="worker", command=("/no/such",))
    async with asyncio.timeout(PATIENCE_S):
        await it.process.run()


class BreakingDiscovery:
    """Each watch shows so many workers and then breaks, but the last."""

    def __init__(self, *shown: int) -> None:
        self._shown = list(shown)

    async def watch(self) -> AsyncIterator[dict[int, LiveCard]]:
        count = self._shown.pop(0)
        if count:
            yield {number: card_of(f"w{number}") for number in range(count)}
        if self._shown:
            raise OSError(5, "Input/output error")
        await asyncio.Event().wait()

    async def close(self) -> None: ...


async def test_discovery_that_breaks_later_does_not_end_the_deployment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readiness, "RETRY_S", 0.01)
    monkeypatch.setattr(readiness, "make_discovery", lambda *_: BreakingDiscovery(1, 0, 0, 2))
    known = readiness.Readiness("", 1.0)
    watching = asyncio.create_task(known.watch_cards())
    worker = ProcessSpec(name="w1", role="worker", command=())
    async with asyncio.timeout(PATIENCE_S):
        while not await known.is_answering(worker):
            await asyncio.sleep(0.01)
    watching.cancel()
    assert len([r for r in caplog.records if "Input/output error" in r.getMessage()]) == 1
    monkeypatch.setattr(readiness, "make_discovery", lambda *_: BreakingDiscovery(0, 1))
    with pytest.raises(OSError):  # before it has ever worked, that ends the start
        await readiness.Readiness("", 1.0).watch_cards()
