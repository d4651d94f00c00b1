"""vLLM's OpenAI-compatible server, and mock workers, which speak the same dialect.

Tokens go in and come out as ids (`return_token_ids`), so that no text is tokenised twice and a
request can be continued elsewhere exactly where it stopped.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import (
    FINDING_STOPS,
    PINNING,
    EngineDelta,
    EngineFailedError,
    EngineLostError,
    EngineRefusedError,
    EngineRequest,
    PrefillAnswer,
)
from dynosim_runtime.clients.connections import Connection, Connections
from dynosim_runtime.clients.sse_read import SseParser
from dynosim_runtime.requests import FinishReason, StructuredOutput, TokenLogprob

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
MAX_ERROR_BYTES = 65536
MAX_ANSWER_BYTES = 16 << 20
PATH = "/v1/completions"
NO_MODEL = "dynosim:nobody-takes-this-kv"  # a name that no model has
ID_PREFIX = "token_id:"
LOWEST_LOGPROB = -9999.0  # vLLM's word for minus infinity, which JSON has not

BodyOf = Callable[[LiveCard, EngineRequest], dict[str, Any]]
"""The JSON body of a request in a server's dialect."""


class _Logprobs(msgspec.Struct):
    """Of the tokens of a chunk; tokens are written `token_id:7`."""

    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _PromptDetails | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: int | str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None
    kv_transfer_params: dict[str, Any] | None = None  # of an answer that is no stream
    kv_transfer_ms: float | None = None  # of a mock worker: beside the usage


class OpenAiEngineClient:
    """Streams completions from one kind of server."""

    def __init__(self, connections: Connections, body: BodyOf | None = None) -> None:
        self._connections = connections
        self._body = body or completion_body
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(_Chunk).decode

    async def stream(self, card: LiveCard, request: EngineRequest) -> AsyncIterator[EngineDelta]:
        """See `EngineClient`."""
        body = self._encode(self._body(card, request))
        try:
            async with self._connections.post(
                card.url, PATH, _headers(card, request), body
            ) as connection:
                if connection.status != 200:
                    await _raise_refusal(connection)
                async for delta in self._deltas(connection):
                    yield delta
        except OSError as error:
            raise EngineLostError(f"{card.name}: {type(error).__name__}: {error}") from None

    async def prefill(self, card: LiveCard, request: EngineRequest) -> PrefillAnswer:
        """See `HandoffClient`. The parameters of the transfer are told in a whole answer only."""
        body = self._body(card, request) | {"stream": False}
        body.pop("stream_options")
        try:
            async with self._connections.post(
                card.url, PATH, _headers(card, request), self._encode(body)
            ) as connection:
                if connection.status != 200:
                    await _raise_refusal(connection)
                answer = await _whole_body(connection)
        except OSError as error:
            raise EngineLostError(f"{card.name}: {type(error).__name__}: {error}") from None
        return _prefill_answer(self._chunk(answer))

    async def release(self, card: LiveCard, params: dict[str, Any]) -> None:
        """See `HandoffClient`: a request that is refused gives back the KV that waits for it."""
        body = {"model": NO_MODEL, "prompt": [0], "max_tokens": 1, "kv_transfer_params": params}
        with contextlib.suppress(OSError):
            async with self._connections.post(card.url, PATH, {}, self._encode(body)) as connection:
                await _whole_body(connection)

    async def close(self) -> None:
        """See `EngineClient`."""
        self._connections.close()

    async def _deltas(self, connection: Connection) -> AsyncIterator[EngineDelta]:
        """What the server streams; pieces that come together are handed on together."""
        parser = SseParser()
        is_finished = False
        while data := await connection.read():
            token_ids: list[int] = []
            finish_reason: FinishReason | None = None
            cached_tokens: int | None = None
            logprobs: list[TokenLogprob] | None = None
            transfer_ms: float | None = None
            for event in parser.feed(data):
                if event == b"[DONE]":
                    continue
                chunk = self._chunk(event)
                for choice in chunk.choices:
                    token_ids += choice.token_ids or ()
                    if choice.logprobs is not None:
                        logprobs = (logprobs or []) + _logprobs(choice)
                    if choice.finish_reason is not None:
                        finish_reason = _finish_reason(choice.finish_reason)
                if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
                    cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens
                transfer_ms = transfer_ms or chunk.kv_transfer_ms
            if token_ids or finish_reason is not None or cached_tokens is not None:
                is_finished = is_finished or finish_reason is not None
                yield EngineDelta(token_ids, finish_reason, cached_tokens, logprobs, transfer_ms)
        if not is_finished:
            raise EngineLostError("the engine's answer ended without a finish reason")

    def _chunk(self, event: bytes) -> _Chunk:
        try:
            chunk = self._decode(event)
        except msgspec.DecodeError as error:
            raise EngineLostError(f"the engine sent no completion chunk: {error}") from None
        if chunk.error is not None:
            code = chunk.error.code
            if isinstance(code, int) and 400 <= code < 500:
                raise EngineRefusedError(code, chunk.error.message)
            raise EngineFailedError(f"the engine reports: {chunk.error.message}")
        return chunk


