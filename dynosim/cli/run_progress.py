"""How far a long run is: one line on the terminal that is written anew, and gone in the end."""

import sys
import time

QUIET_S = 1.0
"""Shorter runs show nothing."""
BAR_CHARACTERS = 24


class RunProgress:
    """To be called with the requests that have ended, and all. Use as a context."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._is_shown = False

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            self._write("")

    def __call__(self, ended: int, of: int) -> None:
        """Show it."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
        elapsed_s = now - self._started
        if elapsed_s >= QUIET_S:
            self._is_shown = True
            self._write(progress_line(ended, of, elapsed_s))

    def _write(self, line: str) -> None:
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def progress_line(ended: int, of: int, elapsed_s: float) -> str:
    """A bar, the numbers, and how long it will take if it goes on as fast."""
    if ended == of:
        return f"{of:,} requests in {_clock(elapsed_s)}, making the report"
    bar = "=" * (BAR_CHARACTERS * ended // of)
    line = f"[{bar:<{BAR_CHARACTERS}}] {ended:,} of {of:,} requests, {_clock(elapsed_s)}"
    return f"{line}, {_clock(elapsed_s / ended * (of - ended))} left" if ended else line


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
