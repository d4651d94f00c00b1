"""A client's request free of its dialect, and the form that its answer is given in."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from dynosim_runtime.dialects.logprobs import TextOf, TokenTexts
from dynosim_runtime.dialects.nvext import NvExt
from dynosim_runtime.dialects.output import ChoiceDelta, ChoiceOutput
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import Sampling
from dynosim_runtime.tokenize.tokenizer import Conversation


class TextPrompt(msgspec.Struct, frozen=True):
    """A prompt to be tokenized as it is."""

    text: str
    add_special_tokens: bool = True


class TokenPrompt(msgspec.Struct, frozen=True):
    """A prompt that is tokens already."""

    token_ids: list[int]


Prompt = Conversation | TextPrompt | TokenPrompt


class AnswerHead(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says of its request, and what it takes to say it."""

    request_id: str
    model: str
    created_s: int  # Unix time
    received_ms: int  # Unix time, ms
    num_prompt_tokens: int  # of all prompts
    num_choices: int
    text_of: TextOf
    token_string: Callable[[int], str] | None = None  # of a single token, if not `text_of`'s

    def token_texts(self) -> TokenTexts:
        """For the tokens of one choice."""
        return TokenTexts(self.text_of, self.token_string)


class AnswerWriter(Protocol):
    """Puts outputs into the words of one dialect; bytes of a body, or of an event stream."""

    keep_alive: bytes  # said when there is nothing to say for long

    def whole(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """The answer in one piece."""
        ...

    def begin(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """The stream's first events."""
        ...

    def delta(self, delta: ChoiceDelta) -> bytes:
        """Events for new text or tokens of a choice; may be empty."""
        ...

    def choice_end(self, index: int, output: ChoiceOutput) -> bytes:
        """Events for the end of a choice."""
        ...

    def end(self, outputs: Sequence[ChoiceOutput]) -> bytes:
        """The stream's last events."""
        ...

    def failure(self, error: ApiError) -> bytes:
        """Events that break the stream off."""
        ...

    def message(self, output: ChoiceOutput) -> dict[str, Any]:
        """A choice as the client has it, in the form of a chat completion's message."""
        ...


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One parsed request. `sampling.max_tokens` is set from `max_tokens` when the room is known."""

    model: str
    stream: bool
    prompts: list[Prompt]
    prompt_field: str  # what the dialect calls it, for errors
    max_tokens: int | None  # as asked for
    default_max_tokens: int | None = None  # None: as many as there is room for
    max_tokens_field: str = "max_tokens"
    sampling: Sampling
    num_choices: int = 1  # of each prompt
    nvext: NvExt = NvExt()
    cache_salt: str = ""
    block_ttl_s: float | None = None  # the longest that the prompt's parts are marked with
    shown_tokens: tuple[str, ...] = ()  # in texts, though they may be special
    answer: Callable[[AnswerHead], AnswerWriter]


class ApiDialect(Protocol):
    """One HTTP API."""

    endpoint: str  # its name in metrics

    def parse(self, body: bytes) -> Call:
        """Raises: ApiError 400 that names the field."""
        ...

    def error_body(self, error: ApiError) -> bytes:
        """An error instead of an answer."""
        ...
