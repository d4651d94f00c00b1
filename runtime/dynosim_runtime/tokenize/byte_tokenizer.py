"""Bytes as tokens, for plans without model files: any text can be encoded and comes back the same.

Simulated engines make up token ids from a whole vocabulary; those beyond the bytes show as letters,
so that an answer has as much to see as it has tokens.
"""

import codecs
from collections.abc import Sequence

import numpy as np

from dynosim_runtime.tokenize.tokenizer import Conversation

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT_ID, TURN_START_ID, TURN_END_ID = range(3)
BYTE_OFFSET = len(SPECIAL_TOKENS)  # a byte's id is its value plus this
VOCAB_SIZE = BYTE_OFFSET + 256
TOKEN_ID_LIMIT = 1 << 31


class ByteTokenizer:
    """A `Tokenizer` that needs no files. Its chat template is ChatML; tools are not shown."""

    token_id_limit = TOKEN_ID_LIMIT
    max_chars_per_token = 1

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Tokenizer`; no special tokens are ever added."""
        data = np.frombuffer(text.encode(errors="replace"), np.uint8)
        ids: list[int] = (data.astype(np.int64) + BYTE_OFFSET).tolist()
        return ids

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """See `Tokenizer`. Text that looks like a special token stays text."""
        ids: list[int] = []
        for message in conversation.messages:
            content = message.get("content") or ""
            ids += [TURN_START_ID, *self.encode(f"{message['role']}\n{content}"), TURN_END_ID]
            ids += self.encode("\n")
        if conversation.continue_final_message:
            return ids[: -1 - len(self.encode("\n"))]
        if conversation.add_generation_prompt:
            ids += [TURN_START_ID, *self.encode("assistant\n")]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """See `Tokenizer`."""
        shown = (
            token_id for token_id in token_ids if token_id >= BYTE_OFFSET or not skip_special_tokens
        )
        return b"".join(map(_bytes_of, shown)).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        """See `Tokenizer`; a byte that is no character of its own is written like `<0xC3>`."""
        data = _bytes_of(token_id)
        return data.decode() if data.isascii() else f"<0x{data[0]:02X}>"

    def token_string(self, token_id: int) -> str:
        """See `Tokenizer`."""
        return self.decode((token_id,))

    def special_id(self, text: str) -> int | None:
        """See `Tokenizer`."""
        return SPECIAL_TOKENS.index(text) if text in SPECIAL_TOKENS else None

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> "ByteDetokenizer":
        """See `Tokenizer`."""
        return ByteDetokenizer()


class ByteDetokenizer:
    """A `Detokenizer` of byte tokens."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token_id: int) -> str:
        """See `Detokenizer`."""
        return "" if token_id < BYTE_OFFSET else self._decoder.decode(_bytes_of(token_id))


def _bytes_of(token_id: int) -> bytes:
    if token_id < BYTE_OFFSET:
        return SPECIAL_TOKENS[token_id].encode()
    if token_id < VOCAB_SIZE:
        return bytes((token_id - BYTE_OFFSET,))
    return bytes((ord("a") + token_id % 26,))
