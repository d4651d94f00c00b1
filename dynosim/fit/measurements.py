"""Requests that a real engine has served, in columns: what was asked and when tokens came.

Times run from one of two moments. On the engine's clock they count from the moment its scheduler
took a request (always the end of a step, if one was running); the way there is unknown. On the
clients' clock they count from the arrival, and include that way and the way back.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import FloatArray, IntArray, Trace

Clock = Literal["engine", "clients"]

NEEDED_REQUESTS = 30
"""Fewer cannot tell half a dozen constants from the noise of single requests."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """One recorded run; row i is request i, in order of arrival."""

    source: str  # file, for messages
    setup: dict[str, Any]  # as the file states it; empty if it does not
    clock: Clock
    arrival_ms: FloatArray  # (n,) first is 0
    input_tokens: IntArray
    output_tokens: IntArray
    ttft_ms: FloatArray  # (n,) on `clock`
    decode_ms: FloatArray  # (n,) first to last token
    block_tokens: int  # of a prefix hash; 0 without prefix information
    hashes: tuple[tuple[int, ...], ...] = field(repr=False)  # (n,) full blocks of each prompt

    def __len__(self) -> int:
        return len(self.arrival_ms)

    @property
    def latency_ms(self) -> FloatArray:
        """Start of the clock to last token."""
        return self.ttft_ms + self.decode_ms

    @property
    def end_ms(self) -> FloatArray:
        """Last token; on the engine's clock without the unknown way to the scheduler."""
        return self.arrival_ms + self.latency_ms

    def first(self, count: int) -> "Measurements":
        """The first `count` requests."""
        return replace(
            self,
            arrival_ms=self.arrival_ms[:count],
            input_tokens=self.input_tokens[:count],
            output_tokens=self.output_tokens[:count],
            ttft_ms=self.ttft_ms[:count],
            decode_ms=self.decode_ms[:count],
            hashes=self.hashes[:count],
        )

    def fit_count(self, fraction: float) -> int:
        """Requests in the leading `fraction`. Raises: ConfigError if they are too few to fit."""
        count = round(len(self) * fraction)
        if count < NEEDED_REQUESTS:
            raise ConfigError(
                f"{self.source}: {count} requests to fit on (fraction {fraction:g} of {len(self)});"
                f" at least {NEEDED_REQUESTS} are needed: record more, or raise --fit-fraction"
            )
        return count

    def trace(self) -> Trace:
        """The workload, without its measured times."""
        ids, offsets = self._hash_ids()
        return Trace(
            arrival_ms=self.arrival_ms,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            hash_ids=ids,
            hash_offsets=offsets,
            trace_block_size=self.block_tokens or 16,
            source=self.source,
        )

    def _hash_ids(self) -> tuple[IntArray, IntArray]:
        """Ids of all blocks of each prompt: a part-full last one is nobody else's."""
        if not self.block_tokens:
            return np.zeros(0, np.int64), np.zeros(len(self) + 1, np.int64)
        fresh = max((max(row) for row in self.hashes if row), default=0) + 1
        ids: list[int] = []
        offsets = [0]
        for row, tokens in zip(self.hashes, self.input_tokens.tolist(), strict=True):
            missing = -(-tokens // self.block_tokens) - len(row)
            ids += row
            ids += range(fresh, fresh + missing)
            fresh += missing
            offsets.append(len(ids))
        return np.array(ids, np.int64), np.array(offsets, np.int64)
