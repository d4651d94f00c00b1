"""Drives a mock engine in real time.

Steps are scheduled against the engine's own time, one behind the other, and serve no request that
arrives later than they start. So a late wake-up delays what it wakes but nothing that follows: in
the long run the engine is exactly as fast as its step times say. Only what the machine falls behind
by more than a second is written off.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from dynosim.engine.pace import NEVER
from dynosim.indexer.wire import EngineEvent
from dynosim_runtime.mock.engine import (
    MockCall,
    MockEngine,
    MockRequest,
    Receiver,
    StepOutcome,
)

_SLIP_ALLOWED_S = 1.0  # real time that is caught up with, by steps without pause


class Clock(Protocol):
    """The engine's time."""

    speedup: float  # ms of engine time per ms of real time

    def now_ms(self) -> float:
        """Time since any origin."""
        ...

    async def sleep_until(self, at_ms: float) -> None:
        """Let others run, at least once, until it is `at_ms` or later."""
        ...


class RealClock:
    """Real time, `speedup` times as fast."""

    def __init__(self, speedup: float = 1.0) -> None:
        self.speedup = speedup
        self._origin_s = time.perf_counter()

    def now_ms(self) -> float:
        """Engine time since this clock was made."""
        return (time.perf_counter() - self._origin_s) * 1e3 * self.speedup

    async def sleep_until(self, at_ms: float) -> None:
        """Sleep; the event loop's timers may wake up to a millisecond late."""
        delay_s = (at_ms - self.now_ms()) * 1e-3 / self.speedup
        await asyncio.sleep(max(delay_s, 0.0))


class EngineLoop:
    """Runs an engine: takes calls at any time, hands tokens and events out step by step.

    `on_loaded` hears of every request whose KV has come. `outside_ms` is what requests spend
    outside the engine, before it and after it together. As every request does, it is enough to let
    the engine's time lag by so much behind the clock.
    """

    def __init__(
        self,
        engine: MockEngine,
        clock: Clock,
        publish: Callable[[Sequence[EngineEvent]], None],
        *,
        outside_ms: float = 0.0,
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._publish = publish
        self._outside_ms = outside_ms
        self._has_news = asyncio.Event()
        self._deferred: list[Callable[[float], None]] = []  # for the engine, between two steps
        self.on_loaded: Callable[[MockRequest], None] = lambda request: None

    def submit(self, call: MockCall, receiver: Receiver) -> MockRequest:
        """Queue a call; `receiver` hears of its tokens."""
        request = self.engine.submit(call, receiver, self._clock.now_ms())
        self._has_news.set()
        return request

    def abort(self, request: MockRequest) -> None:
        """Drop a request; its receiver hears nothing more."""
        self.engine.abort(request)
        self._has_news.set()

    def sent(self, request: MockRequest) -> None:
        """The KV held for a request is wanted no more."""
        self._deferred.append(lambda now_ms: self.engine.sent(request, now_ms))
        self._has_news.set()

    def fail_transfer(self, request: MockRequest) -> None:
        """A request's KV does not come."""
        self._deferred.append(lambda now_ms: self.engine.fail_transfer(request, now_ms))
        self._has_news.set()

    async def run(self) -> None:
        """Work for ever."""
        clock, engine = self._clock, self.engine
        now_ms = clock.now_ms()
        while True:
            self._has_news.clear()
            while self._deferred:
                self._deferred.pop(0)(now_ms)
            end_ms = engine.next_end_ms(now_ms)
            self._hand_out_failed()
            transfer_ms = engine.next_transfer_ms
            if end_ms == NEVER:
                if engine.next_arrival_ms == NEVER:
                    await self._news_or(transfer_ms)
                due_ms = min(engine.next_arrival_ms, transfer_ms, clock.now_ms())
                now_ms = max(now_ms, due_ms)
                if transfer_ms <= now_ms:
                    self._end_transfers(transfer_ms)
                continue
            if transfer_ms <= end_ms:
                await clock.sleep_until(transfer_ms + self._outside_ms)
                now_ms = max(now_ms, transfer_ms)
                self._end_transfers(now_ms)
                continue
            due_ms = end_ms + self._outside_ms
            await clock.sleep_until(due_ms)
            now_ms = end_ms + self._slip_ms(clock.now_ms() - due_ms)
            await self._hand_out(self.engine.complete())

    async def _news_or(self, at_ms: float) -> None:
        """Returns when there are news, or at `at_ms`."""
        if at_ms == NEVER:
            await self._has_news.wait()
            return
        waiting = {
            asyncio.create_task(self._has_news.wait()),
            asyncio.create_task(self._clock.sleep_until(at_ms + self._outside_ms)),
        }
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    def _end_transfers(self, at_ms: float) -> None:
        for request in self.engine.end_transfers(at_ms):
            self.on_loaded(request)
        self._publish(self.engine.take_events())

    def _hand_out_failed(self) -> None:
        for request in self.engine.take_failed():
            request.receiver.end()

    def _slip_ms(self, late_ms: float) -> float:
        """Engine time to write off because the machine is that late."""
        slip_ms = late_ms - _SLIP_ALLOWED_S * 1e3 * self._clock.speedup
        if slip_ms <= 0:
            return 0.0
        self.engine.stats.slipped_s += slip_ms * 1e-3 / self._clock.speedup
        return slip_ms

    async def _hand_out(self, outcome: StepOutcome) -> None:
        self._publish(outcome.events)
        for request in outcome.emitted:
            await request.receiver.push(request)
        for request in outcome.finished:
            request.receiver.end()
