"""The keys of a JSON Schema as a flat list, with what a reader wants to know of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a file."""

    path: str  # dotted; keys of a list's items as well
    key: Schema
    pointer: str  # where the key's schema is; empty: nowhere, as several kinds have it
    where: str = ""  # for which kind of its section
    is_in_list: bool = False
    is_required: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def meaning(self) -> str:
        """The description, without the unit."""
        text: str = self.key.get("description", "")
        unit = self.unit
        return text.removesuffix(f" Unit: {unit}.") if unit else text

    @property
    def unit(self) -> str:
        """Unit of the value; empty: none."""
        return str(self.key.get("x-unit", ""))

    @property
    def is_section(self) -> bool:
        """Whether keys stand below it."""
        return bool(references(self.key))

    @property
    def default(self) -> str:
        """The default as it would be written; empty: there is none, or keys below have theirs."""
        if "default" not in self.key:
            return ""
        if self.is_section and not isinstance(self.key["default"], dict | None):
            return ""
        return written(self.key["default"])

    @property
    def values(self) -> str:
        """What may be written, in words."""
        return values_of(self.key)


def entries(schema: Schema) -> Iterator[Entry]:
    """Every key of the schema, those of a section behind it. Other names of keys are left out."""
    yield from _entries(schema, schema, "#", "", "", is_in_list=False)


def _entries(
    schema: Schema, section: Schema, pointer: str, prefix: str, where: str, *, is_in_list: bool
) -> Iterator[Entry]:
    for name, key in section["properties"].items():
        if "x-alias-of" in key:
            continue
        path = prefix + name
        here = f"{pointer}/properties/{name}"
        required = name in section.get("required", ())
        yield Entry(path, key, here, where, is_in_list, required)
        yield from _below(schema, path, key, is_in_list=is_in_list or _is_list(key))


def _below(schema: Schema, path: str, key: Schema, *, is_in_list: bool) -> Iterator[Entry]:
    """The keys of the sections that a key may hold; where there are several, first which one."""
    sections = {reference: _at(schema, reference) for reference in references(key)}
    if len(sections) < 2:
        for reference, section in sections.items():
            yield from _entries(schema, section, reference, f"{path}.", "", is_in_list=is_in_list)
        return
    kinds = [section["properties"]["kind"] for section in sections.values()]
    choice = {**kinds[0], "enum": [kind["const"] for kind in kinds]}
    del choice["const"]
    yield Entry(f"{path}.kind", choice, "", "", is_in_list, is_required=True)
    for kind, (reference, section) in zip(kinds, sections.items(), strict=True):
        of = f"{path}.kind: {kind['const']}"
        for entry in _entries(schema, section, reference, f"{path}.", of, is_in_list=is_in_list):
            if entry.path != f"{path}.kind":
                yield entry


def references(key: Schema) -> list[str]:
    """The sections that a key may hold, or a list of, as alternatives."""
    below = (*key.get("anyOf", ()), *key.get("oneOf", ()), key.get("items", {}))
    own = [key["$ref"]] if "$ref" in key else []
    return own + [found for part in below if part for found in references(part)]


def _is_list(key: Schema) -> bool:
    """Whether what stands below a key are keys of a list's items."""
    return "items" in key or any("items" in part for part in key.get("anyOf", ()))


def section_at(schema: Schema, path: list[str]) -> list[Schema]:
    """The sections under a dotted path, as alternatives."""
    sections = [schema]
    for name in path:
        sections = [
            _at(schema, reference)
            for section in sections
            for reference in references(section["properties"].get(name, {}))
        ]
    return sections


def _at(schema: Schema, reference: str) -> Schema:
    target = schema
    for name in reference.removeprefix("#/").split("/"):
        target = target[name]
    return target


def is_number(key: Schema) -> bool:
    """Whether a number may be written."""
    parts = (key, *key.get("anyOf", ()), *key.get("oneOf", ()))
    return any(part.get("type") in ("integer", "number") for part in parts)


_BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}
_UNBOUNDED = 1 << 40
"""No one asks for an upper bound that is not below this."""


def values_of(key: Schema) -> str:
    """What may be written for a key, in words."""
    if "const" in key:
        return written(key["const"])
    if "enum" in key:
        return " | ".join(written(value) for value in key["enum"])
    if "$ref" in key:
        return "section"
    if "anyOf" in key or "oneOf" in key:
        parts = [values_of(part) for part in (*key.get("anyOf", ()), *key.get("oneOf", ()))]
        return " | ".join(dict.fromkeys(parts))
    kind = key.get("type")
    if kind == "array":
        return f"list of {values_of(key.get('items', {}))}"
    if isinstance(key.get("additionalProperties"), dict):
        return f"keys, each with {values_of(key['additionalProperties'])}"
    if kind in ("integer", "number"):
        return " ".join([kind, *_bounds(key)])
    words = {"string": "text", "boolean": "true | false", "object": "keys with values"}
    return words.get(str(kind), "null" if kind == "null" else "any value")


def _bounds(key: Schema) -> list[str]:
    """The bounds of a number as words, joined by `and`."""
    told = [f"{sign} {key[word]:g}" for word, sign in _BOUNDS.items()
            if word in key and key[word] < _UNBOUNDED]  # fmt: skip
    return [" and ".join(told)] if told else []


def written(value: Any) -> str:
    """A value as a file has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(below)}" for key, below in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}"
    return '""' if value == "" else str(value)
