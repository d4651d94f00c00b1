"""All keys that a user may meet: of run files, sweep files, reports and tables, under one roof."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dynosim.config.aliases import RUN_ALIASES, SWEEP_ALIASES, Aliases, names_of
from dynosim.config.keys import SWEEP_KEYS
from dynosim.config.problems import nearest
from dynosim.config.report_keys import DOCUMENT_KEYS, PREPARED_KEYS, ReportKey, report_keys
from dynosim.config.sweep_columns import (
    CAPACITY_COLUMNS,
    NEED_COLUMNS,
    PROBE_COLUMNS,
    SCREEN_COLUMNS,
    SIZING_COLUMNS,
    SUMMARY_KEYS,
    TRIAL_COLUMNS,
)
from dynosim.errors import ConfigError
from dynosim.reference.entries import Entry, entries
from dynosim.reference.schemas import run_schema, sweep_schema

RUN, SWEEP = "run and sweep files", "sweep files"
REPORT, SUMMARY = "report.json", "summary.json of a sweep"
TRIALS, PROBES, SIZING = (f"{name}.parquet of a sweep" for name in ("trials", "probes", "sizing"))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFact:
    """What there is to say of one key."""

    key: str
    home: str  # which file has it
    meaning: str
    values: str
    unit: str = ""
    default: str = ""
    where: str = ""  # for which kind of its section
    also: tuple[str, ...] = ()  # other names
    stability: str = ""  # of what is written; empty: users write it
    same_as: str = ""  # the key of another section of the same shape, told before
    is_section: bool = False
    is_required: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what is empty."""
        facts = {name: getattr(self, name) for name in self.__slots__}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in facts.items() if v}


def file_facts() -> list[KeyFact]:
    """Keys of run files, then those that sweep files add, in the order of the schema."""
    own = (entry for entry in entries(sweep_schema()) if entry.path.split(".")[0] in SWEEP_KEYS)
    return [
        *_facts_of(entries(run_schema()), RUN, RUN_ALIASES),
        *_facts_of(own, SWEEP, SWEEP_ALIASES),
    ]


def written_facts() -> list[KeyFact]:
    """Keys of the files that dynosim writes."""
    parts: list[tuple[str, Iterable[ReportKey]]] = [
        (REPORT, (*DOCUMENT_KEYS, *report_keys(), *PREPARED_KEYS)),
        (TRIALS, (*TRIAL_COLUMNS, *CAPACITY_COLUMNS, *SCREEN_COLUMNS, *NEED_COLUMNS)),
        (PROBES, PROBE_COLUMNS),
        (SIZING, SIZING_COLUMNS),
        (SUMMARY, SUMMARY_KEYS),
    ]
    return [_written_fact(key, home) for home, keys in parts for key in keys]


def find(key: str) -> list[KeyFact]:
    """What is known of a key: of the key itself (a section's: with all below it), else of those
    that it is another name of, whose name ends or begins with it.

    Raises: ConfigError with the nearest key for one that is nowhere.
    """
    facts = [*file_facts(), *written_facts()]
    for found in (
        [fact for fact in facts if fact.key == key or fact.key.startswith(f"{key}.")],
        [fact for fact in facts if key in plain_names(fact)],
        [fact for fact in facts if fact.key.endswith(f".{key}") and not fact.same_as],
        [fact for fact in facts if len(key) > 1 and fact.key.startswith(key)],
    ):
        if found:
            return found
    known = dict.fromkeys(_all_names(facts))
    near = nearest(key, known)
    hint = f"did you mean {near}?" if near else "`dynosim explain` without a key lists all"
    raise ConfigError(f"explain {key}: no file has such a key ({hint})")


def _all_names(facts: Iterable[KeyFact]) -> Iterator[str]:
    for fact in facts:
        yield from (fact.key, fact.key.rpartition(".")[2], *plain_names(fact))


def plain_names(fact: KeyFact) -> list[str]:
    """Other names of a key, without where they hold."""
    return [name.partition(" ")[0] for name in fact.also]


def _other_names(key: str, aliases: Aliases) -> Iterator[str]:
    for name in names_of(key, aliases):
        is_only_of_runs = aliases is RUN_ALIASES and SWEEP_ALIASES.get(name) != key
        yield f"{name} (in run files)" if is_only_of_runs else name


def _facts_of(found: Iterable[Entry], home: str, aliases: Aliases) -> Iterator[KeyFact]:
    """A key of a section that has the shape of another one refers to that nearest to the root."""
    listed = list(found)
    first: dict[str, str] = {}  # by what there is to say of a key
    for entry in sorted(listed, key=lambda entry: entry.path.count(".")):
        first.setdefault(_said_of(entry), entry.path)
    for entry in listed:
        path = first[_said_of(entry)]
        same_as = "" if path == entry.path or "." not in entry.path else path
        yield _fact_of(entry, home, aliases, same_as)


def _said_of(entry: Entry) -> str:
    """Equal for keys of sections of the same shape: a pool's `engine` has those of `engine`."""
    kind = entry.where.rpartition(".")[2]
    return json.dumps([entry.name, kind, entry.key], sort_keys=True)


def _fact_of(entry: Entry, home: str, aliases: Aliases, same_as: str) -> KeyFact:
    return KeyFact(
        key=entry.path,
        home=home,
        meaning=entry.meaning,
        values=entry.values,
        unit=entry.unit,
        default=entry.default,
        where=entry.where,
        also=tuple(_other_names(entry.path, aliases)),
        is_section=entry.is_section,
        is_required=entry.is_required,
        same_as=same_as,
    )


def _written_fact(key: ReportKey, home: str) -> KeyFact:
    words = {"string": "text", "boolean": "true | false", "array": "list", "object": "section"}
    return KeyFact(
        key=key.name,
        home=home,
        meaning=key.meaning,
        values=words.get(key.kind, key.kind),
        unit=key.unit,
        stability="stable" if key.is_stable else "experimental",
    )
