"""Text to tokens and back: what the HTTP dialects ask of a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What a chat template renders; messages are as templates know them: role, content, ..."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_args: Mapping[str, Any] = {}  # e.g. enable_thinking, reasoning_effort


class ChatTemplateError(Exception):
    """The model's chat template refuses a conversation."""


class Detokenizer(Protocol):
    """Turns the tokens of one answer into text as they come."""

    def step(self, token_id: int) -> str:
        """The text that is certain now; empty inside a character of several tokens.

        A character that is unfinished when the answer ends is no part of its text, as in vLLM.
        """
        ...


class Tokenizer(Protocol):
    """A model's tokenizer. All methods may be called from any thread."""

    @property
    def token_id_limit(self) -> int:
        """Token ids in prompts must be below it."""
        ...

    @property
    def max_chars_per_token(self) -> int:
        """No token stands for more characters."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation in the form of the chat template.

        Raises: ChatTemplateError.
        """
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        ...

    def token_text(self, token_id: int) -> str:
        """A token as the vocabulary spells it."""
        ...

    def token_string(self, token_id: int) -> str:
        """The text of a token by itself; ends with U+FFFD if it leaves a character unfinished."""
        ...

    def special_id(self, text: str) -> int | None:
        """The special token that is written so, which detokenizers skip; None if there is none."""
        ...

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> Detokenizer:
        """For an answer to a prompt; special tokens are skipped."""
        ...
