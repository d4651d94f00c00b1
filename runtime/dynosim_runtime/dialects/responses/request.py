"""/v1/responses: from a body to a `Call`. Nothing is stored between requests."""

from typing import Annotated, Any

import msgspec
import orjson

from dynosim_runtime.dialects.call import AnswerHead, Call
from dynosim_runtime.dialects.chat.request import (
    TemplateFields,
    conversation_of,
    refuse_forced_tools,
)
from dynosim_runtime.dialects.decoding import decode_body, refuse, refuse_unsupported
from dynosim_runtime.dialects.errors import openai_error
from dynosim_runtime.dialects.nvext import NvExt
from dynosim_runtime.dialects.openai_fields import (
    Count,
    PositiveCount,
    Seed,
    Share,
    StopText,
    StopTexts,
    Temperature,
    given,
    stop_texts,
)
from dynosim_runtime.dialects.responses.answer import ResponsesAnswer
from dynosim_runtime.dialects.responses.items import messages_of_input
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import Sampling

HARMLESS_VALUES: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "previous_response_id": (),
    "prompt": (),
    "top_logprobs": (0,),
}


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer's text is formed."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body. Some of vLLM's sampling extensions are understood too."""

    model: str
    input: str | Annotated[list[Any], msgspec.Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: PositiveCount | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: TextOptions | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    truncation: str | None = None
    include: list[str] | None = None
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None
    background: Any = None
    conversation: Any = None
    previous_response_id: Any = None
    prompt: Any = None
    top_logprobs: Any = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    seed: Seed | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop: StopText | StopTexts | None = None
    cache_salt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    nvext: NvExt | None = None


# Fields of the request that its answer repeats, and what stands there if they were not given.
ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


class ResponsesDialect:
    """See `ApiDialect`."""

    endpoint = "responses"

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(ResponsesRequest)

    def parse(self, body: bytes) -> Call:
        """See `ApiDialect`."""
        request = decode_body(self._decoder, body)
        _check(request)
        echoed = _echoed(request)

        def answer(head: AnswerHead) -> ResponsesAnswer:
            return ResponsesAnswer(head, echoed)

        messages = messages_of_input(request.input)
        if request.instructions is not None:
            messages.insert(0, {"role": "system", "content": request.instructions})
        fields = TemplateFields(
            tools=_function_tools(request.tools),
            reasoning_effort=(request.reasoning or {}).get("effort"),
            chat_template_kwargs=request.chat_template_kwargs,
        )
        return Call(
            model=request.model,
            stream=bool(request.stream),
            prompts=[conversation_of(messages, fields, tool_choice=request.tool_choice)],
            prompt_field="input",
            max_tokens=request.max_output_tokens,
            max_tokens_field="max_output_tokens",
            sampling=_sampling(request),
            nvext=request.nvext or NvExt(),
            cache_salt=request.cache_salt or "",
            answer=answer,
        )

    def error_body(self, error: ApiError) -> bytes:
        """See `ApiDialect`."""
        return orjson.dumps(openai_error(error))


def _check(request: ResponsesRequest) -> None:
    refuse_unsupported(request, HARMLESS_VALUES)
    refuse_forced_tools(request.tool_choice)
    if request.text is not None and (request.text.format or {}).get("type", "text") != "text":
        raise refuse("text.format", "only plain text is supported by this server")
    if request.truncation not in (None, "disabled"):
        raise refuse("truncation", 'only "disabled" is supported by this server')


def _sampling(request: ResponsesRequest) -> Sampling:
    return Sampling(
        max_tokens=0,
        min_tokens=request.min_tokens or 0,
        temperature=given(request.temperature, 1.0),
        top_p=given(request.top_p, 1.0),
        top_k=max(request.top_k or 0, 0),
        seed=request.seed,
        stop=stop_texts(request.stop),
        ignore_eos=bool(request.ignore_eos),
    )


def _function_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools in the form of chat completions, which templates know; hosted tools do not exist."""
    rendered = []
    for index, tool in enumerate(tools or ()):
        if tool.get("type") != "function":
            raise refuse(f"tools[{index}].type", 'only "function" is supported by this server')
        if not isinstance(tool.get("name"), str):
            raise refuse(f"tools[{index}].name", "required", "missing_required_parameter")
        function = {key: value for key, value in tool.items() if key not in ("type", "strict")}
        rendered.append({"type": "function", "function": function})
    return rendered or None


def _echoed(request: ResponsesRequest) -> dict[str, Any]:
    """The request's own fields, as the answer repeats them."""
    given_fields = msgspec.to_builtins(request)
    echoed = {
        key: default if given_fields[key] is None else given_fields[key]
        for key, default in ECHOED.items()
    }
    if echoed["text"].get("format") is None:
        echoed["text"] = {**echoed["text"], "format": {"type": "text"}}
    return echoed
