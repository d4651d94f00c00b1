"""Rows of a trace file in columns, between the decoders and the finished `Trace`."""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dynosim.records import FloatArray, IntArray, Retention, Wishes

MISSING_TOKENS = -(1 << 62)
"""Stands for a length that the row does not state; no real length is negative."""

TOKENS_MAX = 1 << 31
"""No prompt or answer is this long; such a number is a damaged field."""

BoolArray = NDArray[np.bool_]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What a format calls its fields, for messages."""

    arrival: str
    input_tokens: str
    output_tokens: str
    delay: str = "delay"
    hash_ids: str = "hash_ids"


class Awaited(NamedTuple):
    """A row waits for another: until it has ended, or `from_start` come, and `delay_ms` longer."""

    request_id: str
    delay_ms: float
    from_start: bool


@dataclass(slots=True)
class Columns:
    """A chunk of rows: n of them, in file order. None where no row has the field."""

    line: IntArray  # (n,) 1-based
    arrival_ms: FloatArray  # (n,) NaN: not stated
    input_tokens: IntArray  # (n,) MISSING_TOKENS: not stated
    output_tokens: IntArray  # (n,) MISSING_TOKENS: not stated
    hash_ids: IntArray  # (sum of hash_counts,)
    hash_counts: IntArray  # (n,) -1: the row has no such field
    delay_ms: FloatArray | None = None  # (n,) NaN: not stated
    priority: IntArray | None = None  # (n,)
    session_ids: list[str | None] | None = None
    request_ids: list[str | None] | None = None
    wishes: list[Wishes | None] | None = None
    retention: list[Retention | None] | None = None
    waits: list[tuple[Awaited, ...] | None] | None = None  # None: for its session's earlier turn
    classes: list[str | None] | None = None
    expected_output_tokens: IntArray | None = None  # (n,) 0: not stated
    is_speculative: BoolArray | None = None  # (n,) see `Trace`
    is_prefetch: BoolArray | None = None  # (n,) see `Trace`
    is_assumed: BoolArray | None = None  # (n,) the prompt's length was taken from its hash ids

    def __len__(self) -> int:
        return len(self.line)

    def take(self, keep: BoolArray) -> "Columns":
        """The rows where `keep` is true."""
        held = np.maximum(self.hash_counts, 0)
        expected, speculative = self.expected_output_tokens, self.is_speculative
        return Columns(
            line=self.line[keep],
            arrival_ms=self.arrival_ms[keep],
            input_tokens=self.input_tokens[keep],
            output_tokens=self.output_tokens[keep],
            hash_ids=self.hash_ids[np.repeat(keep, held)],
            hash_counts=self.hash_counts[keep],
            delay_ms=None if self.delay_ms is None else self.delay_ms[keep],
            priority=None if self.priority is None else self.priority[keep],
            session_ids=_take_list(self.session_ids, keep),
            request_ids=_take_list(self.request_ids, keep),
            wishes=_take_list(self.wishes, keep),
            retention=_take_list(self.retention, keep),
            waits=_take_list(self.waits, keep),
            classes=_take_list(self.classes, keep),
            expected_output_tokens=None if expected is None else expected[keep],
            is_speculative=None if speculative is None else speculative[keep],
            is_prefetch=None if self.is_prefetch is None else self.is_prefetch[keep],
            is_assumed=None if self.is_assumed is None else self.is_assumed[keep],
        )

    def trim_hash_ids(self, block_tokens: int) -> None:
        """Leave out hash ids behind the end of the prompt: they stand for no token."""
        needed = np.where(self.hash_counts < 0, -1, -(-self.input_tokens // block_tokens))
        if np.array_equal(needed, self.hash_counts):
            return
        ends = np.cumsum(self.hash_counts)
        depth = np.arange(len(self.hash_ids)) - np.repeat(ends - self.hash_counts, self.hash_counts)
        self.hash_ids = self.hash_ids[depth < np.repeat(needed, self.hash_counts)]
        self.hash_counts = needed


def _take_list(values: list[T] | None, keep: BoolArray) -> list[T] | None:
    if values is None:
        return None
    return [value for value, kept in zip(values, keep.tolist(), strict=True) if kept]
