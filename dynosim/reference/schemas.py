"""JSON Schemas of the files that users write and of those that dynosim writes.

They come from the sections that check a file (pydantic), with what their docstrings say of each
key, and from the lists of report keys. What a schema cannot say (rules between keys) stays with
dynosim: a file that it refuses may be fine for an editor, never the reverse.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping

from dynosim.config.agents import AgentsConfig
from dynosim.config.aliases import RUN_ALIASES, SWEEP_ALIASES, Aliases
from dynosim.config.base import Section
from dynosim.config.descriptions import Description, descriptions
from dynosim.config.formats import REPORT_SCHEMA, SWEEP_SCHEMA
from dynosim.config.report_keys import (
    DOCUMENT_KEYS,
    PREPARED_KEYS,
    ReportKey,
    known_report_keys,
    report_keys,
)
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_columns import OPTIONAL_SUMMARY_KEYS, SUMMARY_KEYS
from dynosim.config.sweep_schema import RangeConfig, SweepKeys
from dynosim.config.workload import SyntheticConfig
from dynosim.reference.entries import Entry, Schema, entries, is_number, references, section_at

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_CHOICES = {
    "type": "object",
    "properties": {"choices": {"type": "array", "minItems": 1}},
    "required": ["choices"],
    "additionalProperties": False,
}
"""The long form of a list of values in `space`."""


def run_schema() -> Schema:
    """Of a run file."""
    schema = _sections(RunConfig)
    _add_aliases(schema, RUN_ALIASES)
    return _headed(schema, "dynosim run file", "One cluster under one workload.")


def sweep_schema() -> Schema:
    """Of a sweep file: a run file with holes, and what fills them."""
    schema, own = _sections(RunConfig), _sections(SweepKeys)
    span = _sections(RangeConfig)
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)  # what is missing may vary in the space
        _loosen(section)
    schema["$defs"] |= own["$defs"] | {RangeConfig.__name__: span, "Choices": _CHOICES}
    swept = _space(schema)
    schema["properties"] |= own["properties"]
    schema["properties"]["space"] |= swept
    schema["required"] = own["required"]
    _add_aliases(schema, SWEEP_ALIASES)
    goal = schema["properties"]["objectives"]["additionalProperties"]
    schema["properties"]["objectives"] |= {
        "properties": dict.fromkeys(known_report_keys(), goal),
        "additionalProperties": False,
        "minProperties": 1,
    }
    return _headed(schema, "dynosim sweep file", "Many clusters, tried and compared.")


def synthetic_schema() -> Schema:
    """Of a generated workload's file, for `dynosim trace synth`: flags may give what it lacks.

    Agents have no flags.
    """
    schema, run = _sections(SyntheticConfig), _sections(RunConfig)
    agents = _sections(AgentsConfig)
    schema.pop("required")
    sources = {"synthetic": SyntheticConfig.__name__, "agents": AgentsConfig.__name__}
    parts = {sources["synthetic"]: schema, sources["agents"]: agents}
    schema["$defs"] |= agents["$defs"] | {
        name: {key: part for key, part in one.items() if key != "$defs"}
        for name, one in parts.items()
    }
    named = {source: {"$ref": f"#/$defs/{name}"} for source, name in sources.items()}
    within = {**schema, "properties": named}
    what = {"description": "The keys, as in a run file."}
    schema["properties"] = {
        **schema["properties"],
        "seed": run["properties"]["seed"],
        **{source: reference | what for source, reference in named.items()},
        "workload": {key: part for key, part in within.items() if key != "$defs"},
    }
    return _headed(schema, "dynosim synthetic workload", "Requests that are made up.")


def report_schema() -> Schema:
    """Of report.json."""
    schema = _document([*DOCUMENT_KEYS, *report_keys(), *PREPARED_KEYS], optional=())
    schema["properties"]["schema"] = {"const": REPORT_SCHEMA} | schema["properties"]["schema"]
    return _headed(schema, "dynosim report", "What one simulated run came to.")


def summary_schema() -> Schema:
    """Of a sweep's summary.json."""
    schema = _document(SUMMARY_KEYS, optional=OPTIONAL_SUMMARY_KEYS)
    schema["properties"]["schema"] = {"const": SWEEP_SCHEMA} | schema["properties"]["schema"]
    return _headed(schema, "dynosim sweep summary", "What a sweep came to.")


SCHEMAS: dict[str, Callable[[], Schema]] = {
    "run": run_schema,
    "sweep": sweep_schema,
    "synthetic": synthetic_schema,
    "report": report_schema,
    "summary": summary_schema,
}
"""By the name that `dynosim schema` takes."""


