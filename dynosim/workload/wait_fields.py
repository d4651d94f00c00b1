"""Fields of a row in a graph of requests: what it waits for, its kind, what it expects or is."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Literal

import msgspec

from dynosim.workload.columns import Awaited

WAIT_FIELDS = ("wait_for", "request_class", "expected_output_tokens", "speculative_prefill",
               "prefetch")  # fmt: skip


class WaitRow(msgspec.Struct, gc=False, frozen=True, forbid_unknown_fields=True):
    """One request that a row waits for: until it has ended, or come, and so long after."""

    request_id: str | int
    delay_ms: float = 0.0
    trigger: Literal["completion", "dispatch"] = "completion"


WaitFor = list[str | int | WaitRow]


class WaitError(Exception):
    """A row cannot wait like that."""


def read_waits(given: WaitFor | None) -> tuple[Awaited, ...] | None:
    """What a row waits for; None if it does not say. Raises: WaitError."""
    if not given:
        return None
    waits = tuple(
        Awaited(str(one.request_id), one.delay_ms, one.trigger == "dispatch")
        if isinstance(one, WaitRow)
        else Awaited(str(one), 0.0, False)
        for one in given
    )
    for place, wait in enumerate(waits):
        if not (isfinite(wait.delay_ms) and wait.delay_ms >= 0):
            raise WaitError(f"[{place}].delay_ms: expected >= 0 ms, got {wait.delay_ms:g}")
    if len({(wait.request_id, wait.from_start) for wait in waits}) < len(waits):
        raise WaitError(": waits for the same of a request twice")
    return waits


def wait_row(waits: Sequence[Awaited]) -> dict[str, Any]:
    """The field of a row that waits so."""
    if not waits:
        return {}
    return {"wait_for": [_wait(*wait) for wait in waits]}


def _wait(request_id: str, delay_ms: float, from_start: bool) -> str | dict[str, Any]:
    if not delay_ms and not from_start:
        return request_id
    whole = int(delay_ms) if delay_ms.is_integer() else delay_ms
    found: dict[str, Any] = {"request_id": request_id, "delay_ms": whole}
    return found | ({"trigger": "dispatch"} if from_start else {})
