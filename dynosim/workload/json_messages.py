"""Why a JSON line cannot be used, with the field and the value that stands there."""

import re
from typing import Any

import msgspec

from dynosim.workload.problems import Problem

_SHOWN_CHARS = 60


def syntax_problem(line: int, text: bytes, reason: str) -> Problem:
    shown = text.decode("utf-8", "replace").strip()
    if len(shown) > _SHOWN_CHARS:
        shown = shown[:_SHOWN_CHARS] + "..."
    hint = "NaN and Infinity are not numbers in JSON: " if _NOT_NUMBERS.search(text) else ""
    return Problem(
        line, "", f"not JSON: {hint}{reason.removeprefix('JSON is malformed: ')}: {shown}"
    )


_NOT_NUMBERS = re.compile(rb":\s*-?(NaN|Infinity|nan|inf)\b")
_EXPECTATION = re.compile(r"Expected `(?P<wanted>.+?)`, got `.+?`(?: - at `\$\.?(?P<field>.*)`)?$")
_UNKNOWN = re.compile(r"unknown field `(?P<field>.+?)`")


def type_problem(line: int, text: bytes, reason: str, row: type[msgspec.Struct]) -> Problem:
    """A decoder's complaint, told with the field and the value that stands there."""
    if found := _UNKNOWN.search(reason):
        return Problem(line, found["field"], "unknown field" + _nearest(found["field"], row))
    found = _EXPECTATION.match(reason)
    if found is None:
        what, _, place = reason.partition(" - at `$")
        return Problem(line, place.strip(".`"), f"{what[0].lower()}{what[1:]}")
    field = found["field"] or ""
    wanted = _WORDS.get(found["wanted"].removesuffix(" | null"), found["wanted"])
    return Problem(line, field, f"expected {wanted}, got {_value_at(text, field)}")


_WORDS = {
    "int": "an integer",
    "float": "a number",
    "array": "a list of integers",
    "object": 'an object such as {"timestamp": 0, ...}',
    "int | str": "a text or an integer",
}


def _value_at(text: bytes, field: str) -> str:
    value: Any = msgspec.json.decode(text)
    for part in re.findall(r"\w+", field):
        value = value[int(part)] if isinstance(value, list) else value[part]
    shown = msgspec.json.encode(value).decode()
    return shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "..."


def _nearest(field: str, row: type[msgspec.Struct]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(field, row.__struct_fields__, 1)
    return (
        f", did you mean {close[0]}?" if close else f" (known: {', '.join(row.__struct_fields__)})"
    )