def completion_body(card: LiveCard, request: EngineRequest) -> dict[str, Any]:
    """The JSON body for `/v1/completions`; what has its default is left to the server."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": card.model,
        "prompt": request.token_ids,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    optional = {
        "min_tokens": sampling.min_tokens or None,
        "top_p": None if sampling.top_p == 1.0 else sampling.top_p,
        "top_k": sampling.top_k or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "repetition_penalty": (
            None if sampling.repetition_penalty == 1.0 else sampling.repetition_penalty
        ),
        "stop": (list(sampling.stop) or None) if card.engine in FINDING_STOPS else None,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "ignore_eos": sampling.ignore_eos or None,
        "logprobs": sampling.logprobs,
        "return_tokens_as_token_ids": None if sampling.logprobs is None else True,
        "structured_outputs": _structured_outputs(sampling.structured),
        "cache_salt": request.cache_salt or None,
        "pin_ttl_s": request.pin_ttl_s if card.engine in PINNING else None,
        "priority": (request.priority or None) if card.accepts_priority else None,
        "kv_transfer_params": request.kv_transfer_params,
    }
    return body | {name: value for name, value in optional.items() if value is not None}


def _headers(card: LiveCard, request: EngineRequest) -> dict[str, str]:
    headers = {"X-Request-Id": request.request_id}
    if card.dp_size > 1:
        headers["X-data-parallel-rank"] = str(request.dp_rank)
    return headers


async def _whole_body(connection: Connection) -> bytes:
    """Raises: EngineLostError if it has no end."""
    body = b""
    while piece := await connection.read():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise EngineLostError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return body


def _prefill_answer(answer: _Chunk) -> PrefillAnswer:
    """Raises: EngineFailedError if it does not tell where the KV is."""
    params = answer.kv_transfer_params
    if params is None or not answer.choices:
        raise EngineFailedError("the engine's answer does not tell where the KV is")
    choice = answer.choices[0]
    details = None if answer.usage is None else answer.usage.prompt_tokens_details
    return PrefillAnswer(
        token_ids=choice.token_ids or [],
        finish_reason=_finish_reason(choice.finish_reason or "length"),
        cached_tokens=None if details is None else details.cached_tokens,
        kv_transfer_params=params,
    )


def _structured_outputs(structured: StructuredOutput | None) -> dict[str, Any] | None:
    """vLLM's words for the form of an answer."""
    if structured is None:
        return None
    return {structured.kind: True if structured.kind == "json_object" else structured.form}


def _logprobs(choice: _Choice) -> list[TokenLogprob]:
    """Of a chunk's tokens. Raises: EngineLostError if they are not told for each."""
    told, token_ids = choice.logprobs, choice.token_ids or []
    assert told is not None, "asked for before"
    tops = told.top_logprobs or [None] * len(token_ids)
    try:
        return [
            TokenLogprob(
                token_id,
                LOWEST_LOGPROB if logprob is None else logprob,
                [(int(name.removeprefix(ID_PREFIX)), value) for name, value in (top or {}).items()],
            )
            for token_id, logprob, top in zip(token_ids, told.token_logprobs, tops, strict=True)
        ]
    except ValueError as error:
        raise EngineLostError(f"the engine's logprobs do not fit its tokens: {error}") from None


def _finish_reason(reason: str) -> FinishReason:
    known = FINISH_REASONS.get(reason)
    if known is None:  # "abort": the engine is shutting down
        raise EngineFailedError(f"the engine ended the request: {reason}")
    return known


async def _raise_refusal(connection: Connection) -> None:
    """An answer that is no stream: the engine's fault (then another may serve), or the request's.

    Raises: EngineLostError for 5xx and 429, EngineRefusedError for the others.
    """
    body = b""
    while len(body) < MAX_ERROR_BYTES and (piece := await connection.read()):
        body += piece
    text = message = body.decode(errors="replace")
    try:
        error = msgspec.json.decode(text, type=_Chunk).error
        message = text if error is None else error.message
    except msgspec.DecodeError:
        pass
    if connection.status >= 500 or connection.status == 429:
        raise EngineFailedError(f"the engine answers {connection.status}: {message[:500]}")
    raise EngineRefusedError(connection.status, message[:2000])
