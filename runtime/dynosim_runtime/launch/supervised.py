"""Keeps one process running: starts it, waits until it serves, starts it again when it ends.

One that runs but answers no more has ended for those it served: it is killed.
"""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch.children import kill_all, signal_child, start_child
from dynosim_runtime.launch.lifecycle import Backoff, ProcessEvent, State, next_state
from dynosim_runtime.launch.process_log import ProcessLog
from dynosim_runtime.launch.specs import ProcessSpec

START_ATTEMPTS = 3  # ends in a row, before the deployment has been ready, that end it
EXIT_BAD_INPUT = 2  # a process that ends so will do so again
POLL_INTERVAL_S = 0.05
KILL_WAIT_S = 10.0  # for the system to clear a killed process away, and for its log to be written

SILENT_STOP_S = 5.0  # for one that does not answer to end when it is told to
LIVENESS_INTERVAL_S = 2.0
MAX_SILENT_PROBES = 3  # in a row, at least, and for so long, before it is killed:
PATIENCE_S = {"frontend": 15.0, "worker": 30.0}

Probe = Callable[[ProcessSpec], Awaitable[int | None]]
"""Returns once the process serves; the port it serves on, if known."""

Liveness = Callable[[ProcessSpec], Awaitable[bool]]
"""Whether a process that has served answers now; takes a bounded time, raises nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """What is to be told of a process."""

    name: str
    role: str
    state: str
    pid: int | None
    port: int | None
    restarts: int
    log: Path


class _Life(NamedTuple):
    """How a process has lived, from its start to its end."""

    healthy_s: float  # since it was ready
    reason: str  # of its end
    is_hopeless: bool  # it would end the same way again


Observer = Callable[[ProcessStatus, str], None]
"""Hears of every change of a process, in words too."""


class SupervisedProcess:
    """A process that is kept running from `run` until `stop`."""

    def __init__(
        self,
        spec: ProcessSpec,
        *,
        log: ProcessLog,
        mark: str,
        probe: Probe,
        liveness: Liveness,
        ready_timeout_s: float,
        observe: Observer,
    ) -> None:
        self.name = spec.name
        self.role = spec.role
        self.may_give_up = True  # until the whole deployment is ready
        self._spec = spec
        self._log = log
        self._mark = mark
        self._probe = probe
        self._liveness = liveness
        self._ready_timeout_s = ready_timeout_s
        self._observe = observe
        self._state = State.WAITING
        self._backoff = Backoff()
        self._child: subprocess.Popen[bytes] | None = None
        self._log_writer: subprocess.Popen[bytes] | None = None
        self._port = spec.port
        self._starts = 0
        self._supervision: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self._state is State.READY

    @property
    def ended_in_order(self) -> bool:
        """Whether its process has ended as one does that was told to, or never began."""
        return self._child is None or self._child.returncode == 0

    @property
    def status(self) -> ProcessStatus:
        """What is to be told of it now."""
        child = self._child
        return ProcessStatus(
            name=self.name,
            role=self.role,
            state=self._state.value,
            pid=child.pid if child is not None and child.returncode is None else None,
            port=self._port,
            restarts=max(0, self._starts - 1),
            log=self._log.path,
        )

    def run(self) -> asyncio.Task[None]:
        """Keep it running from now on. The task ends only with a LiveError: it was given up."""
        self._supervision = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")
        return self._supervision

    async def stop(self, timeout_s: float) -> None:
        """Ask it to end and wait; kill what is left after `timeout_s`, or soon if it hangs."""
        await self._end_supervision()
        if self._state is State.SILENT:
            timeout_s = min(timeout_s, SILENT_STOP_S)
        self._move(ProcessEvent.TOLD_TO_STOP, f"told to stop (at most {timeout_s:g} s)")
        child = self._child
        if child is None:
            return
        signal_child(child, signal.SIGTERM)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await _end_of(child)
            is_late = child.poll() is None
        finally:
            self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_WAIT_S):
                await _end_of(child)
        await self._end_of_log()
        if self._state is State.STOPPING:
            self._move(
                ProcessEvent.EXITED, "killed, since it did not end" if is_late else "stopped"
            )

    def kill(self) -> None:
        """End it and everything it has started, at once."""
        if self._child is not None:
            kill_all(self._child, self._mark)

    async def _end_supervision(self) -> None:
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)

    async def _supervise(self) -> None:
        while True:
            child = await self._started()
            life = await self._live(child)
            self.kill()  # what it has left behind
            await self._end_of_log()
            self._child = None  # its number may soon be another's
            delay_s = self._backoff.next_delay_s(life.healthy_s)
            if self.may_give_up and (life.is_hopeless or self._backoff.failures >= START_ATTEMPTS):
                self._move(ProcessEvent.EXITED, life.reason)
                self._move(ProcessEvent.GIVEN_UP, "given up")
                raise LiveError(self._last_words(life.reason))
            self._move(ProcessEvent.EXITED, f"{life.reason}; starts again in {delay_s:g} s")
            await asyncio.sleep(delay_s)

    async def _started(self) -> subprocess.Popen[bytes]:
        """Start it; what the machine lacks at the moment, it may have later.

        Raises: LiveError if it is given up instead.
        """
        while True:
            try:
                return self._start()
            except LiveError as error:
                if self.may_give_up:
                    self._move(ProcessEvent.GIVEN_UP, "cannot be started")
                    raise
                delay_s = self._backoff.next_delay_s(0.0)
                self._observe(self.status, f"{error}; another try in {delay_s:g} s")
                await asyncio.sleep(delay_s)

    def _start(self) -> subprocess.Popen[bytes]:
        """Raises: LiveError if it cannot be started now."""
        writer = self._log_writer = self._log.start_writer()
        assert writer.stdin is not None, "it is a pipe"
        with writer.stdin as output:
            child = start_child(self._spec, output, self._mark)
        self._child = child
        self._starts += 1
        self._move(ProcessEvent.STARTED, f"started, pid {child.pid}")
        return child

    async def _live(self, child: subprocess.Popen[bytes]) -> _Life:
        """From its start to its end."""
        ended = asyncio.ensure_future(_end_of(child))
        ready = asyncio.ensure_future(self._probe(self._spec))
        try:
            await asyncio.wait(
                {ended, ready}, timeout=self._ready_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if ended.done():
                return _Life(0.0, _reason(child), child.returncode == EXIT_BAD_INPUT)
            if not ready.done():
                await self._killed(ended)
                return _Life(0.0, f"not ready within {self._ready_timeout_s:g} s", True)
            self._port = ready.result() or self._port
            self._move(ProcessEvent.BECAME_READY, "ready")
            ready_at_s = time.monotonic()
            why_killed = await self._until_end(ended)
            healthy_s = time.monotonic() - ready_at_s
            return _Life(healthy_s, why_killed or _reason(child), False)
        finally:
            ended.cancel()
            ready.cancel()

    async def _until_end(self, ended: "asyncio.Future[None]") -> str | None:
        """Returns when it has ended by itself (None), or was killed for its silence (why)."""
        answered_s = time.monotonic()
        num_silent = 0
        while True:
            await asyncio.wait({ended}, timeout=LIVENESS_INTERVAL_S)
            if ended.done():
                return None
            if await self._liveness(self._spec):
                answered_s, num_silent = time.monotonic(), 0
                if self._state is State.SILENT:
                    self._move(ProcessEvent.ANSWERED, "answers again")
                continue
            num_silent += 1
            if self._state is State.READY:
                self._move(ProcessEvent.STOPPED_ANSWERING, "does not answer")
            silent_s = time.monotonic() - answered_s
            if num_silent >= MAX_SILENT_PROBES and silent_s >= PATIENCE_S[self.role]:
                await self._killed(ended)
                return f"killed, since it has not answered for {silent_s:.0f} s"

    async def _killed(self, ended: "asyncio.Future[None]") -> None:
        """Kill it; returns when it has ended, or soon."""
        self.kill()
        await asyncio.wait({ended}, timeout=KILL_WAIT_S)

    async def _end_of_log(self) -> None:
        """Returns when all that it and its children have said is written."""
        writer = self._log_writer
        if writer is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_WAIT_S):
                await _end_of(writer)
        if writer.poll() is None:  # somebody unknown to us still holds the other end
            writer.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_WAIT_S):
                    await _end_of(writer)

    def _last_words(self, reason: str) -> str:
        attempts = f", {self._starts} times" if self._starts > 1 else ""
        tail = self._log.last_lines()
        said = "\n".join(f"  {line}" for line in tail) if tail else "  (nothing)"
        return f"{self.name}: {reason}{attempts}. Its log {self._log.path} ends with:\n{said}"

    def _move(self, event: ProcessEvent, text: str) -> None:
        before = self._state
        self._state = next_state(before, event)
        if self._state is not before:
            self._observe(self.status, text)


async def _end_of(child: subprocess.Popen[bytes]) -> None:
    """Returns when it has ended. Polled: the same on every platform and in every thread."""
    while child.poll() is None:
        await asyncio.sleep(POLL_INTERVAL_S)


def _reason(child: subprocess.Popen[bytes]) -> str:
    code = child.returncode
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
