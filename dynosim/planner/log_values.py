"""Observations and decisions as plain values, and what a controller makes of them once more.

Plain values are what JSON knows. Back and forth gives an equal value: numbers keep every digit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from dynosim.planner.controller import Controller
from dynosim.planner.decision import Decision
from dynosim.planner.observation import Observation


@dataclass(frozen=True, slots=True)
class LookEntry:
    """What a controller saw, and what it decided; None: nothing was to be decided yet."""

    observation: Observation
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class ReplayDifference:
    """Where a replay left the log: the entry's number from 0, what it says and what came now."""

    index: int
    logged: Decision | None
    replayed: Decision | None


def plain_entry(entry: LookEntry) -> dict[str, Any]:
    """An entry as a dictionary of plain values."""
    plain: dict[str, Any] = msgspec.to_builtins(entry)
    return plain


def entry_of(plain: object) -> LookEntry:
    """The entry that a dictionary stands for.

    Raises: ValueError that names the place of what is missing or of another kind.
    """
    try:
        return msgspec.convert(plain, LookEntry)
    except msgspec.ValidationError as error:
        raise ValueError(f"no entry of a decision log: {error}") from error


def replay(entries: Iterable[LookEntry], controller: Controller) -> list[ReplayDifference]:
    """Show a fresh controller what another saw, and list where it decides otherwise."""
    differences = []
    for index, entry in enumerate(entries):
        replayed = controller.look(entry.observation)
        if replayed != entry.decision:
            differences.append(ReplayDifference(index, entry.decision, replayed))
    return differences
