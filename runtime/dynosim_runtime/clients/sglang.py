"""SGLang's own /generate, which takes and gives token ids.

Written from SGLang's documentation and tried against answers in its form, not proven on hardware.

A streamed answer carries all output so far, or, if the server was started to stream increments,
what is new; `completion_tokens` tells both apart, so that either is understood.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

import aiohttp
import msgspec

from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import (
    EngineDelta,
    EngineLostError,
    EngineRefusedError,
    EngineRequest,
)
from dynosim_runtime.clients.sse_read import SseParser
from dynosim_runtime.requests import FinishReason, Sampling, StructuredOutput, TokenLogprob

ABORT_TIMEOUT_S = 2.0
MAX_ERROR_BYTES = 65536


class _Finish(msgspec.Struct):
    type: Literal["stop", "length", "abort"]
    message: str = ""
    status_code: int | None = None


_Logprob = tuple[float, int, str | None]  # logprob, token id, text


class _Meta(msgspec.Struct):
    completion_tokens: int = 0
    cached_tokens: int | None = None
    finish_reason: _Finish | None = None
    output_token_logprobs: list[_Logprob] | None = None  # all so far, or the new ones, as ids are
    output_top_logprobs: list[list[_Logprob] | None] | None = None


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    output_ids: list[int] = []
    meta_info: _Meta | None = None
    error: _Error | None = None


class SglangEngineClient:
    """Streams generations; connections are pooled in `session`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(_Chunk).decode

    async def stream(self, card: LiveCard, request: EngineRequest) -> AsyncIterator[EngineDelta]:
        """See `EngineClient`."""
        body = self._encode(generate_body(card, request))
        is_finished = False
        try:
            async with self._session.post(
                f"{card.url}/generate", data=body, headers={"Content-Type": "application/json"}
            ) as response:
                if response.status != 200:
                    await _raise_refusal(response)
                async for delta in self._deltas(response):
                    is_finished = is_finished or delta.finish_reason is not None
                    yield delta
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            is_finished = True  # there is nobody to tell
            raise EngineLostError(f"{card.name}: {type(error).__name__}: {error}") from None
        finally:
            if not is_finished:
                await self._abort(card, request.request_id)

    async def close(self) -> None:
        """See `EngineClient`."""
        await self._session.close()

    async def _deltas(self, response: aiohttp.ClientResponse) -> AsyncIterator[EngineDelta]:
        parser = SseParser()
        num_tokens = 0
        is_finished = False
        async for data in response.content.iter_any():
            for event in parser.feed(data):
                if event == b"[DONE]":
                    continue
                chunk = self._chunk(event)
                meta = chunk.meta_info or _Meta(num_tokens + len(chunk.output_ids))
                num_new = meta.completion_tokens - num_tokens
                if num_new > len(chunk.output_ids):
                    raise EngineLostError(f"the engine left {num_new} output tokens out")
                new = chunk.output_ids[len(chunk.output_ids) - num_new :] if num_new > 0 else []
                num_tokens += len(new)
                reason = _finish_reason(meta.finish_reason)
                is_finished = is_finished or reason is not None
                if new or reason is not None:
                    yield EngineDelta(new, reason, meta.cached_tokens, _logprobs(meta, new))
        if not is_finished:
            raise EngineLostError("the engine's answer ended without a finish reason")

    def _chunk(self, event: bytes) -> _Chunk:
        try:
            chunk = self._decode(event)
        except msgspec.DecodeError as error:
            raise EngineLostError(f"the engine sent no piece of a generation: {error}") from None
        if chunk.error is not None:
            raise EngineLostError(f"the engine reports: {chunk.error.message}")
        return chunk

    async def _abort(self, card: LiveCard, request_id: str) -> None:
        """Tell the engine to stop; a closed connection alone it notices late.

        Shielded, since this runs when the request's own task is being cancelled.
        """

        async def call() -> None:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                timeout = aiohttp.ClientTimeout(total=ABORT_TIMEOUT_S)
                async with self._session.post(
                    f"{card.url}/abort_request", json={"rid": request_id}, timeout=timeout
                ):
                    pass

        await asyncio.shield(call())


def generate_body(card: LiveCard, request: EngineRequest) -> dict[str, Any]:
    """The JSON body for /generate; what has its default is left to the server."""
    body: dict[str, Any] = {
        "rid": request.request_id,
        "input_ids": request.token_ids,
        "sampling_params": sampling_params(request.sampling),
        "stream": True,
    }
    if request.sampling.logprobs is not None:
        body["return_logprob"] = True
        body["top_logprobs_num"] = request.sampling.logprobs
    if request.cache_salt:
        body["extra_key"] = request.cache_salt
    if request.priority and card.accepts_priority:
        body["priority"] = request.priority
    if card.dp_size > 1:
        body["data_parallel_rank"] = request.dp_rank
    return body


def sampling_params(sampling: Sampling) -> dict[str, Any]:
    """SGLang's words for how tokens are picked."""
    optional = {
        "min_new_tokens": sampling.min_tokens or None,
        "top_k": sampling.top_k or None,
        "sampling_seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "ignore_eos": sampling.ignore_eos or None,
        **_form(sampling.structured),
    }
    return {
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
    } | {name: value for name, value in optional.items() if value is not None}


def _form(structured: StructuredOutput | None) -> dict[str, Any]:
    """SGLang's words for the form of an answer."""
    if structured is None:
        return {}
    if structured.kind == "grammar":
        return {"ebnf": structured.form}
    if structured.kind == "regex":
        return {"regex": structured.form}
    if structured.kind == "choice":
        return {"regex": "(" + "|".join(map(re.escape, structured.form)) + ")"}
    schema = {"type": "object"} if structured.kind == "json_object" else structured.form
    return {
        "json_schema": schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
    }


def _logprobs(meta: _Meta, token_ids: list[int]) -> list[TokenLogprob] | None:
    """Of the newest tokens. Raises: EngineLostError if there are less than tokens."""
    told, count = meta.output_token_logprobs, len(token_ids)
    if told is None:
        return None
    if len(told) < count:
        raise EngineLostError("the engine's logprobs do not fit its tokens")
    tops = (meta.output_top_logprobs or [])[-count:] if count else []
    tops += [None] * (count - len(tops))
    return [
        TokenLogprob(token_id, logprob, [(top[1], top[0]) for top in alternatives or ()])
        for (logprob, token_id, _), alternatives in zip(
            told[len(told) - count :], tops, strict=True
        )
    ]


def _finish_reason(finish: _Finish | None) -> FinishReason | None:
    if finish is None:
        return None
    if finish.type != "abort":
        return finish.type
    if finish.status_code is not None and 400 <= finish.status_code < 500:
        raise EngineRefusedError(finish.status_code, finish.message)
    raise EngineLostError(f"the engine ended the request: {finish.message}")


async def _raise_refusal(response: aiohttp.ClientResponse) -> None:
    """An answer that is no stream. Raises: EngineLostError for 5xx and 429, else a refusal."""
    text = (await response.content.read(MAX_ERROR_BYTES)).decode(errors="replace")
    message = text
    with contextlib.suppress(msgspec.DecodeError):
        error = msgspec.json.decode(text, type=_Chunk).error
        message = text if error is None else error.message
    if response.status >= 500 or response.status == 429:
        raise EngineLostError(f"the engine answers {response.status}: {message[:500]}")
    raise EngineRefusedError(response.status, message[:2000])
