"""Real engines as processes: started, waited for, and stopped; `adapters` know how they differ."""

import asyncio
import collections
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dynosim_runtime.adapters.engine_http import EngineHttp
from dynosim_runtime.errors import LiveError
from dynosim_runtime.worker import guard
from dynosim_runtime.worker.orphans import adopt_orphans, end_children

POLL_INTERVAL_S = 0.5
EXIT_POLL_S = 0.1
PROGRESS_INTERVAL_S = 15.0
STOP_TIMEOUT_S = 10.0  # from being asked to end to being killed
KILL_TIMEOUT_S = 5.0  # for what was killed to be gone
NUM_LAST_LINES = 12  # of its output, kept for the message about a crash
NUM_ERROR_LINES = 6  # and so many that name an error, whose cause engines tell far from the end
MAX_LINE_BYTES = 4096
ERROR_LINE = re.compile(r"\b\w*(Error|Exception)\b: \S")

log = logging.getLogger(__name__)


class EngineProcess:
    """An engine under a guard; its output goes to ours, and its last lines are kept."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], scratch: Path
    ) -> None:
        """`scratch` is a folder that goes with the engine, however it or we end."""
        self._name = name
        self._scratch = scratch
        self._command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._other_children: set[int] = set()  # of this process, which are none of the engine's
        self._last_lines: collections.deque[str] = collections.deque(maxlen=NUM_LAST_LINES)
        self._error_lines: dict[str, None] = {}  # each once, the latest last

    async def start(self) -> None:
        """Start it; it is not ready then."""
        log.info("%s: %s", self._name, " ".join(self._command))
        adopt_orphans()
        self._other_children = set(guard.children(os.getpid()))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", guard.__file__, str(self._scratch), *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self._environment},
            start_new_session=True,  # so that Ctrl-C reaches the worker only, which drains
        )  # fmt: skip
        self._output = asyncio.create_task(self._pass_on_output())

    async def wait(self) -> int:
        """Its exit status, once nothing of it is left; negative if its guard was killed."""
        status = await self._exit_status()
        await self._clear_away()
        return status

    async def _exit_status(self) -> int:
        """The guard's. Polled, since asyncio waits for the end of its output, too.

        What a killed guard has left behind holds the other end of that.
        """
        assert self._process is not None
        while self._process.returncode is None:
            await asyncio.sleep(EXIT_POLL_S)
        return self._process.returncode

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to end, and kill it if it does not in time; nothing of it is left then."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        if process.returncode is None:
            process.stdin.write(guard.TERM)
            if not await self._ends_within(timeout_s):
                log.warning("%s: the engine did not end within %g s", self._name, timeout_s)
        process.stdin.close()
        if not await self._ends_within(KILL_TIMEOUT_S):
            log.warning("%s: the engine's guard does not end; it is killed", self._name)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await self._ends_within(KILL_TIMEOUT_S)
        await self._clear_away()

    async def _ends_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._exit_status()
        except TimeoutError:
            return False
        return True

    async def _clear_away(self) -> None:
        """The guard has ended: so does what it has left, which is nothing unless it was killed."""
        assert self._process is not None and self._output is not None
        but = {self._process.pid, *self._other_children}
        if not await end_children(but, KILL_TIMEOUT_S):
            log.error("%s: some of the engine's processes cannot be killed", self._name)
        await asyncio.wait((self._output,), timeout=KILL_TIMEOUT_S)
        if not self._output.done():  # a process that is not ours any more holds the other end
            self._output.cancel()

    def died(self, status: int, when: str) -> LiveError:
        """The error to tell when it has ended by itself."""
        if status < 0:
            return LiveError(
                f"{self._name}: the engine's guard was ended by signal {-status} {when}, and the "
                f"engine was killed{self.last_words()}"
            )
        return LiveError(
            f"{self._name}: the engine ended {when} with exit status {status}{self.last_words()}"
        )

    def last_words(self) -> str:
        """What it has told of errors, and its last lines, as the end of a message."""
        lines = [*self._error_lines, *(x for x in self._last_lines if x not in self._error_lines)]
        return "; its last words:" + "".join(f"\n  {line}" for line in lines) if lines else ""

    async def _pass_on_output(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        stdout = self._process.stdout
        rest = b""
        while part := await stdout.read(65536):
            with contextlib.suppress(OSError):  # a full disk behind our output costs words only
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
            *lines, rest = (rest + part).split(b"\n")
            self._remember(lines)
            rest = rest[-MAX_LINE_BYTES:]  # of a line without an end
        self._remember([rest] if rest else [])

    def _remember(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            text = line[-MAX_LINE_BYTES:].decode(errors="replace").rstrip()
            self._last_lines.append(text)
            if ERROR_LINE.search(text):
                self._error_lines.pop(text, None)
                self._error_lines[text] = None
                if len(self._error_lines) > NUM_ERROR_LINES:
                    del self._error_lines[next(iter(self._error_lines))]


async def wait_ready(
    name: str, http: EngineHttp, process: EngineProcess | None, timeout_s: float
) -> None:
    """Wait until the engine's /health says it is ready, telling now and then that we wait.

    Raises: LiveError if it ends before, with its last lines, or is not ready in time.
    """
    ended = None if process is None else asyncio.create_task(process.wait())
    start_s = told_s = time.monotonic()
    try:
        while not await http.is_healthy():
            if ended is not None and ended.done():
                assert process is not None
                raise process.died(ended.result(), "before it was ready")
            now_s = time.monotonic()
            if now_s - start_s > timeout_s:
                raise _not_ready(name, http.shown_url, process, timeout_s)
            if now_s - told_s >= PROGRESS_INTERVAL_S:
                told_s = now_s
                log.info("%s: waiting for the engine, %.0f s", name, now_s - start_s)
            await asyncio.sleep(POLL_INTERVAL_S)
    finally:
        if ended is not None:
            ended.cancel()


def _not_ready(name: str, url: str, process: EngineProcess | None, timeout_s: float) -> LiveError:
    last = "" if process is None else process.last_words()
    return LiveError(
        f"{name}: the engine at {url} is not ready after {timeout_s:g} s "
        f"(live.ready_timeout_s){last}"
    )
