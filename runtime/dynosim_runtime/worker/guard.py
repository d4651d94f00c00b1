"""Stands between a worker and its engine, so that no part of an engine outlives its worker.

Run as a script: `guard.py SCRATCH COMMAND...`. Engines start processes of their own, and those do
not end when the engine is killed. The guard makes itself the parent of all orphans below it
(Linux), so that it can find them. Its standard input says what to do: `TERM` asks the engine to
end; the end of the input, which comes when the worker closes it or dies however suddenly, ends the
engine at once. The guard ends with the engine's exit status, after everything that the engine has
left behind: its processes, and the folder SCRATCH. A guard that is killed takes the engine along
(Linux); the rest is its worker's care.

Imports nothing but the standard library, so that it starts at once with any Python.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

TERM = b"T"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(scratch: str, command: list[str]) -> None:
    """Run the command until it ends or the input does; never returns."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the worker decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        engine = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_engine_start()
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(127)
    threading.Thread(target=_obey, args=(engine,), daemon=True).start()
    status = engine.wait()
    _kill_descendants()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(status if status >= 0 else 128 - status)


def _obey(engine: "subprocess.Popen[bytes]") -> None:
    """Do what the input says, until it ends."""
    while word := os.read(0, 1):
        if word == TERM:
            engine.terminate()
    engine.kill()


def _kill_descendants() -> None:
    """Kill what is below us until nothing is; the orphans of what is killed come to us."""
    while True:
        for pid in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def children(parent: int) -> list[int]:
    """Process ids of a process's children; empty without /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()  # a name may have spaces
            if int(fields[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def _engine_start() -> Callable[[], None]:
    """What the engine does before it runs its program; made here, since it must not allocate."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def arrange() -> None:
        # Engines handle these themselves; what is ignored would be inherited.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if prctl is not None:  # should the guard be killed
            prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    return arrange


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
