"""Why a JSON line cannot be used, with the field and the value that stands there."""

import re
from typing import Any

import msgspec

from dynosim.workload.problems import RowProblem
from dynosim.workload.retention_fields import RETENTION_FIELDS
from dynosim.workload.wait_fields import WAIT_FIELDS
from dynosim.workload.wish_fields import WISH_FIELDS

_SHOWN_CHARS = 60


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a line raises if it is no JSON."""


def syntax_problem(line: int, text: bytes, error: Exception) -> RowProblem:
    """A line that is no JSON, with what stands there."""
    shown = text.decode("utf-8", "replace").strip()
    if len(shown) > _SHOWN_CHARS:
        shown = shown[:_SHOWN_CHARS] + "..."
    is_deep = isinstance(error, RecursionError)
    reason = "nested too deeply" if is_deep else str(error).removeprefix("JSON is malformed: ")
    hint = "NaN and Infinity are not numbers in JSON: " if _NOT_NUMBERS.search(text) else ""
    return RowProblem(line, "", f"not JSON: {hint}{reason}: {shown}")


_NOT_NUMBERS = re.compile(rb":\s*-?(NaN|Infinity|nan|inf)\b")
_EXPECTATION = re.compile(r"Expected `(?P<wanted>.+?)`, got `.+?`(?: - at `\$\.?(?P<field>.*)`)?$")
_UNKNOWN = re.compile(r"unknown field `(?P<field>.+?)`")


def type_problem(line: int, text: bytes, reason: str, row: type[msgspec.Struct]) -> RowProblem:
    """A decoder's complaint, told with the field and the value that stands there."""
    if found := _UNKNOWN.search(reason):
        return RowProblem(line, found["field"], "unknown field" + _nearest(found["field"], row))
    found = _EXPECTATION.match(reason)
    if found is None:
        what, _, place = reason.partition(" - at `$")
        return RowProblem(line, place.strip(".`"), f"{what[0].lower()}{what[1:]}")
    try:
        value = msgspec.json.decode(text)
    except UNREADABLE as error:  # behind the place where the typed decoder stopped
        return syntax_problem(line, text, error)
    field = found["field"] or ""
    kind = found["wanted"].removesuffix(" | null")
    wanted = _words_of(field.partition("[")[0]).get(kind, kind)
    return RowProblem(line, field, f"expected {wanted}, got {_shown_at(value, field)}")


_WORDS = {
    "int": "an integer",
    "float": "a number",
    "array": "a list of integers",
    "object": 'an object such as {"timestamp": 0, ...}',
    "int | str": "a text or an integer",
}


_WAIT_WORDS = {
    "int": "a number of tokens",
    "str": "a text",
    "array": 'a list of request ids, or of objects such as {"request_id": "a", "delay_ms": 5}',
    "int | str | object": 'a request id, or an object such as {"request_id": "a", "delay_ms": 5}',
}

_WISH_WORDS = {
    "int": "the number of a worker",
    "float": "a number",
    "array": "a list of taints",
    "object": "an object of names and values",
    "str": "a text",
}


_RETENTION_WORDS = {
    "int": "an integer",
    "float": "a number",
    "array": "a list of ranges",
    "object": 'a range such as {"start": 0, "end": 512, "priority": 100}',
    "bool": "true or false",
}


def _words_of(field: str) -> dict[str, str]:
    """What kinds of values are called where this field stands."""
    if field in RETENTION_FIELDS:
        return _RETENTION_WORDS
    if field in WAIT_FIELDS:
        return _WAIT_WORDS
    return _WISH_WORDS if field in WISH_FIELDS else _WORDS


def _shown_at(value: Any, field: str) -> str:
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
