"""The two JSON dialects of a trace row: which fields there are and what they mean."""

from dataclasses import dataclass
from typing import Any

import msgspec

from dynosim.workload.columns import FieldNames
from dynosim.workload.retention_fields import RangeRow
from dynosim.workload.wait_fields import WaitFor


class MooncakeRow(msgspec.Struct, gc=False, frozen=True):
    """One line of a Mooncake trace. Times in ms."""

    timestamp: float | None = None
    created_time: float | None = None
    input_length: int | None = None
    input_tokens: int | None = None
    output_length: int | None = None
    output_tokens: int | None = None
    hash_ids: list[int] | None = None
    session_id: str | int | None = None
    request_id: str | int | None = None
    delay: float | None = None
    delay_ms: float | None = None
    priority: int | None = None


class PlainRow(msgspec.Struct, gc=False, frozen=True, forbid_unknown_fields=True):
    """One line of a plain JSONL trace. Times in ms."""

    arrival_ms: float | None = None
    timestamp: float | None = None
    input_tokens: int | None = None
    input_length: int | None = None
    output_tokens: int | None = None
    output_length: int | None = None
    prompt_hash_ids: list[int] | None = None
    hash_ids: list[int] | None = None
    session_id: str | int | None = None
    request_id: str | int | None = None
    delay_ms: float | None = None
    delay: float | None = None
    priority: int | None = None


class MooncakeFullRow(MooncakeRow, gc=False, frozen=True):
    """One that may say which worker it wants, what it waits for and what its blocks are worth."""

    worker_id: int | None = None
    required_taints: list[str] | None = None
    preferred_taints: dict[str, float] | None = None
    router_config_override: dict[str, Any] | None = None
    wait_for: WaitFor | None = None
    request_class: str | None = None
    expected_output_tokens: int | None = None
    speculative_prefill: bool | None = None
    prefetch: bool | None = None
    retention: list[RangeRow] | None = None
    pin_ttl_ms: float | None = None
    ephemeral: bool | None = None
    pin_ends_with_session: bool | None = None


class PlainFullRow(PlainRow, gc=False, frozen=True, forbid_unknown_fields=True):
    """One that may say which worker it wants, what it waits for and what its blocks are worth."""

    worker_id: int | None = None
    required_taints: list[str] | None = None
    preferred_taints: dict[str, float] | None = None
    router_config_override: dict[str, Any] | None = None
    wait_for: WaitFor | None = None
    request_class: str | None = None
    expected_output_tokens: int | None = None
    speculative_prefill: bool | None = None
    prefetch: bool | None = None
    retention: list[RangeRow] | None = None
    pin_ttl_ms: float | None = None
    ephemeral: bool | None = None
    pin_ends_with_session: bool | None = None


@dataclass(frozen=True, slots=True)
class RowDialect:
    """Where a row type keeps each column: the field's names, the preferred one first.

    `full_row` also has the fields of `rare_fields`, which few traces use.
    """

    row: type[MooncakeRow] | type[PlainRow]
    full_row: type[MooncakeFullRow] | type[PlainFullRow]
    arrival: tuple[str, str]
    input_tokens: tuple[str, str]
    output_tokens: tuple[str, str]
    delay: tuple[str, str]
    hash_ids: tuple[str, ...]

    @property
    def names(self) -> FieldNames:
        return FieldNames(
            self.arrival[0],
            self.input_tokens[0],
            self.output_tokens[0],
            self.delay[0],
            self.hash_ids[0],
        )


MOONCAKE = RowDialect(
    row=MooncakeRow,
    full_row=MooncakeFullRow,
    arrival=("timestamp", "created_time"),
    input_tokens=("input_length", "input_tokens"),
    output_tokens=("output_length", "output_tokens"),
    delay=("delay", "delay_ms"),
    hash_ids=("hash_ids",),
)
PLAIN = RowDialect(
    row=PlainRow,
    full_row=PlainFullRow,
    arrival=("arrival_ms", "timestamp"),
    input_tokens=("input_tokens", "input_length"),
    output_tokens=("output_tokens", "output_length"),
    delay=("delay_ms", "delay"),
    hash_ids=("prompt_hash_ids", "hash_ids"),
)