def schema_text(name: str) -> str:
    """A schema as it is published."""
    return json.dumps(SCHEMAS[name](), indent=1) + "\n"


# ---- sections -----------------------------------------------------------------------------------


def _sections(root: type[Section]) -> Schema:
    """The schema of a section and all below it, each key with its description."""
    schema = root.model_json_schema()
    classes = {section.__name__: section for section in _subclasses(Section)}
    sections = schema.get("$defs", {})
    for name, section in {root.__name__: schema, **sections}.items():
        _describe(section, descriptions(classes[name]), sections)
    return schema


def _subclasses(section: type[Section]) -> Iterator[type[Section]]:
    for below in section.__subclasses__():
        yield below
        yield from _subclasses(below)


def _describe(
    section: Schema, by_key: dict[str, Description], sections: Mapping[str, Schema]
) -> None:
    section.pop("title", None)
    for name, key in section["properties"].items():
        key.pop("title", None)
        key.pop("discriminator", None)
        default = key.get("default")
        if isinstance(default, dict) and default:
            names = [reference.rpartition("/")[2] for reference in references(key)]
            if any(sections[name].get("required") for name in names):
                key["default"] = {word: one for word, one in default.items() if one is not None}
            else:
                del key["default"]  # a section's: each key below has its own
        if name in by_key:
            key["description"] = by_key[name].text
            if by_key[name].unit is not None:
                key["description"] += f" Unit: {by_key[name].unit}."
                key["x-unit"] = by_key[name].unit


def _loosen(section: Schema) -> None:
    """Where no key is required, several kinds of a section may fit the same few keys."""
    for key in section["properties"].values():
        if "oneOf" in key:
            key["anyOf"] = key.pop("oneOf")


def _add_aliases(schema: Schema, aliases: Aliases) -> None:
    """Other names of keys, beside ours; what they stand for is then no longer required."""
    for alias, key in aliases.items():
        *path, name = alias.split(".")
        *target, own = key.split(".")
        for section in section_at(schema, target):
            if own not in section["properties"]:
                continue  # another kind of the section has it
            meant = section["properties"][own]
            kept = {word: value for word, value in meant.items() if word != "default"}
            told = {"description": f"Another name of {key}.", "x-alias-of": key}
            for home in section_at(schema, path):
                home["properties"][name] = kept | told
            if own in section.get("required", ()):
                section["required"].remove(own)


def _space(schema: Schema) -> Schema:
    """What `space` may hold: every key of the run file with a list of its values, or a range."""
    pointers: dict[str, list[Entry]] = {}
    for entry in entries(schema):
        if not entry.is_in_list:
            pointers.setdefault(entry.path, []).append(entry)
    swept = {path: _dimension(found) for path, found in pointers.items()}
    swept |= {alias: swept[key] for alias, key in SWEEP_ALIASES.items() if key in swept}
    return {"properties": swept, "additionalProperties": False, "minProperties": 1}


def _dimension(found: list[Entry]) -> Schema:
    """What one key of `space` may hold."""
    kinds = [{"$ref": entry.pointer} if entry.pointer else entry.key for entry in found]
    items = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    forms = [{"type": "array", "items": items, "minItems": 1}, {"$ref": "#/$defs/Choices"}]
    if any(is_number(entry.key) for entry in found):
        forms.append({"$ref": f"#/$defs/{RangeConfig.__name__}"})
    return {"anyOf": forms, "description": found[0].key.get("description", "")}


# ---- documents that dynosim writes ---------------------------------------------------------------


def _document(keys: Iterable[ReportKey], *, optional: Iterable[str]) -> Schema:
    """Keys that are not in the list may come with any version."""
    listed = list(keys)
    return {
        "type": "object",
        "properties": {key.name: _written_key(key) for key in listed},
        "required": [key.name for key in listed if key.name not in optional],
    }


def _written_key(key: ReportKey) -> Schema:
    unit = f" Unit: {key.unit}." if key.unit else ""
    return {
        "type": key.kind if key.is_always_there else [key.kind, "null"],
        "description": key.meaning + unit,
        "x-stability": "stable" if key.is_stable else "experimental",
        **({"x-unit": key.unit} if key.unit else {}),
    }


def _headed(schema: Schema, title: str, description: str) -> Schema:
    """The schema with what it is in front."""
    head = {"$schema": DIALECT, "title": title, "description": description}
    return head | {key: value for key, value in schema.items() if key not in head}
