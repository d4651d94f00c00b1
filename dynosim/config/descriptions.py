"""What each key of a section means: the docstring below it, read from the source when asked for.

pydantic can collect such docstrings itself, but does so whenever a section is imported, which would
make every run start later. Here only who asks pays. A docstring may end with `Unit: tokens.`; where
the key's name ends in a unit, it need not.
"""

import ast
from dataclasses import dataclass
from functools import cache
from importlib.abc import InspectLoader
from importlib.util import find_spec
from inspect import cleandoc

from dynosim.config.base import Section

UNITS = {
    "_ms": "ms",
    "_s": "s",
    "_rps": "requests/s",
    "_tokens": "tokens",
    "_mib": "MiB",
    "_bytes": "bytes",
}
"""By the end of a key's name."""
_UNIT = " Unit: "


@dataclass(frozen=True, slots=True)
class Description:
    """The meaning of a key, and its unit (None: it has none)."""

    text: str
    unit: str | None


def descriptions(section: type[Section]) -> dict[str, Description]:
    """By key of the section, those that it inherits included. Keys without a docstring lack."""
    found: dict[str, Description] = {}
    for part in reversed(section.__mro__):
        if issubclass(part, Section) and part is not Section:
            found |= _sections(part.__module__).get(part.__name__, {})
    return found


@cache
def _sections(module: str) -> dict[str, dict[str, Description]]:
    """The descriptions of every class of a module, by name."""
    return {
        node.name: dict(_described(node))
        for node in ast.parse(_source(module)).body
        if isinstance(node, ast.ClassDef)
    }


def _source(module: str) -> str:
    spec = find_spec(module)
    loader = spec.loader if spec is not None else None
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    return source or ""


def _described(section: ast.ClassDef) -> list[tuple[str, Description]]:
    """Each key whose annotation is followed by a text."""
    found = []
    for field, below in zip(section.body, section.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            is_flag = ast.unparse(field.annotation) == "bool"
            unit = None if is_flag else _unit_of(field.target.id)
            found.append((field.target.id, _description(below.value.value, unit)))
    return found


def _unit_of(key: str) -> str | None:
    return next((unit for end, unit in UNITS.items() if key.endswith(end)), None)


def _description(docstring: str, unit_by_name: str | None) -> Description:
    text, _, unit = " ".join(cleandoc(docstring).split()).partition(_UNIT)
    return Description(text, unit.removesuffix(".") or unit_by_name)
