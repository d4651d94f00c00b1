"""Prompts made of pieces into block ids: equal where all tokens of a block are.

A piece is the beginning of some text, by the text's number and a length. Two prompts that begin
with the same pieces share the blocks that lie within them.
"""

from collections.abc import Sequence

import numpy as np

from dynosim.records import IntArray

Piece = tuple[int, int]
"""The first so many tokens of a text: its number, and how many."""
Prompt = tuple[Piece, ...]

_BLOCKS_MAX = 1 << 24
"""Blocks of one piece; numbers of blocks are kept apart by it."""


def prompt_tokens(prompt: Prompt) -> int:
    """How long a prompt is."""
    return sum(tokens for _, tokens in prompt)


class BlockNames:
    """Names blocks of prompts, as numbers with large gaps between them."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._known: dict[tuple[tuple[int, int, int], ...], int] = {}

    def of_thread(self, prompts: Sequence[Prompt]) -> list[IntArray]:
        """The ids of prompts that mostly each continue the one before.

        A prompt that another continues ends inside a block that the other fills, and has its name.
        """
        found: list[IntArray] = []
        later: Prompt = ()
        for prompt in reversed(prompts):
            if found and later[: len(prompt)] == prompt:
                found.append(found[-1][: -(-prompt_tokens(prompt) // self._size)])
            else:
                found.append(self._ids(prompt))
            later = prompt
        return found[::-1]

    def _ids(self, prompt: Prompt) -> IntArray:
        size = self._size
        parts: list[IntArray] = []
        block: list[tuple[int, int, int]] = []  # pieces of one that is not full: text, from, tokens
        filled = 0
        for text, tokens in prompt:
            start = 0
            if filled:
                start = min(size - filled, tokens)
                if start:
                    block.append((text, 0, start))
                filled += start
                if filled == size:
                    parts.append(np.array([self._number(tuple(block))]))
                    block, filled = [], 0
            whole = (tokens - start) // size
            if whole:
                first = self._number(((text, start, 0),))
                parts.append(first + np.arange(whole))
            left = tokens - start - whole * size
            if left:
                block.append((text, start + whole * size, left))
                filled = left
        if filled:
            parts.append(np.array([self._number(tuple(block))]))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _number(self, key: tuple[tuple[int, int, int], ...]) -> int:
        """The number of a block, or of the first of several within one piece."""
        return self._known.setdefault(key, len(self._known)) * _BLOCKS_MAX
