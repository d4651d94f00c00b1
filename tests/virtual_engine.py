"""An engine in virtual time, asked as a client asks a server: what is measured of it is exact."""

import asyncio
from array import array
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest
from mock_support import call, mock_engine
from prometheus_client import CollectorRegistry, generate_latest
from virtual_time import loop_clock, now_ms, run_virtually

from dynosim.engine.spec import EngineSpec
from dynosim.records import IntArray
from dynosim.timing.model import StepTimeModel
from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.client import LoadClock, TimedAnswer
from dynosim_runtime.mock.collector import EngineCollector
from dynosim_runtime.mock.engine import MockRequest
from dynosim_runtime.mock.loop import EngineLoop
from dynosim_runtime.mock.tokens import TokenSource


def use_virtual_clock(patch: pytest.MonkeyPatch) -> None:
    """Let measuring code read the clock of a `VirtualTimeLoop`."""
    patch.setattr("dynosim_runtime.measure.client.time", loop_clock)
    patch.setattr("dynosim_runtime.measure.steps.time", loop_clock)


def serve_commands(patch: pytest.MonkeyPatch, engine: "VirtualEngine") -> None:
    """`validate` and `calibrate` find this engine behind every URL, and measure in virtual time."""
    use_virtual_clock(patch)
    virtual = SimpleNamespace(run=run_virtually)
    patch.setattr("dynosim_runtime.validate.command.asyncio", virtual)
    patch.setattr("dynosim_runtime.measure.calibrate.asyncio", virtual)
    patch.setattr("dynosim_runtime.measure.deployment.CompletionsClient", lambda *_, **__: engine)
    patch.setattr("dynosim_runtime.measure.calibrate.CompletionsClient", lambda *_, **__: engine)


def own_page(client: "VirtualEngine") -> str:
    """/metrics as a mock worker has it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(client.engine, "m"))
    return generate_latest(registry).decode()


class _LoopClock:
    """The mock engine's clock."""

    speedup = 1.0

    def now_ms(self) -> float:
        return now_ms()

    async def sleep_until(self, at_ms: float) -> None:
        await asyncio.sleep(max(at_ms - now_ms(), 0.0) / 1e3)


class _Taker:
    """Notes when tokens come."""

    def __init__(
        self, answer: TimedAnswer, clock: LoadClock, on_first_token: Callable[[], None] | None
    ) -> None:
        self.has_ended = asyncio.Event()
        self._answer = answer
        self._clock = clock
        self._on_first_token = on_first_token

    async def push(self, request: MockRequest) -> None:
        self._answer.token_ms.append(self._clock.now_ms())
        if self._on_first_token is not None and len(self._answer.token_ms) == 1:
            self._on_first_token()

    def end(self) -> None:
        self.has_ended.set()


class VirtualEngine:
    """Stands where a `CompletionsClient` does. `page` gives its /metrics; None: it has none."""

    url = "http://virtual"
    model = "virtual"

    def __init__(
        self,
        spec: EngineSpec,
        timing: StepTimeModel,
        *,
        page: Callable[["VirtualEngine"], str] | None = None,
    ) -> None:
        self.engine = mock_engine(spec, timing, TokenSource(3, 1 << 31))
        self.page = page
        self._loop = EngineLoop(
            self.engine,
            _LoopClock(),
            lambda events: None,
            outside_ms=timing.ingress_ms + timing.egress_ms,
        )

    async def __aenter__(self) -> "VirtualEngine":
        self._task = asyncio.create_task(self._loop.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def probe(self, prompt: IntArray) -> None:
        await self.complete(prompt, 1, LoadClock())

    async def get_text(self, path: str) -> str:
        if self.page is None:
            raise LiveError(f"{path}: no such page")
        return self.page(self)

    async def get_json(self, path: str) -> Any:
        if path != "/v1/models":
            raise LiveError(f"{path}: no such page")
        return {"data": [{"id": self.model, "max_model_len": self.engine.spec.max_model_len}]}

    async def complete(
        self,
        prompt: IntArray,
        output_tokens: int,
        clock: LoadClock,
        *,
        request_id: str | None = None,
        priority: int = 0,
        wishes: object = None,
        expected_output_tokens: int | None = None,
        pin_ttl_ms: object = None,
        on_first_token: Callable[[], None] | None = None,
    ) -> TimedAnswer:
        answer = TimedAnswer(sent_ms=clock.now_ms(), token_ms=array("d"), http_status=200)
        if len(prompt) + output_tokens > self.engine.spec.max_model_len:
            answer.http_status, answer.error = 400, "HTTP 400: too long"
            return answer
        taker = _Taker(answer, clock, on_first_token)
        asked = call(prompt.tolist(), output_tokens, priority=priority)
        request = self._loop.submit(asked, taker)
        try:
            await taker.has_ended.wait()
        finally:
            self._loop.abort(request)
        answer.cached_tokens = request.cached_tokens
        answer.input_tokens, answer.output_tokens = len(prompt), len(answer.token_ms)
        return answer
