"""What tests of the mock worker share: requests, a clock, a virtual-time driver."""

import asyncio
from collections.abc import Iterable, Sequence

from dynosim.engine.pace import NEVER
from dynosim.engine.spec import EngineSpec
from dynosim.timing.formulas import LinearModel
from dynosim.timing.model import StepTimeModel
from dynosim_runtime.mock.engine import (
    MockCall,
    MockEngine,
    MockRequest,
    StepOutcome,
)
from dynosim_runtime.mock.stats import MockStats
from dynosim_runtime.mock.tokens import TokenSource

VOCABULARY = 1000
TIMING = LinearModel(
    base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.1, per_context_token_ms=0.0005
)


class TokenLog:
    """A `Receiver` that remembers tokens and, if it has a clock, their times."""

    def __init__(self, clock: "FakeClock | None" = None) -> None:
        self.tokens: list[int] = []
        self.times_ms: list[float] = []
        self.has_ended = False
        self._clock = clock

    async def push(self, request: MockRequest) -> None:
        self.take(request, self._clock.now_ms() if self._clock else 0.0)

    def take(self, request: MockRequest, now_ms: float) -> None:
        self.tokens.append(request.output[request.num_delivered - 1])
        self.times_ms.append(now_ms)

    def end(self) -> None:
        self.has_ended = True


class FakeClock:
    """Time that jumps to where somebody sleeps, and `late_ms` beyond."""

    def __init__(self, speedup: float = 1.0, late_ms: float = 0.0) -> None:
        self.speedup = speedup
        self.late_ms = late_ms
        self._now_ms = 0.0

    def now_ms(self) -> float:
        return self._now_ms

    async def sleep_until(self, at_ms: float) -> None:
        self._now_ms = max(self._now_ms, at_ms + self.late_ms)
        await asyncio.sleep(0)


def mock_engine(
    spec: EngineSpec,
    timing: StepTimeModel = TIMING,
    tokens: TokenSource | None = None,
    *,
    stats: MockStats | None = None,
) -> MockEngine:
    return MockEngine(spec, timing, tokens or TokenSource(3, VOCABULARY), stats or MockStats())


def call(prompt_ids: Sequence[int], max_tokens: int, **options: object) -> MockCall:
    fields = {"request_id": "", "prompt_ids": list(prompt_ids), "max_tokens": max_tokens}
    return MockCall(**(fields | options))  # type: ignore[arg-type]


def drive(
    engine: MockEngine, arrivals: Iterable[tuple[float, MockCall]]
) -> tuple[list[MockRequest], list[TokenLog], list[StepOutcome]]:
    """Serve calls that arrive at given times to the end, in no real time."""
    logs: list[TokenLog] = []
    requests: list[MockRequest] = []
    for at_ms, asked in arrivals:
        logs.append(TokenLog())
        requests.append(engine.submit(asked, logs[-1], at_ms))
    outcomes: list[StepOutcome] = []
    now_ms = 0.0
    while (end_ms := engine.next_end_ms(now_ms)) < NEVER or engine.next_arrival_ms < NEVER:
        if end_ms == NEVER:
            now_ms = engine.next_arrival_ms
            continue
        now_ms = end_ms
        outcomes.append(engine.complete())
        for request in outcomes[-1].emitted:
            assert isinstance(request.receiver, TokenLog)
            request.receiver.take(request, end_ms)
    return requests, logs, outcomes
