"""`--set a.b=v`, and what stands for it: changes to a file's data before it is checked."""

from collections.abc import Sequence
from typing import Any

from dynosim.config.aliases import Aliases, our_path, use_sheet_names
from dynosim.config.keys import SWEEP_KEYS, key_problem
from dynosim.config.problems import Path, Problem, dotted
from dynosim.config.yaml_source import Document, parse_value
from dynosim.errors import ConfigError
from dynosim.router.dynamo_names import Stated, our_value


def apply_overrides(document: Document, overrides: Sequence[str], aliases: Aliases) -> None:
    """Sets each `key=value` in the document; a later one wins. `aliases` are other names of keys.

    Raises: ConfigError naming `--set key` for a malformed one, an unknown key or a bad value.
    """
    problems: list[Problem] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key or "" in key.split("."):
            raise ConfigError(f"--set {override}: expected key=value (like `--set seed=1`)")
        name = override.source if isinstance(override, Stated) else f"--set {key}"
        path = split_key(key, aliases)
        document.places = _without_below(document.places, path)
        document.places[path] = name
        value = our_value(key.removeprefix("space."), parse_value(text, name=name))
        _put(document.data, path, value, problems)
    use_sheet_names(document.data)
    for override in overrides:
        path = split_key(override.partition("=")[0].strip(), aliases)
        known_bad = path[0] in SWEEP_KEYS or any(problem.path == path for problem in problems)
        if not known_bad and (found := key_problem(path, document.data)):
            problems.append(Problem(path, *found))
    if problems:
        raise document.error(problems)


def split_key(key: str, aliases: Aliases) -> Path:
    """`a.b.c` in parts, by our names; below `space` the rest is one dotted key."""
    if key.startswith("space."):
        return ("space", dotted(our_path(tuple(key.split(".")[1:]), aliases)))
    return our_path(tuple(key.split(".")), aliases)


def put(data: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of `data` with the value at `path`; sections on the way are made."""
    result = dict(data)
    head, rest = path[0], path[1:]
    if rest:
        below = _section_of(str(head), result.get(str(head)))
        value = put(below if isinstance(below, dict) else {}, rest, value)
    result[str(head)] = value
    return result


def _section_of(key: str, value: Any) -> Any:
    """What keys are set under: for hardware given by its name, the section that means it."""
    return {"name": value} if key == "hardware" and isinstance(value, str) else value


def _put(data: dict[str, Any], path: Path, value: Any, problems: list[Problem]) -> None:
    for depth, part in enumerate(path[:-1]):
        below = _section_of(str(part), data.get(str(part))) if depth == 0 else data.get(str(part))
        if below is None:
            below = {}
        if not isinstance(below, dict):
            where = path[: depth + 1]
            problems.append(Problem(path, f"{part} is a value, not a section of keys",
                                    f"set {'.'.join(map(str, where))} itself"))  # fmt: skip
            return
        data[str(part)] = dict(below)
        data = data[str(part)]
    data[str(path[-1])] = value


def _without_below(places: dict[Path, str], path: Path) -> dict[Path, str]:
    return {key: place for key, place in places.items() if key[: len(path)] != path}
