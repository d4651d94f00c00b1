"""How the frontend talks to an engine: tokens in, tokens out, over the engine's own HTTP API."""

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from dynosim_runtime.card import LiveCard
from dynosim_runtime.requests import FinishReason, Sampling, TokenLogprob

FINDING_STOPS = frozenset({"vllm"})
"""Engines that are given stop strings, too: they end by themselves where the frontend does, and
then tell the usage, which they tell at their end only."""

TELLING_LOGPROBS = frozenset({"vllm", "sglang"})
KEEPING_FORM = frozenset({"vllm", "sglang"})
"""Engines that can hold an answer to a `StructuredOutput`."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine is asked to do."""

    request_id: str
    token_ids: list[int]
    sampling: Sampling
    dp_rank: int = 0
    priority: int = 0  # lower is served earlier (vLLM's polarity); adapters turn it if need be
    cache_salt: str = ""


class EngineDelta(msgspec.Struct, frozen=True):
    """Tokens as they come; `cached_tokens` when the engine tells it."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    cached_tokens: int | None = None
    logprobs: list[TokenLogprob] | None = None


class EngineLostError(Exception):
    """The engine is gone or gave up in the middle; another one may go on."""


class EngineRefusedError(Exception):
    """The engine will not serve this request; `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EngineClient(Protocol):
    """Speaks one engine's dialect. Closing the iterator cancels the request in the engine."""

    def stream(self, card: LiveCard, request: EngineRequest) -> AsyncIterator[EngineDelta]:
        """The answer, piece by piece. Raises: EngineLostError, EngineRefusedError."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
