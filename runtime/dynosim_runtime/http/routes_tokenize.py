"""Counting and showing tokens: /tokenize and /detokenize as vLLM has them, Anthropic's count."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dynosim_runtime.dialects.call import Prompt, TextPrompt
from dynosim_runtime.dialects.chat.request import Messages, TemplateFields, conversation_of
from dynosim_runtime.dialects.decoding import decode_body, refuse
from dynosim_runtime.dialects.messages.request import MessagesDialect
from dynosim_runtime.dialects.openai_fields import TokenId
from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.limits import ClientGoneError, read_body
from dynosim_runtime.http.registry import ModelRegistry, ServedModel
from dynosim_runtime.http.routes_generate import Service, encode_prompts

Answerer = Callable[[bytes], Awaitable[dict[str, Any]]]


class TokenizeRequest(TemplateFields, frozen=True, kw_only=True):
    """The body of /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /detokenize."""

    tokens: list[TokenId]
    model: str | None = None


def tokenize_routes(service: Service, *, strip_anthropic_preamble: bool) -> list[BaseRoute]:
    """With and without /v1 in front, and /v1/messages/count_tokens."""
    tokenizing = Tokenizing(service.models, strip_preamble=strip_anthropic_preamble)
    answerers: dict[str, Answerer] = {
        "/tokenize": tokenizing.tokenize,
        "/v1/tokenize": tokenizing.tokenize,
        "/detokenize": tokenizing.detokenize,
        "/v1/detokenize": tokenizing.detokenize,
        "/v1/messages/count_tokens": tokenizing.count_tokens,
    }
    return [
        Route(path, _endpoint(answerer, service), methods=["POST"])
        for path, answerer in answerers.items()
    ]


class Tokenizing:
    """What the routes do, from a body to the content of an answer. All raise ApiError."""

    def __init__(self, models: ModelRegistry, *, strip_preamble: bool) -> None:
        self._models = models
        self._messages = MessagesDialect(strip_preamble=strip_preamble)
        self._tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
        self._detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)

    async def tokenize(self, body: bytes) -> dict[str, Any]:
        """Tokens of a prompt, or of a conversation as the model is shown it."""
        request = decode_body(self._tokenize_decoder, body)
        model = self._model(request.model)
        [token_ids] = await encode_prompts([_prompt_of(request)], model.tokenizer, "prompt")
        strings = None
        if request.return_token_strs:
            strings = [model.tokenizer.token_text(token_id) for token_id in token_ids]
        return {
            "count": len(token_ids),
            "max_model_len": model.max_model_len,
            "tokens": token_ids,
            "token_strs": strings,
        }

    async def detokenize(self, body: bytes) -> dict[str, Any]:
        """The text of tokens."""
        request = decode_body(self._detokenize_decoder, body)
        tokenizer = self._model(request.model).tokenizer
        if request.tokens and max(request.tokens) >= tokenizer.token_id_limit:
            raise refuse(
                "tokens", f"token ids must be below {tokenizer.token_id_limit}", "invalid_value"
            )
        return {"prompt": tokenizer.decode(request.tokens)}

    async def count_tokens(self, body: bytes) -> dict[str, Any]:
        """Tokens that a request to /v1/messages would send."""
        name, conversation = self._messages.parse_count(body)
        tokenizer = self._models.get(name).tokenizer
        [token_ids] = await encode_prompts([conversation], tokenizer, "messages")
        return {"input_tokens": len(token_ids)}

    def _model(self, name: str | None) -> ServedModel:
        return self._models.only() if name is None else self._models.get(name)


def _prompt_of(request: TokenizeRequest) -> Prompt:
    if (request.prompt is None) == (request.messages is None):
        raise refuse("prompt", "give either prompt or messages", "invalid_value")
    if request.prompt is not None:
        return TextPrompt(request.prompt, request.add_special_tokens is not False)
    assert request.messages is not None, "just checked"
    return conversation_of(request.messages, request)


def _endpoint(answerer: Answerer, service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        with service.concurrency.slot():
            try:
                body = await read_body(request.scope, request.receive, service.limits)
            except ClientGoneError:
                raise ApiError(499, "the client hung up") from None
            content = await answerer(body)
        return Response(orjson.dumps(content), media_type="application/json")

    return endpoint
