"""/v1/completions: from a body to a `Call`."""

from typing import Any

import msgspec
import orjson

from dynosim_runtime.dialects.call import AnswerHead, Call, Prompt, TextPrompt, TokenPrompt
from dynosim_runtime.dialects.completions.answer import CompletionsAnswer
from dynosim_runtime.dialects.decoding import decode_body, refuse, refuse_unsupported
from dynosim_runtime.dialects.errors import openai_error
from dynosim_runtime.dialects.nvext import NvExt
from dynosim_runtime.dialects.openai_fields import (
    Count,
    OpenAiFields,
    check_fields,
    sampling_of,
)
from dynosim_runtime.errors import ApiError

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_CHOICES_IN_ALL = 128  # of all prompts together
HARMLESS_VALUES: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "prompt_embeds": (),
    "suffix": ("",),
}


class CompletionsRequest(OpenAiFields, frozen=True, kw_only=True):
    """The body."""

    prompt: str | list[Any]
    add_special_tokens: bool | None = None
    echo: Any = None
    logprobs: Count | None = None
    prompt_embeds: Any = None
    suffix: Any = None


class CompletionsDialect:
    """See `ApiDialect`."""

    endpoint = "completions"

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(CompletionsRequest)

    def parse(self, body: bytes) -> Call:
        """See `ApiDialect`."""
        request = decode_body(self._decoder, body)
        check_fields(request)
        refuse_unsupported(request, HARMLESS_VALUES)
        options = request.stream_options
        prompts = _prompts(request.prompt, request.add_special_tokens is not False)
        if len(prompts) * (request.n or 1) > MAX_CHOICES_IN_ALL:
            raise refuse(
                "prompt", f"at most {MAX_CHOICES_IN_ALL} choices in one request", "invalid_value"
            )

        def answer(head: AnswerHead) -> CompletionsAnswer:
            return CompletionsAnswer(
                head,
                include_usage=options is not None and bool(options.include_usage),
                return_token_ids=bool(request.return_token_ids),
                tells_logprobs=request.logprobs is not None,
            )

        return Call(
            model=request.model,
            stream=bool(request.stream),
            prompts=prompts,
            prompt_field="prompt",
            max_tokens=request.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            sampling=sampling_of(request, request.logprobs),
            num_choices=request.n or 1,
            nvext=request.nvext or NvExt(),
            cache_salt=request.cache_salt or "",
            answer=answer,
        )

    def error_body(self, error: ApiError) -> bytes:
        """See `ApiDialect`."""
        return orjson.dumps(openai_error(error))


def _prompts(prompt: str | list[Any], add_special_tokens: bool) -> list[Prompt]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    if isinstance(prompt, str):
        return [TextPrompt(prompt, add_special_tokens)]
    if not prompt:
        raise refuse("prompt", "must not be empty", "invalid_value")
    if isinstance(prompt[0], int):
        return [TokenPrompt(_token_ids(prompt, "prompt"))]
    return [_one_prompt(item, index, add_special_tokens) for index, item in enumerate(prompt)]


def _one_prompt(item: object, index: int, add_special_tokens: bool) -> Prompt:
    if isinstance(item, str):
        return TextPrompt(item, add_special_tokens)
    if isinstance(item, list):
        return TokenPrompt(_token_ids(item, f"prompt[{index}]"))
    raise refuse(f"prompt[{index}]", "expected a text or a list of token ids", "invalid_type")


def _token_ids(items: list[Any], where: str) -> list[int]:
    if set(map(type, items)) - {int}:  # of long prompts: faster than looking at each in turn
        raise refuse(where, "expected token ids (integers) only", "invalid_type")
    return items
