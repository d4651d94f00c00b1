"""One process kept running: how often it is started, after what wait, and what is said of it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import PATIENCE_S, until

from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch import lifecycle, supervised
from dynosim_runtime.launch.process_log import ProcessLog
from dynosim_runtime.launch.specs import ProcessSpec
from dynosim_runtime.launch.supervised import ProcessStatus, SupervisedProcess


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays a hundredth as long; they double as ever."""
    monkeypatch.setattr(lifecycle, "FIRST_DELAY_S", 0.005)
    monkeypatch.setattr(supervised, "POLL_INTERVAL_S", 0.002)


class Kept:
    """A shell script under supervision; ready at once, or never."""

    def __init__(
        self,
        folder: Path,
        script: str,
        *,
        becomes_ready: bool = True,
        once_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._once_ready = once_ready
        self.said: list[str] = []
        self.seen: list[ProcessStatus] = []
        self._becomes_ready = becomes_ready
        self.process = SupervisedProcess(
            ProcessSpec(name="w", role="worker", command=("/bin/sh", "-c", script), port=5),
            log=ProcessLog(folder / "w.log"),
            mark=f"test/{folder}",
            probe=self._probe,
            liveness=self._liveness,
            ready_timeout_s=PATIENCE_S,
            observe=self._observe,
        )

    async def _probe(self, spec: ProcessSpec) -> int | None:
        if not self._becomes_ready:
            await asyncio.Event().wait()
        return 7

    async def _liveness(self, spec: ProcessSpec) -> bool:
        return True

    def _observe(self, status: ProcessStatus, text: str) -> None:
        self.seen.append(status)
        self.said.append(text.split(", pid")[0])
        if text == "ready":
            self._once_ready()

    async def until_said(self, count: int, text: str) -> None:
        await until(lambda: self.said.count(text) >= count)


async def test_delays_double_while_it_never_becomes_ready_and_restarts_are_counted(
    tmp_path: Path,
) -> None:
    kept = Kept(tmp_path, "exit 3", becomes_ready=False)
    kept.process.may_give_up = False
    kept.process.run()
    await kept.until_said(4, "started")
    await kept.process.stop(PATIENCE_S)
    assert kept.said[:7] == [
        "started",
        "ended with exit code 3; starts again in 0.005 s",
        "started",
        "ended with exit code 3; starts again in 0.01 s",
        "started",
        "ended with exit code 3; starts again in 0.02 s",
        "started",
    ]
    assert [status.restarts for status in kept.seen[:7]] == [0, 0, 1, 1, 2, 2, 3]
    assert [status.state for status in kept.seen[:4]] == [
        "starting", "backing off", "starting", "backing off",
    ]  # fmt: skip
    assert kept.process.status.state == "stopped"
    assert kept.process.status.port == 5


async def test_health_for_long_enough_begins_the_delays_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "HEALTHY_S", 0.0)  # any will do
    ready = tmp_path / "ready"
    script = f"until rm {ready} 2>/dev/null; do sleep 0.01; done; kill -9 $$"
    kept = Kept(tmp_path, script, once_ready=ready.touch)
    kept.process.may_give_up = False
    kept.process.run()
    await kept.until_said(3, "ready")
    await kept.process.stop(PATIENCE_S)
    ends = [text for text in kept.said if "starts again" in text]
    assert ends[:2] == ["ended by SIGKILL; starts again in 0.005 s"] * 2
    assert kept.process.status.port == 7  # where it was found to serve


@pytest.mark.parametrize(("code", "num_starts"), [(1, 3), (2, 1)])
async def test_it_is_given_up_after_three_tries_or_one_that_would_end_the_same_way(
    tmp_path: Path, code: int, num_starts: int
) -> None:
    kept = Kept(tmp_path, f"echo the reason; exit {code}", becomes_ready=False)
    with pytest.raises(LiveError) as caught:
        await asyncio.wait_for(kept.process.run(), PATIENCE_S)
    assert kept.said.count("started") == num_starts
    assert kept.said[-2:] == [f"ended with exit code {code}", "given up"]
    times = f", {num_starts} times" if num_starts > 1 else ""
    assert str(caught.value).startswith(f"w: ended with exit code {code}{times}. Its log ")
    assert str(caught.value).endswith("\n".join(["  the reason"] * num_starts))
    status = kept.process.status
    assert (status.state, status.restarts, status.pid) == ("failed", num_starts - 1, None)
    await kept.process.stop(PATIENCE_S)


async def test_it_is_ready_between_its_probe_and_its_end(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "exec sleep 600")
    kept.process.run()
    await kept.until_said(1, "ready")
    status = kept.process.status
    assert kept.process.is_ready
    assert status.pid is not None
    assert (status.name, status.role, status.state) == ("w", "worker", "ready")
    await kept.process.stop(PATIENCE_S)
    assert not kept.process.is_ready
    assert kept.said == ["started", "ready", "told to stop (at most 120 s)", "stopped"]
    assert kept.process.status.pid is None
