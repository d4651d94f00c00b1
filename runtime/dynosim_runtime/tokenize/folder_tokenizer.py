"""The tokenizer of a Hugging Face model folder, and its chat template."""

import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream

from dynosim.errors import ConfigError
from dynosim_runtime.tokenize.tokenizer import ChatTemplateError, Conversation

REPLACEMENT = "\ufffd"
MIN_CONTEXT_IDS, MAX_CONTEXT_IDS = 4, 24


class FolderTokenizer:
    """A `Tokenizer` read from `folder` (tokenizer.json, tokenizer_config.json, chat template)."""

    def __init__(self, folder: Path) -> None:
        """Raises: ConfigError if there is no tokenizer that can be used."""
        self._tokenizer = _load(folder)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(f"{folder}: only fast tokenizers are supported (tokenizer.json)")
        self._backend: Any = backend
        self._own_args = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys()
        self.token_id_limit = max(len(self._tokenizer), _config_vocab_size(folder))
        self._blank = _blank_of(backend)
        self.max_chars_per_token = max(map(len, backend.get_vocab(with_added_tokens=True)))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Tokenizer`."""
        # `encode` would hold the interpreter's lock all the time, and computes offsets too.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """See `Tokenizer`."""
        taken = self._own_args & conversation.template_args.keys()
        if taken:  # a template of the client's own among them
            raise ChatTemplateError(f"not for clients to set: {', '.join(sorted(taken))}")
        try:
            text = self._tokenizer.apply_chat_template(
                conversation.messages,
                tools=conversation.tools,
                documents=conversation.documents,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final_message=conversation.continue_final_message,
                tokenize=False,
                **conversation.template_args,
            )
        # A template is a program that came with the model; it may fail in any way.
        except Exception as error:
            raise ChatTemplateError(f"the chat template refuses the messages: {error}") from error
        return self.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """See `Tokenizer`."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """See `Tokenizer`; empty for an id that no token has."""
        return self._backend.id_to_token(token_id) or ""

    def token_string(self, token_id: int) -> str:
        """See `Tokenizer`; with the blanks in front that decoding a text's first word loses."""
        text = self.decode((token_id,))
        if self._blank is None:
            return text
        word = self.token_text(token_id)
        num_blanks = len(word) - len(word.lstrip(self._blank))
        return " " * (num_blanks - (len(text) - len(text.lstrip(" ")))) + text

    def special_id(self, text: str) -> int | None:
        """See `Tokenizer`."""
        token_id: int | None = self._backend.token_to_id(text)
        if token_id is None or self.decode((token_id,), skip_special_tokens=True):
            return None
        return token_id

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> "StreamDetokenizer":
        """See `Tokenizer`."""
        return StreamDetokenizer(self._backend, self._context(prompt_ids))

    def _context(self, prompt_ids: Sequence[int]) -> list[int]:
        """The prompt's last tokens, for tokenizers whose first token of a text loses its space.

        As vLLM does: a few of them, which do not begin inside a character; none if that is not
        possible.
        """
        for count in range(MIN_CONTEXT_IDS, min(len(prompt_ids), MAX_CONTEXT_IDS) + 1):
            context = list(prompt_ids[-count:])
            if REPLACEMENT not in self.decode(context, skip_special_tokens=True):
                return context
        return []


class StreamDetokenizer:
    """A `Detokenizer` over the tokenizer's own decoder."""

    __slots__ = ("_backend", "_stream")

    def __init__(self, backend: Any, context: list[int]) -> None:
        self._backend = backend
        self._stream = DecodeStream(ids=context, skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        """See `Detokenizer`."""
        try:
            text: str | None = self._stream.step(self._backend, token_id)
        except Exception:  # the text so far reads differently now; the library gives no finer type
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._stream.step(self._backend, token_id)
        return text or ""


def _load(folder: Path) -> Any:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, its own, ...
        raise ConfigError(
            f"{folder}: no usable tokenizer: {str(error).splitlines()[0]} "
            "(the folder must hold tokenizer.json and tokenizer_config.json)"
        ) from error


def _blank_of(backend: Any) -> str | None:
    """How words are marked that have a blank in front, where decoding loses the first of them."""
    if backend.pre_tokenizer is None:
        return None
    config = json.loads(backend.pre_tokenizer.__getstate__())
    for part in (config, *config.get("pretokenizers", ())):
        if part.get("type") == "Metaspace":
            return str(part.get("replacement", "\u2581"))
    return None


def _config_vocab_size(folder: Path) -> int:
    """Rows of the model's embedding, which may be more than the tokenizer has words for."""
    path = folder / "config.json"
    if not path.is_file():
        return 0
    try:
        size = json.loads(path.read_text("utf-8")).get("vocab_size", 0)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a JSON object: {error}") from None
    return size if isinstance(size, int) else 0
