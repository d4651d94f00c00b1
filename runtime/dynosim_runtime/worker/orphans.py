"""What an engine leaves behind when its guard is killed: its processes become ours, and are ended.

Linux only; elsewhere they stay orphans of the system.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection

from dynosim_runtime.worker.guard import PR_SET_CHILD_SUBREAPER, children

POLL_INTERVAL_S = 0.05


def adopt_orphans() -> None:
    """From now on, processes below us whose parent dies become our children."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def end_children(but: Collection[int], timeout_s: float) -> bool:
    """Kill our children, and theirs as they come to us; whether none is left in time."""
    give_up_s = time.monotonic() + timeout_s
    while left := [pid for pid in children(os.getpid()) if pid not in but]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > give_up_s:
            return False
        await asyncio.sleep(POLL_INTERVAL_S)
    return True
