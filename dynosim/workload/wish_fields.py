"""Fields of a row that say which worker it wants: present in few traces, so looked for by name.

Decoding a field costs time in every row, whether it is there or not; a chunk of text without any of
their names is decoded without them.
"""

from typing import Any

from dynosim.records import Wishes
from dynosim.workers.wishes import WishError, read_overrides, read_weights
from dynosim.workload.retention_fields import RETENTION_FIELDS

WISH_FIELDS = ("worker_id", "required_taints", "preferred_taints", "router_config_override")
WORKERS_MAX = 1 << 31
_RARE_FIELDS = (*WISH_FIELDS, *RETENTION_FIELDS)
_MARKS = (*(name.encode() for name in _RARE_FIELDS), b"\\")  # what is escaped may be a name


def may_have_rare_fields(data: bytes) -> bool:
    """Whether any row of this text can have one of these fields, or of `RETENTION_FIELDS`."""
    return any(mark in data for mark in _MARKS)


class WishReader:
    """Makes wishes of rows' fields; equal ones are one object."""

    def __init__(self) -> None:
        self._known: dict[Wishes, Wishes] = {}

    def read(self, row: Any) -> Wishes | None:
        """The wishes of a row that has the fields; None if it states none.

        Raises: WishError naming the field.
        """
        worker_id, required, preferred, overrides = (getattr(row, name) for name in WISH_FIELDS)
        if worker_id is None and not required and not preferred and not overrides:
            return None
        if worker_id is not None and not 0 <= worker_id < WORKERS_MAX:
            raise WishError("worker_id", f"expected the number of a worker, got {worker_id}")
        if required and "" in required:
            raise WishError("required_taints", "a taint must not be empty")
        wishes = Wishes(
            worker_id,
            tuple(sorted(set(required or ()))),
            _within("preferred_taints", read_weights, preferred),
            _within("router_config_override", read_overrides, overrides),
        )
        return None if wishes == Wishes() else self._known.setdefault(wishes, wishes)


def wish_row(wishes: Wishes | None) -> dict[str, Any]:
    """The fields of a row with these wishes."""
    if wishes is None:
        return {}
    row = {
        "worker_id": wishes.worker_id,
        "required_taints": list(wishes.required_taints) or None,
        "preferred_taints": dict(wishes.preferred_taints) or None,
        "router_config_override": dict(wishes.overrides) or None,
    }
    return {name: value for name, value in row.items() if value is not None}


def _within(field: str, read: Any, given: Any) -> Any:
    try:
        return read(given or {})
    except WishError as error:
        raise WishError(f"{field}.{error.key}", error.message) from None
