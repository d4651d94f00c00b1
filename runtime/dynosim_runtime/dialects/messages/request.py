"""/v1/messages, Anthropic's API: from a body to a `Call`."""

import re
from typing import Annotated, Any

import msgspec
import orjson

from dynosim_runtime.dialects.cache_control import longest_ttl_s
from dynosim_runtime.dialects.call import AnswerHead, Call
from dynosim_runtime.dialects.chat.request import TemplateFields, conversation_of
from dynosim_runtime.dialects.content import joined_text
from dynosim_runtime.dialects.decoding import decode_body, refuse
from dynosim_runtime.dialects.errors import anthropic_error
from dynosim_runtime.dialects.messages.answer import MessagesAnswer
from dynosim_runtime.dialects.messages.blocks import messages_of_blocks
from dynosim_runtime.dialects.nvext import NvExt
from dynosim_runtime.dialects.openai_fields import Count, PositiveCount, Seed, StopTexts, given
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import Sampling
from dynosim_runtime.tokenize.tokenizer import Conversation

_BILLING_LINE = re.compile(r"^x-anthropic-billing-header:[^\n]*\n?")


class CountTokensRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/messages/count_tokens: what makes the prompt."""

    model: str
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    system: str | list[Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True):
    """The body."""

    max_tokens: PositiveCount
    stream: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Count | None = None
    stop_sequences: StopTexts | None = None
    seed: Seed | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    nvext: NvExt | None = None


class MessagesDialect:
    """See `ApiDialect`. `strip_preamble` removes a billing line before the system's first words."""

    endpoint = "messages"

    def __init__(self, *, strip_preamble: bool = False) -> None:
        self._strip_preamble = strip_preamble
        self._decoder = msgspec.json.Decoder(MessagesRequest)
        self._count_decoder = msgspec.json.Decoder(CountTokensRequest)

    def parse(self, body: bytes) -> Call:
        """See `ApiDialect`."""
        request = decode_body(self._decoder, body)
        return Call(
            model=request.model,
            stream=bool(request.stream),
            prompts=[self._conversation(request)],
            prompt_field="messages",
            max_tokens=request.max_tokens,
            sampling=_sampling(request),
            block_ttl_s=longest_ttl_s(
                ("tools", request.tools),
                ("system", request.system),
                ("messages", request.messages),
            ),
            nvext=request.nvext or NvExt(),
            answer=_answer,
        )

    def parse_count(self, body: bytes) -> tuple[str, Conversation]:
        """(model, prompt) of a request to count tokens. Raises: ApiError 400."""
        request = decode_body(self._count_decoder, body)
        return request.model, self._conversation(request)

    def error_body(self, error: ApiError) -> bytes:
        """See `ApiDialect`."""
        return orjson.dumps(anthropic_error(error))

    def _conversation(self, request: CountTokensRequest) -> Conversation:
        choice = (request.tool_choice or {}).get("type")
        if choice not in (None, "auto", "none"):
            raise refuse("tool_choice", "only auto and none are supported by this server")
        messages = messages_of_blocks(request.messages)
        system = joined_text(request.system, "system", ("text",))
        if self._strip_preamble:
            system = _BILLING_LINE.sub("", system, count=1)
        if system:
            messages.insert(0, {"role": "system", "content": system})
        # An assistant's message at the end is the beginning of the answer.
        continues = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
        fields = TemplateFields(
            tools=_function_tools(request.tools),
            continue_final_message=continues,
            chat_template_kwargs={
                **_thinking_args(request.thinking),
                **(request.chat_template_kwargs or {}),
            },
        )
        return conversation_of(messages, fields, tool_choice=choice)


def _answer(head: AnswerHead) -> MessagesAnswer:
    return MessagesAnswer(head)


def _sampling(request: MessagesRequest) -> Sampling:
    return Sampling(
        max_tokens=0,
        min_tokens=request.min_tokens or 0,
        temperature=given(request.temperature, 1.0),
        top_p=given(request.top_p, 1.0),
        top_k=request.top_k or 0,
        seed=request.seed,
        stop=tuple(request.stop_sequences or ()),
        ignore_eos=bool(request.ignore_eos),
    )


def _thinking_args(thinking: dict[str, Any] | None) -> dict[str, Any]:
    """The template's own words for it; earlier thinking stays, since it explains tool calls."""
    if thinking is None:
        return {}
    if thinking.get("type") == "disabled":
        return {"enable_thinking": False}
    return {"enable_thinking": True, "truncate_history_thinking": False}


def _function_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools in the form of chat completions, which templates know."""
    rendered = []
    for index, tool in enumerate(tools or ()):
        if tool.get("type") not in (None, "custom"):
            raise refuse(f"tools[{index}].type", "tools of the server are not supported")
        if not isinstance(tool.get("name"), str):
            raise refuse(f"tools[{index}].name", "required", "missing_required_parameter")
        function = {
            "name": tool["name"],
            "description": tool.get("description", ""),
            "parameters": tool.get("input_schema", {}),
        }
        rendered.append({"type": "function", "function": function})
    return rendered or None
