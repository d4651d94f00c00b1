"""An event loop whose clock jumps to the next timer: waits are exact and take no real time.

For code that waits for timers, futures and tasks of its own. Whatever waits for a thread or another
process would be passed by; if everything waits for something that no timer brings, the test fails
instead of hanging. (The library `looptime` counts whole microseconds; laws here hold to 1e-6 ms.)
"""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from math import inf, nextafter
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):  # type: ignore[valid-type,misc]
    """Reports what is there already, else lets the time pass at once."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("everything waits, and no timer will wake anybody")
        self.now_s += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at 0 s."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def call_later(self, delay: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        """A wait below the clock's resolution passes at once: who rounds may ask for it again."""
        now_s = self.time()
        at_s = now_s + delay
        if delay > 0 and at_s <= now_s + self._clock_resolution:  # type: ignore[attr-defined]
            at_s = self._jumping.now_s = max(at_s, nextafter(now_s, inf))
        return self.call_at(at_s, *args, **kwargs)


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a `VirtualTimeLoop`."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtually(test(*args, **kwargs))

    return run


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does, on a `VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def now_s() -> float:
    """The time of the running loop."""
    return asyncio.get_running_loop().time()


def now_ms() -> float:
    """The same in ms, as frontends count."""
    return now_s() * 1e3


loop_clock = SimpleNamespace(monotonic=now_s, perf_counter=now_s, time=lambda: 1.7e9 + now_s())
"""In place of the module `time`, where code under test reads the clock itself."""


async def let_others_run(times: int = 20) -> None:
    """Give every task its turn, so often."""
    for _ in range(times):
        await asyncio.sleep(0)


async def seconds_of(awaitable: Awaitable[Any]) -> float:
    """How long it takes."""
    started_s = now_s()
    await awaitable
    return now_s() - started_s
