"""Fields of a row that say what its KV blocks are worth: in few traces, so looked for by name."""

from math import inf
from typing import Any

import msgspec

from dynosim.blocks.retention import HIGHEST_PRIORITY
from dynosim.records import Retention, RetentionRange
from dynosim.workers.wishes import WishError

RETENTION_FIELDS = ("retention", "pin_ttl_ms", "ephemeral", "pin_ends_with_session")
TOKENS_MAX = 1 << 40


class RangeRow(msgspec.Struct, gc=False, frozen=True, forbid_unknown_fields=True):
    """One range of `retention`."""

    start: int
    priority: int
    end: int | None = None
    duration_ms: float | None = None


class RetentionReader:
    """Makes directives of rows' fields; equal ones are one object."""

    def __init__(self) -> None:
        self._known: dict[Retention, Retention] = {}

    def read(self, row: Any) -> Retention | None:
        """What a row that has the fields says; None: nothing.

        Raises: WishError naming the field.
        """
        if all([getattr(row, name) is None for name in RETENTION_FIELDS]):
            return None
        if row.pin_ttl_ms is not None:
            _check_ms("pin_ttl_ms", row.pin_ttl_ms)
        elif row.pin_ends_with_session:
            raise WishError("pin_ends_with_session", "nothing is pinned: add pin_ttl_ms")
        ranges: list[RetentionRange] = []
        before = 0
        for number, span in enumerate(row.retention or ()):
            where = f"retention[{number}]"
            _check_range(where, span, before)
            before = TOKENS_MAX if span.end is None else span.end
            ranges.append(RetentionRange(span.start, span.end, span.priority, span.duration_ms))
        said = Retention(
            tuple(ranges), row.pin_ttl_ms, bool(row.ephemeral), bool(row.pin_ends_with_session)
        )
        return None if said == Retention() else self._known.setdefault(said, said)


def _check_range(where: str, span: RangeRow, before: int) -> None:
    """Raises: WishError."""
    if not 0 <= span.priority <= HIGHEST_PRIORITY:
        raise WishError(
            f"{where}.priority", f"expected 0 to {HIGHEST_PRIORITY}, got {span.priority}"
        )
    if not before <= span.start < TOKENS_MAX:
        remedy = "ranges come in order and do not overlap"
        raise WishError(
            f"{where}.start", f"expected a token from {before} on, got {span.start}: {remedy}"
        )
    if span.end is not None and not span.start < span.end < TOKENS_MAX:
        raise WishError(f"{where}.end", f"expected more than start {span.start}, got {span.end}")
    if span.duration_ms is not None:
        _check_ms(f"{where}.duration_ms", span.duration_ms)


def _check_ms(field: str, value: float) -> None:
    """Raises: WishError."""
    if not 0 < value < inf:
        raise WishError(field, f"expected a number of ms > 0, got {value:g}")


def retention_row(said: Retention | None) -> dict[str, Any]:
    """The fields of a row that says this."""
    if said is None:
        return {}
    ranges = [
        {
            key: value
            for key in ("start", "end", "priority", "duration_ms")
            if (value := getattr(span, key)) is not None
        }
        for span in said.ranges
    ]
    row = {
        "retention": ranges or None,
        "pin_ttl_ms": said.pin_ttl_ms,
        "ephemeral": said.is_ephemeral or None,
        "pin_ends_with_session": said.pin_ends_with_session or None,
    }
    return {name: value for name, value in row.items() if value is not None}
