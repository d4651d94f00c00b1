"""pydantic's findings in our words: the key, what is wrong with its value, and the remedy."""

from typing import Any

from pydantic import BaseModel, ValidationError

from dynosim.config.base import REFUSED, RULES
from dynosim.config.cluster import POOL_ROLES
from dynosim.config.keys import LATER, unknown_key_remedy
from dynosim.config.problems import Path, Problem, dotted, nearest, shown

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "a smaller integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}
_BOUNDS = {
    "greater_than_equal": (">=", "ge"),
    "greater_than": (">", "gt"),
    "less_than_equal": ("<=", "le"),
    "less_than": ("<", "lt"),
}


_OF_ENGINES = tuple(f"cluster.{role}.engine." for role in POOL_ROLES)


def explain(error: ValidationError, root: type[BaseModel], data: Any) -> list[Problem]:
    """Every finding of `error` about `data`, validated as `root`."""
    problems: list[Problem] = []
    for finding in error.errors(include_url=False):
        path = _key_path(finding["loc"], data)
        kind, context = finding["type"], finding.get("ctx", {})
        if kind == RULES:
            for key, text, remedy in context["broken"]:
                is_rule = path == ("engine",) or key.startswith(_OF_ENGINES)
                problems.append(Problem((*path, *parts_of(key)), text, remedy, is_rule=is_rule))
        elif kind == REFUSED:
            problems.append(Problem(path, context["text"], context["remedy"]))
        elif kind == "extra_forbidden":
            remedy = unknown_key_remedy(root, path, data)
            problems.append(Problem(path, "unknown key", remedy))
        else:
            problems.append(_value_problem(path, kind, context, finding, data))
    return problems


def parts_of(key: str) -> Path:
    """The way to a key of a rule, `a.2.b`: numbers are places in a list."""
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _value_problem(
    path: Path, kind: str, context: dict[str, Any], finding: Any, data: Any
) -> Problem:
    value = _value_at(data, path)
    if kind == "missing":
        return Problem(path, "missing", f"add `{path[-1]}: ...`")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, "kind")
        if kind == "union_tag_not_found":
            return Problem(path, "missing", "add `kind: aiconfigurator` or another kind")
        return _choice_problem(path, value.get("kind"), context["expected_tags"])
    if kind == "literal_error":
        return _choice_problem(path, value, context["expected"])
    if kind in _BOUNDS:
        sign, key = _BOUNDS[kind]
        return Problem(path, f"must be {sign} {context[key]:g}, got {shown(value)}")
    if kind == "finite_number":
        return Problem(path, f"must be a finite number, got {shown(value)}")
    if kind in _EXPECTED:
        return Problem(path, f"expected {_EXPECTED[kind]}, got {shown(value)}", _hint(value, kind))
    return Problem(path, f"{finding['msg']}, got {shown(value)}")


def _choice_problem(path: Path, value: Any, expected: str) -> Problem:
    choices = expected.replace("'", "").replace(" or ", ", ").split(", ")
    if value in LATER.get(dotted(path), ()):
        text = f"{value} is not in this version yet"
        return Problem(path, text, f"use {_one_of(choices)}")
    near = nearest(value, choices) if isinstance(value, str) else None
    remedy = f"did you mean {near}?" if near else ""
    return Problem(path, f"expected {_one_of(choices)}, got {shown(value)}", remedy)


def _one_of(choices: list[str]) -> str:
    head, last = choices[:-1], choices[-1]
    return f"{', '.join(head)} or {last}" if head else last


def _hint(value: Any, kind: str) -> str:
    if value is None:
        return "give a value, or leave the key out for the default"
    if not isinstance(value, str):
        return ""
    wants_number = kind.startswith(("int", "float"))
    try:
        float(value)
    except ValueError:
        return ""
    return "remove the quotes" if wants_number else ""


def _key_path(location: tuple[int | str, ...], data: Any) -> Path:
    """pydantic's location without the names of union members, which are no keys."""
    path: list[int | str] = []
    for part in location:
        if isinstance(data, dict) and part not in data and part == data.get("kind"):
            continue
        if isinstance(part, str) and part.startswith("("):
            continue
        path.append(part)
        data = _value_at(data, (part,))
    return tuple(path)


def _value_at(data: Any, path: Path) -> Any:
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data
