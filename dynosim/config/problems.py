"""What is wrong with a configuration, found all at once and told in one message."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from dynosim.errors import ConfigError

Path = tuple[str | int, ...]

MAX_SHOWN = 20
LONGEST_VALUE = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend. `is_rule`: every value is fine by itself, only their combination is not.

    A sweep lists points that break a rule as infeasible; any other problem stops it at once.
    """

    path: Path
    text: str
    remedy: str = ""
    is_rule: bool = False


def dotted(path: Path) -> str:
    """The key as a user writes it, `a.b[2].c`; empty for the whole document."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else str(part)
    return text


def shown(value: Any) -> str:
    """A value as it appears in messages: strings in quotes, long values cut."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most probably stands for, if any is near."""
    names = list(known)
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    if close:
        return by_lower[close[0]]
    parts = [name for name in names if word.lower() in name.lower() or name.lower() in word.lower()]
    return min(parts, key=len) if parts and len(word) > 1 else None


def config_error(
    problems: Sequence[Problem], place: Callable[[Path], str], *, source: str
) -> ConfigError:
    """All problems in one exception; `place` tells where a key was written (`file:line`)."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: _line(place(problem.path)))
    lines = []
    for problem in ordered[:MAX_SHOWN]:
        where = place(problem.path)
        if key := dotted(problem.path):
            where = where if where.endswith(f"--set {key}") else f"{where}: {key}"
        remedy = f" ({problem.remedy})" if problem.remedy else ""
        lines.append(f"{where}: {problem.text}{remedy}")
    if len(ordered) > MAX_SHOWN:
        lines.append(f"... and {len(ordered) - MAX_SHOWN} more")
    if len(ordered) > 1:
        lines.insert(0, f"{source}: {len(ordered)} problems")
    return ConfigError("\n".join(lines))


def _line(place: str) -> int:
    number = place.rpartition(":")[2]
    return int(number) if number.isdigit() else 0
