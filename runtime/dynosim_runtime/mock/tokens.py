"""What a mock engine says: tokens that can be told in advance, and continued by another worker.

The token at position p follows from the token before it and p alone:

    token(p) - low = (token(p - 1) - low + shift(p)) modulo (high - low)

with pseudo-random shifts (SplitMix64 of p). So any worker that is given a prompt and the tokens
generated so far goes on as the first one would have.
"""

from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from dynosim.errors import ConfigError

FIRST_ORDINARY_TOKEN = 3  # 0, 1 and 2 usually begin, pad and end texts
_INITIAL_POSITIONS = 1 << 13


class TokenSource:
    """Continues prompts with token ids from `low` to `high` - 1."""

    def __init__(self, low: int, high: int) -> None:
        """Raises: ConfigError if there is no such token id."""
        if not 0 <= low < high <= 1 << 32:
            raise ConfigError(f"mock tokens: no token ids from {low} up to, not including, {high}")
        self.low = low
        self.high = high
        self._shift_sums = _shift_sums(_INITIAL_POSITIONS, high - low)

    def continuation(self, last_token: int, position: int, num_tokens: int) -> list[int]:
        """Tokens for the `num_tokens` positions from `position` on, after `last_token`."""
        end = position + num_tokens
        if end > len(self._shift_sums):
            self._shift_sums = _shift_sums(max(end, 2 * len(self._shift_sums)), self._span)
        sums = self._shift_sums
        shifted = last_token - self.low + (sums[position:end] - sums[position - 1])
        tokens: list[int] = (self.low + shifted % self._span).tolist()
        return tokens

    @property
    def _span(self) -> int:
        return self.high - self.low


def tokens_until_stop(tokens: list[int], stop_ids: Container[int], min_tokens: int) -> int | None:
    """How many tokens there are up to the first one that may stop; None: none does."""
    for count in range(max(min_tokens, 1), len(tokens) + 1):
        if tokens[count - 1] in stop_ids:
            return count
    return None


def _shift_sums(num_positions: int, span: int) -> NDArray[np.int64]:
    """Sums of the shifts of positions 0..p, for every p < `num_positions`."""
    state = np.arange(1, num_positions + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return np.cumsum((state % np.uint64(span)).astype(np.int64))
