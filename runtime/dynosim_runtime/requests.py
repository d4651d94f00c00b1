"""The internal form of a request, and of what comes back: tokens in, tokens out.

All HTTP dialects (chat, completions, responses, messages) become a `GenerateRequest`, so that one
deployment serves any client; texts, roles and tools are the dialects' own business.
"""

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length"]


class StructuredOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A form that the answer's text must have."""

    kind: Literal["json_object", "json", "regex", "choice", "grammar"]
    form: Any = None  # schema, pattern, list of texts, or grammar (EBNF); of a json_object none


class TokenLogprob(msgspec.Struct, frozen=True):
    """How probable a token was where it stands, and what else might have stood there."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []  # token ids with their logprobs; may hold the token itself


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine picks tokens, in the words that all engines share."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()  # texts; found by the frontend, which sees the text
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # tell each token's, and those of so many likely ones
    structured: StructuredOutput | None = None


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to be continued."""

    request_id: str
    model: str
    token_ids: list[int]
    sampling: Sampling
    priority: int = 0  # higher is more important (nvext.agent_hints.priority)
    expected_output_tokens: int | None = None  # nvext.agent_hints.osl
    session_id: str | None = None
    worker_id: int | None = None  # pinned by the client (nvext)
    dp_rank: int | None = None
    policy_family: str | None = None  # header x-dynamo-meta-policy-class
    cache_salt: str = ""
    pin_ttl_s: float | None = None  # keep the prompt's blocks for so long after its end
    must_pin: bool = False  # else where the engine can (nvext.cache_control; blocks' own)
    required_taints: tuple[str, ...] = ()  # nvext.routing_constraints
    preferred_taints: dict[str, float] = {}
    overrides: tuple[tuple[str, float], ...] = ()  # nvext.router_config_override
    received_s: float | None = None  # when it had come in, on `time.monotonic`'s clock
    is_speculative: bool = False  # no client's: to have a next turn's prompt cached


class TokenDelta(msgspec.Struct, frozen=True):
    """Tokens that an engine has produced since the last delta; the last one says why it ended."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None  # one per token, if they were asked for


class RequestRecord(msgspec.Struct, kw_only=True):
    """What happened to a request: the fields of `dynosim.metrics.tables.RECORD_FIELDS`.

    Times in ms since the frontend's start; None where a value does not exist (yet).
    """

    request_id: str
    session_id: str | None = None
    arrival_ms: float
    dispatch_ms: float | None = None
    first_token_ms: float | None = None
    finish_ms: float | None = None
    input_tokens: int
    output_tokens: int = 0
    cached_tokens: int | None = None  # as the engine reports it
    prefill_worker_id: int | None = None
    decode_worker_id: int | None = None
    prefill_dp_rank: int | None = None
    decode_dp_rank: int | None = None
    prefill_wait_time_ms: float | None = None
    prefill_time_ms: float | None = None
    transfer_ms: float | None = None  # of its KV, where the engine tells
    handoff_ms: float | None = None  # from the prefill worker's answer to the first token
    onboarded_tokens: int | None = None  # of the prompt, from slower memory; None: not known
    onboard_ms: float | None = None  # how long that took; None: not known
    kv_hit_rate: float | None = None  # the router's view: expected overlap over prompt blocks
    preemptions: int = 0
    migrations: int = 0
    status: str = "unfinished"  # completed, failed, rejected, cancelled, unfinished
    error: str | None = None

    @property
    def ttft_ms(self) -> float | None:
        """Arrival to first token."""
        return None if self.first_token_ms is None else self.first_token_ms - self.arrival_ms

    @property
    def e2e_ms(self) -> float | None:
        """Arrival to last token."""
        return None if self.finish_ms is None else self.finish_ms - self.arrival_ms

    @property
    def total_time_ms(self) -> float | None:
        """The same under the name that answers' `nvext.timing` has for it."""
        return self.e2e_ms

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per output token after the first."""
        if self.finish_ms is None or self.first_token_ms is None or self.output_tokens < 2:
            return None
        return (self.finish_ms - self.first_token_ms) / (self.output_tokens - 1)


class TokenStream(Protocol):
    """A request under way. Iterate for its tokens; `aclose` cancels it in the engine too."""

    @property
    def record(self) -> RequestRecord:
        """What has happened so far."""
        ...

    def __aiter__(self) -> AsyncIterator[TokenDelta]: ...

    def let_end(self) -> None:
        """All that is wanted of it has come: it is completed.

        It ends by itself, soon: at once, or when the engine has told what it knows of the request.
        """
        ...

    async def aclose(self) -> None:
        """Stop; nothing happens if it has ended."""
        ...


class Dispatcher(Protocol):
    """Serves requests. The frontend's routes know of the cluster behind them only this."""

    async def start(self, request: GenerateRequest) -> TokenStream:
        """Place a request, waiting in the router's queue if need be.

        Raises: ApiError (no worker, all busy, queue full, prompt too long, ...). Once tokens have
        been delivered, iterating raises it instead.
        """
        ...
