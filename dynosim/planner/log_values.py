"""Observations and decisions as plain values, and what a controller makes of them once more.

Plain values are what JSON knows. Back and forth gives an equal value: numbers keep every digit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from dynosim.planner.controller import Controller
from dynosim.planner.decision import ScalingDecision
from dynosim.planner.look import Look


@dataclass(frozen=True, slots=True)
class ReplayDifference:
    """Where a replay left the log: the look's number from 0, what it says, what came now."""

    index: int
    logged: ScalingDecision | None
    replayed: ScalingDecision | None


def plain_look(look: Look) -> dict[str, Any]:
    """A look as a dictionary of plain values."""
    plain: dict[str, Any] = msgspec.to_builtins(look, enc_hook=_worked_out)
    return plain


def _worked_out(value: object) -> object:
    """Samples that are worked out as they are read."""
    if isinstance(value, Mapping):
        return dict(value.items())
    raise NotImplementedError(f"no plain value: {type(value)}")


def look_of(plain: object) -> Look:
    """The look that a dictionary stands for.

    Raises: ValueError that names the place of what is missing or of another kind.
    """
    try:
        return msgspec.convert(plain, Look)
    except msgspec.ValidationError as error:
        raise ValueError(f"no look of a decision log: {error}") from error


def replay(looks: Iterable[Look], controller: Controller) -> list[ReplayDifference]:
    """Show a fresh controller what another saw, all of it, and list where it decides otherwise."""
    differences = []
    for index, look in enumerate(looks):
        replayed = controller.look(look.seen)
        if replayed != look.decision:
            differences.append(ReplayDifference(index, look.decision, replayed))
    return differences
