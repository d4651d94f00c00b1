"""Conditions on a difference, such as `capacity < -3 %`: whether a change is too large."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt

from dynosim.compare.run_diff import Change
from dynosim.errors import ConfigError

_OPERATORS: dict[str, Callable[[float, float], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
_CONDITION = re.compile(r"\s*([A-Za-z]\w*)\s*(<=|>=|<|>)\s*([+-]?\d+(?:\.\d+)?)\s*(%?)\s*")
_FORM = "expected KEY < NUMBER or KEY > NUMBER, with % for percent of A: capacity < -3 %"


@dataclass(frozen=True, slots=True)
class Condition:
    """Is the change of `key` from A to B below or above a limit?"""

    text: str
    key: str
    sign: str  # of `_OPERATORS`
    limit: float
    is_percent: bool

    def holds(self, changes: Mapping[str, Change]) -> bool:
        """Whether it is true. Raises: ConfigError if the key has no change to look at."""
        change = changes.get(self.key)
        if change is None:
            near = difflib.get_close_matches(self.key, changes, 3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"such as {_some(changes)}"
            raise ConfigError(f"--fail-if {self.text!r}: no result {self.key!r} here ({hint})")
        value = change.percent if self.is_percent else change.change
        if value is None:
            is_zero = self.is_percent and change.change is not None
            why = "is 0 in A, so there is no percentage (give a number without %)"
            if not is_zero:
                where = "A" if change.a is None else "B"
                why = f"has no value in {where} (choose another key)"
            raise ConfigError(f"--fail-if {self.text!r}: {self.key} {why}")
        return _OPERATORS[self.sign](value, self.limit)


def parse_condition(text: str) -> Condition:
    """The condition that a text states. Raises: ConfigError."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(f"--fail-if {text!r}: {_FORM}")
    key, sign, number, percent = match.groups()
    return Condition(text.strip(), key, sign, float(number), bool(percent))


def _some(changes: Mapping[str, Change]) -> str:
    return ", ".join(list(changes)[:4])
