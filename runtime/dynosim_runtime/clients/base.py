"""How the frontend talks to an engine: tokens in, tokens out, over the engine's own HTTP API."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from dynosim_runtime.card import LiveCard
from dynosim_runtime.requests import FinishReason, Sampling, TokenLogprob

FINDING_STOPS = frozenset({"vllm"})
"""Engines that are given stop strings, too: they end by themselves where the frontend does, and
then tell the usage, which they tell at their end only."""

TELLING_LOGPROBS = frozenset({"vllm", "sglang"})
KEEPING_FORM = frozenset({"vllm", "sglang"})
"""Engines that can hold an answer to a `StructuredOutput`."""

PINNING = frozenset({"mock"})
"""Engines that keep a prompt for a given time. vLLM 0.32 evicts by age alone and has no word for it
in a request; SGLang has priorities of requests at best."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine is asked to do."""

    request_id: str
    token_ids: list[int]
    sampling: Sampling
    dp_rank: int = 0
    priority: int = 0  # lower is served earlier (vLLM's polarity); adapters turn it if need be
    cache_salt: str = ""
    pin_ttl_s: float | None = None  # only engines that can are asked
    kv_transfer_params: dict[str, Any] | None = None  # where its KV is, or is to be left


class EngineDelta(msgspec.Struct, frozen=True):
    """Tokens as they come; `cached_tokens` when the engine tells it."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    cached_tokens: int | None = None
    logprobs: list[TokenLogprob] | None = None
    transfer_ms: float | None = None  # in which its KV came, where the engine tells


class PrefillAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a prefill worker says when it has computed a prompt."""

    token_ids: list[int]  # the first token, which decode workers may compute again
    finish_reason: FinishReason | None
    cached_tokens: int | None
    kv_transfer_params: dict[str, Any]  # for the decode request, unchanged


class EngineLostError(Exception):
    """The engine is gone or gave up in the middle; another one may go on."""


class EngineFailedError(EngineLostError):
    """The engine answers, but gave this request up; for want of KV that did not come, perhaps."""


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


class HandoffClient(EngineClient, Protocol):
    """An engine that hands KV over, or takes it."""

    async def prefill(self, card: LiveCard, request: EngineRequest) -> PrefillAnswer:
        """Compute a prompt and hold its KV. Cancelling cancels it in the engine.

        Raises: EngineLostError, EngineRefusedError.
        """
        ...

    async def release(self, card: LiveCard, params: dict[str, Any]) -> None:
        """Let go of KV that nobody will take; `card` is that of a decode worker.

        What fails is left to the engine, which lets go by itself after a while.
        """
        ...
