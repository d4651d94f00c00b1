"""Engines whose guard is killed or stopped, that fall silent, or whose words cannot be written."""

import asyncio
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import fake_engine
import pytest
from waiting import PATIENCE_S, is_running

from dynosim.config.loading import run_config_from_dict
from dynosim_runtime.adapters import engine_http
from dynosim_runtime.worker import engine, guard, served
from dynosim_runtime.worker.engine import EngineProcess
from dynosim_runtime.worker.guard import PR_SET_CHILD_SUBREAPER
from dynosim_runtime.worker.make import make_served

ENGINE = """
import os, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"],
                          start_new_session=True)
print("pids", os.getpid(), helper.pid, flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")


@pytest.fixture(autouse=True)
def no_subreaper_afterwards() -> Iterator[None]:
    """This process must not adopt the orphans of other tests."""
    yield
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Started:
    """An engine of two processes under its guard."""

    def __init__(self, folder: Path) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.process = EngineProcess("w", [sys.executable, "-S", "-c", ENGINE], {}, self.scratch)
        self.pids: list[int] = []

    async def start(self) -> None:
        await self.process.start()
        while "pids" not in self.process.last_words():
            await asyncio.sleep(0.01)
        words = self.process.last_words().split()
        self.pids = [int(pid) for pid in words[words.index("pids") + 1 :][:2]]

    @property
    def guard(self) -> int:
        assert self.process._process is not None
        return self.process._process.pid

    def left(self) -> list[int]:
        """Its processes that still run."""
        return [pid for pid in (self.guard, *self.pids) if is_running(pid)]


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    started = Started(tmp_path)
    async with asyncio.timeout(PATIENCE_S):
        await started.start()
    yield started
    for pid in started.left():
        os.kill(pid, signal.SIGKILL)


async def test_a_killed_guard_ends_its_engine_and_is_noticed(started: Started) -> None:
    os.kill(started.guard, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        status = await started.process.wait()
    assert status == -signal.SIGKILL
    assert started.left() == []
    said = str(started.process.died(status, "while it was serving"))
    assert "the engine's guard was ended by signal 9 while it was serving" in said


async def test_an_engine_without_its_guard_is_stopped_at_once(started: Started) -> None:
    os.kill(started.guard, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        await started.process.stop()
    assert started.left() == []


async def test_a_guard_takes_its_engine_along_even_without_a_worker(tmp_path: Path) -> None:
    command = [sys.executable, "-I", guard.__file__, str(tmp_path / "scratch"), "sleep", "600"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    async with asyncio.timeout(PATIENCE_S):
        while not (engines := guard.children(process.pid)):
            await asyncio.sleep(0.01)
        while b"sleep" not in Path(f"/proc/{engines[0]}/cmdline").read_bytes():
            await asyncio.sleep(0.01)  # until it runs its program
        process.kill()
        process.wait()
        while is_running(engines[0]):
            await asyncio.sleep(0.01)


async def test_a_guard_that_hangs_is_killed(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def is_to_be_passed_on(record: logging.LogRecord) -> bool:
        """Who hangs has little time; who was killed may need it all, on a busy machine."""
        told.append(record.getMessage())
        if "is killed" in told[-1]:
            monkeypatch.setattr(engine, "KILL_TIMEOUT_S", PATIENCE_S)
        return True

    monkeypatch.setattr(engine, "KILL_TIMEOUT_S", 0.1)
    monkeypatch.setattr(engine.log, "filters", [is_to_be_passed_on])
    os.kill(started.guard, signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE_S):
        await started.process.stop(timeout_s=0.1)
    assert told == [
        "w: the engine did not end within 0.1 s",
        "w: the engine's guard does not end; it is killed",
    ]
    assert started.left() == []


async def test_words_that_cannot_be_written_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full").open("w")
    monkeypatch.setattr(sys, "stdout", full)
    started = Started(tmp_path)
    async with asyncio.timeout(PATIENCE_S):
        await started.start()
        assert len(started.left()) == 3
        await started.process.stop()
    monkeypatch.undo()
    with suppress(OSError):  # what it still holds cannot be written either
        full.close()
    assert started.left() == []


async def test_an_engine_that_answers_no_more_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "OWN_HEALTH_INTERVAL_S", 0.05)
    monkeypatch.setattr(engine_http, "CALL_TIMEOUT_S", PATIENCE_S)  # a slow answer is one
    for name, value in fake_engine.install(tmp_path).items():
        monkeypatch.setenv(name, value)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 100}))
    plan = run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
            "timing": {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1},
            "engine": {"block_size": 16, "num_gpu_blocks": 101},
            "live": {"first_token_timeout_s": 0.3, "served_model_name": "tiny"},
        }
    )
    worker = make_served(
        plan, name="w", engine="vllm", host="127.0.0.1", port=0, model=model,
        engine_python=None, attach=None, speedup=1.0,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S):
        await worker.start()
        died = asyncio.ensure_future(worker.died())
        await asyncio.sleep(0.5)  # longer than the limit: it answers
        assert not died.done()
        (tmp_path / "hang").touch()
        assert "has not answered /health for 0.3 s" in str(await died)
        await worker.stop()
    assert not [pid for pid in map(int, (tmp_path / "pids").read_text().split()) if is_running(pid)]
