"""The generating routes: any dialect in front, one dispatcher behind."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dynosim_runtime.dialects.call import AnswerHead, AnswerWriter, ApiDialect, Call, Prompt
from dynosim_runtime.dialects.chat.request import ChatDialect
from dynosim_runtime.dialects.completions.request import CompletionsDialect
from dynosim_runtime.dialects.errors import error_headers, internal_error
from dynosim_runtime.dialects.generate_requests import (
    Caller,
    check_size,
    encode_prompt,
    generate_requests,
    prompt_size,
)
from dynosim_runtime.dialects.messages.request import MessagesDialect
from dynosim_runtime.dialects.next_turn import next_prompt, wants_speculative_prefill
from dynosim_runtime.dialects.output import ChoiceDelta, ChoiceOutput
from dynosim_runtime.dialects.parsing.output_parser import Parsing
from dynosim_runtime.dialects.responses.request import ResponsesDialect
from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.callers import Callers
from dynosim_runtime.http.exchange import Exchange
from dynosim_runtime.http.limits import (
    ClientGoneError,
    ConcurrencyLimit,
    HttpLimits,
    read_body,
)
from dynosim_runtime.http.observer import HttpObserver, Outcome, RequestType
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.http.speculative_prefills import SpeculativePrefills
from dynosim_runtime.http.sse_write import Alarm, EventResponse, send_json
from dynosim_runtime.requests import Dispatcher, GenerateRequest
from dynosim_runtime.tokenize.tokenizer import Tokenizer

MAX_INLINE_CHARS = 2048  # longer texts are tokenized in a thread; that costs 0.1 ms more

log = logging.getLogger(__name__)


class Moment(NamedTuple):
    """A time by two clocks: one that never goes back, and the one that clients know."""

    monotonic_s: float
    unix_ms: int


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What all routes share."""

    dispatcher: Dispatcher
    models: ModelRegistry
    limits: HttpLimits
    observer: HttpObserver
    concurrency: ConcurrencyLimit
    callers: Callers
    speculative_prefills: SpeculativePrefills


def generate_routes(
    service: Service, *, strip_anthropic_preamble: bool, parsing: Parsing
) -> list[Route]:
    """The four APIs."""
    dialects: dict[str, ApiDialect] = {
        "/v1/chat/completions": ChatDialect(parsing),
        "/v1/completions": CompletionsDialect(),
        "/v1/responses": ResponsesDialect(),
        "/v1/messages": MessagesDialect(strip_preamble=strip_anthropic_preamble),
    }
    return [
        Route(path, GenerateRoute(dialect, service), methods=["POST"])
        for path, dialect in dialects.items()
    ]


async def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, prompt_field: str
) -> list[list[int]]:
    """Tokens of all prompts; long texts do not hold up the event loop. Raises: ApiError 400."""

    def encode() -> list[list[int]]:
        return [encode_prompt(prompt, tokenizer, prompt_field) for prompt in prompts]

    if sum(map(prompt_size, prompts)) <= MAX_INLINE_CHARS:
        return encode()
    return await asyncio.to_thread(encode)


