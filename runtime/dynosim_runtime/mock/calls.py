"""What a mock server accepts as a completion request, and how it says no, in vLLM's words."""

from collections.abc import Mapping
from math import inf
from typing import Annotated, Any

import msgspec
import orjson

from dynosim.engine.spec import EngineSpec
from dynosim_runtime.errors import ApiError
from dynosim_runtime.mock.engine import MockCall
from dynosim_runtime.mock.held_kv import KvPlace

DEFAULT_MAX_TOKENS = 16
_KINDS = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}

TokenId = Annotated[int, msgspec.Meta(ge=0)]


class MockStreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool = False


class CompletionBody(msgspec.Struct):
    """The fields that mean something here; what only picks tokens differently is passed over."""

    model: str | None = None
    prompt: list[TokenId | list[TokenId]] | str | None = None
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    min_tokens: int = 0
    stream: bool = False
    stream_options: MockStreamOptions | None = None
    return_token_ids: bool | None = None
    stop_token_ids: list[int] | None = None
    stop: list[str] | str | None = None
    priority: int = 0
    cache_salt: str | None = None
    pin_ttl_s: float | None = None  # our own: for so long after its end the prompt is kept
    n: int | None = 1
    best_of: int | None = None
    echo: bool | None = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    suffix: str | None = None
    kv_transfer_params: dict[str, Any] | None = None


class CallReader:
    """Turns request bodies into calls of an engine."""

    def __init__(self, spec: EngineSpec, model: str, token_id_limit: int) -> None:
        """Token ids in prompts must be below `token_id_limit`."""
        self._spec = spec
        self._model = model
        self._token_id_limit = token_id_limit
        self._decode = msgspec.json.Decoder(CompletionBody).decode

    def body(self, data: bytes) -> CompletionBody:
        """A request's fields. Raises: ApiError naming what is wrong with them."""
        try:
            body = self._decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise ApiError(400, str(error), kind="Bad Request") from None
        if body.model is not None and body.model != self._model:
            raise _refused(
                404,
                f"The model `{body.model}` does not exist. Valid aliases: {self._model}.",
                "model",
            )
        for field, is_asked in _unsupported(body).items():
            if is_asked:
                raise _refused(400, f"mock workers do not support {field}; leave it out", field)
        return body

    def call(self, body: CompletionBody, request_id: str) -> MockCall:
        """What the engine is asked to do. Raises: ApiError."""
        prompt_ids = self._prompt_ids(body.prompt)
        max_tokens = self._max_tokens(body.max_tokens, len(prompt_ids))
        if not 0 <= body.min_tokens <= max_tokens:
            raise _refused(
                400,
                f"min_tokens must be from 0 to max_tokens={max_tokens}, got {body.min_tokens}.",
                "min_tokens",
            )
        if body.priority != 0 and self._spec.policy != "priority":
            raise _refused(
                400,
                f"Got priority {body.priority} but Priority scheduling is not enabled.",
                "priority",
            )
        if body.pin_ttl_s is not None and not 0 < body.pin_ttl_s < inf:
            raise _refused(400, f"pin_ttl_s must be above 0, got {body.pin_ttl_s}.", "pin_ttl_s")
        place = self.place(body)
        is_sent = bool((body.kv_transfer_params or {}).get("do_remote_decode"))
        if is_sent and not self._spec.gives_kv:
            raise _refused(400, "this worker gives no KV to others", "kv_transfer_params")
        return MockCall(
            is_sent=is_sent,
            remote_tokens=0 if place is None else place.remote_num_tokens,
            source="" if place is None else place.remote_engine_id,
            remote_compute_ms=0.0 if place is None else place.compute_ms,
            request_id=request_id,
            prompt_ids=prompt_ids,
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            stop_token_ids=tuple(body.stop_token_ids or ()),
            priority=body.priority,
            cache_salt=body.cache_salt or "",
            pin_ttl_ms=None if body.pin_ttl_s is None else body.pin_ttl_s * 1e3,
        )

    def waiting_kv(self, data: bytes) -> KvPlace | None:
        """Where KV waits for a request that is refused; None: nowhere, or it does not tell."""
        try:
            return self.place(self._decode(data))
        except (msgspec.DecodeError, ValueError, RecursionError, ApiError):
            return None

    def place(self, body: CompletionBody) -> KvPlace | None:
        """Where the KV of the prompt is, if it is elsewhere. Raises: ApiError."""
        params = body.kv_transfer_params or {}
        if not params.get("do_remote_prefill"):
            return None
        if not self._spec.takes_kv:
            raise _refused(400, "this worker takes no KV from others", "kv_transfer_params")
        try:
            return msgspec.convert(params, KvPlace)
        except msgspec.ValidationError as error:
            raise _refused(400, f"kv_transfer_params: {error}", "kv_transfer_params") from None

    def _prompt_ids(self, prompt: list[int | list[int]] | str | None) -> list[int]:
        if isinstance(prompt, str):
            raise _refused(400, "mock workers take prompts as token ids, not as text", "prompt")
        if prompt and isinstance(prompt[0], list):
            if len(prompt) > 1:
                raise _refused(400, "mock workers take one prompt at a time", "prompt")
            prompt = list(prompt[0])
        if not prompt:
            raise _refused(400, "You must pass at least one prompt", "prompt")
        ids = [token_id for token_id in prompt if isinstance(token_id, int)]
        if len(ids) < len(prompt):
            raise _refused(400, "prompt must be one list of token ids", "prompt")
        if max(ids) >= self._token_id_limit:
            raise _refused(400, f"Token id {max(ids)} is out of vocabulary", "prompt")
        return ids

    def _max_tokens(self, asked: int | None, num_prompt: int) -> int:
        """Tokens to generate: no more than fit behind the prompt."""
        limit = self._spec.max_model_len
        if num_prompt >= limit:
            raise _refused(
                400,
                f"This model's maximum context length is {limit} tokens. However, your request "
                f"has {num_prompt} input tokens. Please reduce the length of the input messages.",
                "prompt",
            )
        if asked is None:
            return limit - num_prompt
        if asked < 1:
            raise _refused(400, f"max_tokens must be at least 1, got {asked}.", "max_tokens")
        if asked > limit:
            raise _refused(
                400,
                f"max_tokens={asked} cannot be greater than max_model_len={limit}. Please request "
                "fewer output tokens.",
                "max_tokens",
            )
        return min(asked, limit - num_prompt)


def error_body(error: ApiError) -> bytes:
    """An error as vLLM's server tells it."""
    return orjson.dumps(
        {
            "error": {
                "message": error.message,
                "type": error.kind,
                "param": error.param,
                "code": error.status,
            }
        }
    )


def _refused(status: int, message: str, param: str | None = None) -> ApiError:
    return ApiError(status, message, kind=_KINDS[status], param=param)


def _unsupported(body: CompletionBody) -> Mapping[str, Any]:
    """Fields that would change what comes back, with whether they are asked for."""
    return {
        "n": body.n not in (None, 1),
        "best_of": body.best_of not in (None, 1),
        "echo": body.echo,
        "logprobs": body.logprobs is not None,
        "prompt_logprobs": body.prompt_logprobs is not None,
        "stop": bool(body.stop),
        "suffix": bool(body.suffix),
    }
