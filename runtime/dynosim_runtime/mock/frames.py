"""The JSON that vLLM's server sends for completions, made cheaply.

A mock engine has no tokenizer: the text of a token is its id as a word.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from dynosim_runtime.mock.engine import MockRequest

FINGERPRINT = "dynosim-mock"
DONE = b"data: [DONE]\n\n"


def text_of(token_ids: Sequence[int]) -> str:
    """What stands for the tokens' text."""
    return "".join(f" {token_id}" for token_id in token_ids)


def usage_of(request: MockRequest) -> dict[str, Any]:
    """Token counts of a finished request."""
    return {
        "prompt_tokens": request.num_prompt,
        "total_tokens": request.num_prompt + request.num_delivered,
        "completion_tokens": request.num_delivered,
        "prompt_tokens_details": {"cached_tokens": request.cached_tokens},
    }


class CompletionFrames:
    """The events of one streamed completion; `prompt_ids` are given if token ids were asked for."""

    __slots__ = ("_base", "_middle", "_prompt_ids", "_shows_token_ids", "_start", "_tail")

    def __init__(
        self, completion_id: str, model: str, created_s: int, prompt_ids: list[int] | None
    ) -> None:
        self._base = {
            "id": completion_id,
            "object": "text_completion",
            "created": created_s,
            "model": model,
        }
        self._shows_token_ids = prompt_ids is not None
        self._prompt_ids = prompt_ids  # for the first frame only
        frame = self._tokens([0])
        # A frame of one token, cut where its text and its id stand.
        self._start, rest = frame.split(b'" 0"')
        self._start += b'"'
        if self._shows_token_ids:
            self._middle, self._tail = rest.split(b"[0]")
            self._middle = b'"' + self._middle + b"["
            self._tail = b"]" + self._tail
        else:
            self._middle, self._tail = b'"' + rest, b""

    def token(self, token_id: int) -> bytes:
        """The event of one token in the middle of an answer."""
        if self._prompt_ids is not None:
            return self.tokens([token_id])
        if self._shows_token_ids:
            return b"%b %d%b%d%b" % (self._start, token_id, self._middle, token_id, self._tail)
        return b"%b %d%b" % (self._start, token_id, self._middle)

    def tokens(
        self,
        token_ids: list[int],
        *,
        finish_reason: str | None = None,
        stop_reason: int | None = None,
    ) -> bytes:
        """The event of some tokens, with why they are the last ones; the first has the prompt."""
        prompt_ids, self._prompt_ids = self._prompt_ids, None
        return self._tokens(token_ids, prompt_ids, finish_reason, stop_reason)

    def usage(self, request: MockRequest, transfer_ms: float | None = None) -> bytes:
        """The event behind the last token, if usage was asked for.

        `transfer_ms`, in which its KV came, is no part of vLLM's dialect.
        """
        event: dict[str, Any] = {
            "choices": [],
            "usage": usage_of(request),
            "system_fingerprint": FINGERPRINT,
        }
        if transfer_ms is not None:
            event["kv_transfer_ms"] = transfer_ms
        return _event(self._base | event)

    def _tokens(
        self,
        token_ids: list[int],
        prompt_ids: list[int] | None = None,
        finish_reason: str | None = None,
        stop_reason: int | None = None,
    ) -> bytes:
        choice = {
            "index": 0,
            "text": text_of(token_ids),
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
            "prompt_token_ids": prompt_ids,
            "token_ids": token_ids if self._shows_token_ids else None,
        }
        return _event(self._base | {"choices": [choice]})


def whole_answer(
    request: MockRequest,
    completion_id: str,
    model: str,
    created_s: int,
    prompt_ids: list[int] | None,
    kv_transfer_params: dict[str, Any] | None = None,
) -> bytes:
    """The body of a completion that is not streamed."""
    return orjson.dumps(
        {
            "id": completion_id,
            "object": "text_completion",
            "created": created_s,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "text": text_of(request.output),
                    "logprobs": None,
                    "finish_reason": request.finish_reason,
                    "stop_reason": request.stop_reason,
                    "token_ids": None if prompt_ids is None else request.output,
                    "prompt_logprobs": None,
                    "prompt_token_ids": prompt_ids,
                }
            ],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage_of(request),
            "kv_transfer_params": kv_transfer_params,
        }
    )


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
