"""/v1/chat/completions: from a body to a `Call`."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import orjson

from dynosim_runtime.dialects.call import AnswerHead, Call
from dynosim_runtime.dialects.chat.answer import ChatAnswer
from dynosim_runtime.dialects.content import joined_text
from dynosim_runtime.dialects.decoding import decode_body, refuse, refuse_unsupported
from dynosim_runtime.dialects.errors import openai_error
from dynosim_runtime.dialects.nvext import NvExt
from dynosim_runtime.dialects.openai_fields import (
    Count,
    OpenAiFields,
    PositiveCount,
    check_fields,
    sampling_of,
)
from dynosim_runtime.dialects.parsing.output_parser import Parsing
from dynosim_runtime.errors import ApiError
from dynosim_runtime.tokenize.tokenizer import Conversation

# Templates know no "developer": to them those are the system's words.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
TEXT_PARTS = ("text", "refusal")
TEMPLATE_KEYS = ("name", "tool_call_id", "reasoning_content")
HARMLESS_VALUES: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template": (),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"], []),
    "web_search_options": (),
}

NO_PARSING = Parsing()
Messages = Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]


class TemplateFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a chat template is given besides the messages; vLLM's names."""

    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatRequest(OpenAiFields, frozen=True, kw_only=True):
    """The body; `TemplateFields` are among its fields."""

    messages: Messages
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_completion_tokens: PositiveCount | None = None
    tool_choice: str | dict[str, Any] | None = None
    audio: Any = None
    chat_template: Any = None
    echo: Any = None
    function_call: Any = None
    functions: Any = None
    logprobs: bool | None = None
    modalities: Any = None
    top_logprobs: Count | None = None
    web_search_options: Any = None


class ChatDialect:
    """See `ApiDialect`. `parsing` tells what the model writes besides words for the user."""

    endpoint = "chat_completions"

    def __init__(self, parsing: Parsing = NO_PARSING) -> None:
        self._parsing = parsing
        self._decoder = msgspec.json.Decoder(ChatRequest)

    def parse(self, body: bytes) -> Call:
        """See `ApiDialect`."""
        request = decode_body(self._decoder, body)
        check_fields(request)
        refuse_unsupported(request, HARMLESS_VALUES)
        refuse_forced_tools(request.tool_choice)
        options = request.stream_options
        num_top = _num_top_logprobs(request)
        has_tools = bool(request.tools) and request.tool_choice != "none"
        parsing = self._parsing.for_request(has_tools=has_tools)

        def answer(head: AnswerHead) -> ChatAnswer:
            return ChatAnswer(
                head,
                include_usage=options is not None and bool(options.include_usage),
                return_token_ids=bool(request.return_token_ids),
                num_top_logprobs=num_top,
                parsing=parsing,
            )

        fields = msgspec.convert(request, TemplateFields, from_attributes=True)
        is_new_name = request.max_completion_tokens is not None
        return Call(
            model=request.model,
            stream=bool(request.stream),
            prompts=[conversation_of(request.messages, fields, tool_choice=request.tool_choice)],
            prompt_field="messages",
            max_tokens=request.max_completion_tokens if is_new_name else request.max_tokens,
            max_tokens_field="max_completion_tokens" if is_new_name else "max_tokens",
            sampling=sampling_of(request, num_top),
            num_choices=request.n or 1,
            nvext=request.nvext or NvExt(),
            cache_salt=request.cache_salt or "",
            shown_tokens=parsing.markers,
            answer=answer,
        )

    def error_body(self, error: ApiError) -> bytes:
        """See `ApiDialect`."""
        return orjson.dumps(openai_error(error))


def _num_top_logprobs(request: ChatRequest) -> int | None:
    """How many likely tokens to tell beside each token; None: no logprobs. Raises: ApiError 400."""
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise refuse("top_logprobs", "only allowed when logprobs is true", "invalid_value")
    return None


def refuse_forced_tools(tool_choice: object) -> None:
    """Calls cannot be promised: the model is free to write none. Raises: ApiError 400."""
    kind = tool_choice.get("type") if isinstance(tool_choice, dict) else tool_choice
    if kind not in (None, "none", "auto"):
        raise refuse("tool_choice", 'only "auto" and "none" are supported by this server')


def conversation_of(
    messages: list[dict[str, Any]], fields: TemplateFields, *, tool_choice: object = None
) -> Conversation:
    """What the chat template renders. Raises: ApiError 400."""
    template_args = dict(fields.chat_template_kwargs or {})
    _check_tools(fields.tools or ())
    if fields.reasoning_effort is not None:
        template_args.setdefault("reasoning_effort", fields.reasoning_effort)
    continues = bool(fields.continue_final_message)
    if continues and fields.add_generation_prompt:
        raise refuse("continue_final_message", "excludes add_generation_prompt", "invalid_value")
    return Conversation(
        messages=[
            template_message(message, f"messages[{index}]")
            for index, message in enumerate(messages)
        ],
        tools=None if tool_choice == "none" else fields.tools or None,
        documents=fields.documents,
        add_generation_prompt=fields.add_generation_prompt is not False and not continues,
        continue_final_message=continues,
        template_args=template_args,
    )


def _check_tools(tools: Sequence[dict[str, Any]]) -> None:
    """Raises: ApiError 400 for what no template could show as a function."""
    for index, tool in enumerate(tools):
        if tool.get("type", "function") != "function":
            raise refuse(f"tools[{index}].type", 'only "function" is supported by this server')
        function = tool.get("function")
        function = function if isinstance(function, dict) else {}
        if not isinstance(function.get("name"), str) or not function["name"]:
            where = f"tools[{index}].function.name"
            raise refuse(where, "required", "missing_required_parameter")
        if not isinstance(function.get("parameters"), dict | None):
            where = f"tools[{index}].function.parameters"
            raise refuse(where, "expected a JSON schema", "invalid_type")


def template_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message as templates know it. Raises: ApiError 400."""
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise refuse(f"{where}.role", f"expected one of {', '.join(ROLES)}", "invalid_value")
    content = message.get("content")
    calls = message.get("tool_calls")
    if content is None and role != "assistant":
        raise refuse(f"{where}.content", "required", "missing_required_parameter")
    rendered: dict[str, Any] = {
        "role": ROLES[role],
        "content": joined_text(content, f"{where}.content", TEXT_PARTS),
    }
    rendered.update((key, message[key]) for key in TEMPLATE_KEYS if message.get(key) is not None)
    if calls:
        rendered["tool_calls"] = template_tool_calls(calls, f"{where}.tool_calls")
    return rendered


def template_tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects, which is what templates expect.

    Raises: ApiError 400.
    """
    if not isinstance(calls, list):
        raise refuse(where, "expected a list", "invalid_type")
    rendered = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise refuse(f"{where}[{index}].function.name", "required", "invalid_type")
        arguments = _arguments(function.get("arguments"))
        rendered.append({**call, "function": {**function, "arguments": arguments}})
    return rendered


def _arguments(arguments: object) -> object:
    """Parsed, unless the model once wrote arguments that are no JSON: those stay text."""
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments
