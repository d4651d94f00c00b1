"""Waiting for what is to happen, however long that takes on a machine with other work."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 120.0
"""After which a test that hangs ends. Nothing is timed: no test passes or fails by less."""

POLL_S = 0.005


async def until(claim: Callable[[], bool], *, poll_s: float = POLL_S) -> None:
    """Returns when the claim is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not claim():
            await asyncio.sleep(poll_s)


def wait_until(claim: Callable[[], bool], *, poll_s: float = 10 * POLL_S) -> None:
    """The same where no event loop runs."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < give_up_s, "never came true"
        time.sleep(poll_s)


def is_running(pid: int) -> bool:
    """Whether the process is there and not just waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