class GenerateRoute:
    """An ASGI application for one dialect."""

    def __init__(self, dialect: ApiDialect, service: Service) -> None:
        self._dialect = dialect
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; whatever happens, in the shape of the dialect."""
        headers: dict[str, str] = {}
        try:
            with self._service.concurrency.slot(), self._service.callers.caller(scope) as caller:
                headers["x-request-id"] = caller.request_id
                body = await read_body(scope, receive, self._service.limits)
                await self._serve(body, caller, receive, send)
        except ClientGoneError:
            return
        except ApiError as error:
            await self._refuse(send, error, headers)
        except Exception:
            log.exception("a request to %s failed", scope["path"])
            await self._refuse(send, internal_error(), headers)

    async def _refuse(self, send: Send, error: ApiError, headers: dict[str, str]) -> None:
        body = self._dialect.error_body(error)
        await send_json(send, error.status, body, {**headers, **error_headers(error)})

    async def _serve(self, body: bytes, caller: Caller, receive: Receive, send: Send) -> None:
        received = Moment(time.monotonic(), int(time.time() * 1e3))
        call = self._dialect.parse(body)
        self._service.models.get(call.model)
        observer = self._service.observer
        request_type: RequestType = "stream" if call.stream else "unary"
        observer.request_started(call.model, self._dialect.endpoint, request_type)
        outcome: Outcome = "error"
        try:
            outcome = await self._answer(call, caller, received, receive, send)
        except (ClientGoneError, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        finally:
            observer.request_ended(
                call.model,
                self._dialect.endpoint,
                request_type,
                outcome,
                time.monotonic() - received.monotonic_s,
            )

    async def _answer(
        self, call: Call, caller: Caller, received: Moment, receive: Receive, send: Send
    ) -> Outcome:
        speculates = wants_speculative_prefill(call)
        requests, outputs = await self._prepare(call, caller, received.monotonic_s)
        model = self._service.models.get(call.model)
        tokenizer = model.tokenizer
        answer = call.answer(
            AnswerHead(
                request_id=caller.request_id,
                model=call.model,
                created_s=received.unix_ms // 1000,
                received_ms=received.unix_ms,
                num_prompt_tokens=sum(
                    len(request.token_ids) for request in requests[:: call.num_choices]
                ),
                num_choices=len(requests),
                text_of=tokenizer.decode,
                token_string=tokenizer.token_string,
            )
        )
        headers = {"x-request-id": caller.request_id}
        async with Exchange(self._service.dispatcher, requests, outputs, receive) as exchange:
            if call.stream:
                stream = EventResponse(send, headers)
                outcome = await _stream(stream, exchange, answer, self._service.limits)
            else:
                outcome = await _collect(exchange)
        if not call.stream:
            await send_json(send, 200, answer.whole(outputs), headers)
        if speculates and outcome == "success":
            self._service.speculative_prefills.send(
                requests[0], lambda: next_prompt(call, answer, outputs[0]), model
            )
        return outcome

    async def _prepare(
        self, call: Call, caller: Caller, received_s: float
    ) -> tuple[list[GenerateRequest], list[ChoiceOutput]]:
        model, observer = self._service.models.get(call.model), self._service.observer
        observer.stage_entered("preprocess")
        try:
            check_size(call, model.tokenizer, model.max_model_len)
            prompts = await encode_prompts(call.prompts, model.tokenizer, call.prompt_field)
            requests = generate_requests(
                call, prompts, model.max_model_len, caller, received_s=received_s
            )
        finally:
            observer.stage_left("preprocess")
        tokenizer = model.tokenizer
        special = {tokenizer.special_id(text): text for text in call.shown_tokens}
        shown = {token_id: text for token_id, text in special.items() if token_id is not None}
        outputs = [
            ChoiceOutput(
                tokenizer.detokenizer(request.token_ids),
                request.sampling,
                request.token_ids,
                shown,
            )
            for request in requests
        ]
        return requests, outputs


async def _collect(exchange: Exchange) -> Outcome:
    """Have an answer come that is told in one piece. Raises: ApiError, ClientGoneError."""
    while not exchange.is_over:
        await exchange.changes()
    await exchange.settle()
    return "success"


async def _stream(
    stream: EventResponse, exchange: Exchange, answer: AnswerWriter, limits: HttpLimits
) -> Outcome:
    """Write events as they come. Raises: ApiError only while a status can still be sent."""
    try:
        await _write_events(stream, exchange, answer, limits)
    except ClientGoneError:
        raise
    except Exception as error:
        if not stream.is_open:
            raise
        if not isinstance(error, ApiError):
            log.exception("a stream failed")
        told = error if isinstance(error, ApiError) else internal_error()
        await stream.write(answer.failure(told))
        await stream.close()
        return "error"
    await stream.close()
    return "success"


async def _write_events(
    stream: EventResponse, exchange: Exchange, answer: AnswerWriter, limits: HttpLimits
) -> None:
    """The head goes out with the first token, so that an earlier failure has its own status.

    A client that waits long is told that its request has been placed, and given signs of life.
    """
    alarm = Alarm(exchange.tick, limits.head_hold_s)
    was_quiet = False  # since the alarm was set
    try:
        while not exchange.is_over:
            changes = await exchange.changes()
            events = b""
            if not stream.is_open and (changes or exchange.is_placed):
                events = answer.begin(exchange.outputs)
            events += _events(answer, exchange, changes)
            if exchange.is_over:
                await exchange.settle()
                events += answer.end(exchange.outputs)
            elif alarm.has_rung:
                if was_quiet and stream.is_open and not events:
                    events = answer.keep_alive
                alarm.set(limits.keep_alive_s)
                was_quiet = True
            if events:
                was_quiet = was_quiet and not changes
                await stream.write(events)
    finally:
        alarm.cancel()


def _events(answer: AnswerWriter, exchange: Exchange, changes: Sequence[ChoiceDelta]) -> bytes:
    parts = []
    for change in changes:
        if change.text or change.token_ids:
            parts.append(answer.delta(change))
        if change.has_ended:
            parts.append(answer.choice_end(change.index, exchange.outputs[change.index]))
    return parts[0] if len(parts) == 1 else b"".join(parts)
