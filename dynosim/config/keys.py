"""The tree of known keys, walked for messages: what may stand where, and what was meant."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dynosim.config.aliases import SWEEP_ALIASES
from dynosim.config.problems import Path, dotted, nearest
from dynosim.config.schema import RunConfig

LATER: dict[str, tuple[str, ...]] = {
    "engine.kind": ("sglang", "trtllm"),
    "workload.format": ("mooncake-delta", "agentic-mooncake", "applied-compute"),
    "search.method": ("halving",),
}
"""Values that are understood but come in a later version."""

ALIASES = {"tp": "tensor_parallel", "replicas": "workers"}
SWEEP_KEYS = ("space", "constraints", "objectives", "search", "load", "top")


def sections_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that a key may hold; empty for a plain value."""
    found: list[type[BaseModel]] = []
    pending: list[Any] = [field.annotation]
    while pending:
        kind = pending.pop(0)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        elif get_origin(kind) in (Union, UnionType):
            pending.extend(get_args(kind))
        elif get_origin(kind) is Annotated:
            pending.append(get_args(kind)[0])
    return found


def chosen_section(sections: list[type[BaseModel]], data: Any) -> type[BaseModel] | None:
    """The section meant by the data's `kind`, or the only one there is."""
    if len(sections) == 1:
        return sections[0]
    kind = data.get("kind") if isinstance(data, dict) else None
    for section in sections:
        if kind in get_args(section.model_fields["kind"].annotation):
            return section
    return None


def section_at(root: type[BaseModel], path: Path, data: Any) -> type[BaseModel] | None:
    """The section whose keys stand under `path`, or None where none is known."""
    section: type[BaseModel] | None = root
    for part in path:
        if section is None or part not in section.model_fields:
            return None
        data = data.get(part) if isinstance(data, dict) else None
        section = chosen_section(sections_of(section.model_fields[str(part)]), data)
    return section


def all_keys(root: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key under `root`."""
    for name, field in root.model_fields.items():
        yield f"{prefix}{name}"
        for section in sections_of(field):
            yield from all_keys(section, f"{prefix}{name}.")


def unknown_key_remedy(root: type[BaseModel], path: Path, data: Any) -> str:
    """What a user who wrote the unknown key `path` probably meant."""
    word = str(path[-1])
    section = section_at(root, path[:-1], data)
    siblings = list(section.model_fields) if section is not None else []
    if len(path) == 1 and root is RunConfig and nearest(word, siblings) is None:
        siblings += SWEEP_KEYS
    if root is RunConfig and len(path) == 1 and word in SWEEP_KEYS:
        return "this is a sweep file: use `dynosim sweep`"
    if root is RunConfig and dotted(path) in SWEEP_ALIASES:
        return f"in a sweep file it stands for {SWEEP_ALIASES[dotted(path)]}"
    if "." in word and section is not None:
        return "write the parts below each other, `a: {b: ...}`"
    prefix = dotted(path[:-1])
    elsewhere = [key for key in dict.fromkeys(all_keys(root)) if key.rpartition(".")[2] == word]
    near = ALIASES[word] if ALIASES.get(word) in siblings else nearest(word, siblings)
    if near is None and dotted(path) in elsewhere:
        return f"another kind of {prefix} takes it: remove it, or set {prefix} as a whole"
    if near is None and elsewhere:
        return f"did you mean {elsewhere[0]}?"
    if near is not None:
        return f"did you mean {prefix}.{near}?" if prefix else f"did you mean {near}?"
    return f"known here: {', '.join(siblings)}" if siblings else "remove it"


def key_problem(path: Path, data: Any) -> tuple[str, str] | None:
    """(what is wrong, remedy) if a run file has no key `path`; `data` tells the kinds in use."""
    for length in range(1, len(path) + 1):
        head = path[:length]
        section = section_at(RunConfig, head[:-1], data)
        if section is None:
            parent = dotted(head[:-1])
            if _is_undecided(head[:-1], data):
                if head[-1] == "kind":
                    return None  # the schema tells which kinds there are
                return f"{parent} has no kind yet", f"set {parent}.kind first"
            return f"unknown key: {parent} holds no keys", f"set {parent} itself"
        if head[-1] not in section.model_fields:
            return "unknown key", unknown_key_remedy(RunConfig, head, data)
    return None


def _is_undecided(path: Path, data: Any) -> bool:
    parent = section_at(RunConfig, path[:-1], data)
    if parent is None or path[-1] not in parent.model_fields:
        return False
    return len(sections_of(parent.model_fields[str(path[-1])])) > 1
