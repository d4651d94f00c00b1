"""Child processes that cannot outlive us: started in a group of their own, found again by a mark.

A child that dies leaves its own children behind (an engine's helpers). They carry the mark in their
environment, so that they are found even in another group; that needs Linux's /proc.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch.specs import ProcessSpec

MARK_VARIABLE = "DYNOSIM_PROCESS"
_PR_SET_PDEATHSIG = 1


def start_child(spec: ProcessSpec, output: IO[bytes], mark: str) -> subprocess.Popen[bytes]:
    """Start it in a session of its own; `output` gets what it says.

    When we die, however suddenly, it is sent SIGTERM (on Linux). Raises: LiveError if it cannot
    be started.
    """
    # SPT_NOENV: engines set their title with setproctitle, which would overwrite the mark
    environment = {**os.environ, "SPT_NOENV": "1", **spec.environment, MARK_VARIABLE: mark}
    try:
        return subprocess.Popen(
            spec.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
    except OSError as error:
        raise LiveError(f"{spec.name}: cannot start {spec.command[0]}: {error}") from None


def signal_child(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send it a signal, unless it has ended."""
    if child.poll() is None:
        child.send_signal(number)


def kill_all(child: subprocess.Popen[bytes], mark: str) -> None:
    """Kill it, its group and whatever else carries its mark; nothing happens to what has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # the group lives on while any member does
    for pid in marked_processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked_processes(mark: str) -> list[int]:
    """Processes that carry `mark`: a child and what it has started. Empty without /proc."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return sorted(found)


def _die_with_parent() -> Callable[[], None] | None:
    """What the child does before it runs its program; made here, since it must not allocate."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died in between: the signal will not come
            os._exit(1)

    return arrange
