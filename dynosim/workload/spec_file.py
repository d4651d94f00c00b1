"""Generated workloads as they are written down: YAML files and command-line flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError
from dynosim.files.user_text import UnreadableYamlError, parse_yaml
from dynosim.workload.agents_spec import check_agents_keys
from dynosim.workload.spec import SyntheticSpec, as_spec, check_keys

_DISTRIBUTIONS = ("isl", "osl", "turn_isl", "turns", "think_time_ms")
_TEXTS = ("trace", "format", "dist")


@dataclass(frozen=True, slots=True)
class WrittenSpec:
    """What a file describes, by its keys: a synthetic workload, or agents at work."""

    keys: dict[str, Any]
    seed: int
    is_agents: bool = False


def read_spec(path: Path) -> WrittenSpec:
    """The keys of a generated workload in a YAML file, and its `seed` (0 if it has none).

    The keys stand under `synthetic` or `agents`, or under `workload` and those as in a run file;
    those of a synthetic workload may stand at the top.
    Raises: ConfigError if the file cannot be read or holds something else.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from None
    except UnreadableYamlError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(f"{path}{line}: not YAML: {error}") from None
    top = _mapping(data, path, "the file")
    seed = top.pop("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"{path}: seed: expected an integer, got {seed!r}")
    if "workload" in top:
        top = _mapping(top["workload"], path, "workload")
    is_agents = "agents" in top
    if is_agents or "synthetic" in top:
        source = "agents" if is_agents else "synthetic"
        top = _mapping(top[source], path, source)
    try:
        check_agents_keys(top) if is_agents else check_keys(top)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return WrittenSpec(top, seed, is_agents)


def spec_from_flags(data: Mapping[str, Any], flags: Mapping[str, Any]) -> SyntheticSpec:
    """The checked spec of a file's keys, overridden by the flags that are not None.

    Raises: ConfigError.
    """
    merged = dict(data)
    for key, value in flags.items():
        if value is None:
            continue
        merged[key] = parse_distribution(value, key) if key in _DISTRIBUTIONS else value
        if key in _EXCLUDES:
            merged.pop(_EXCLUDES[key], None)
    return as_spec(merged)


def refuse_flags(flags: Mapping[str, Any]) -> None:
    """Raises: ConfigError for a flag of a synthetic workload, where a file describes agents."""
    for key, value in flags.items():
        if value is not None:
            option = f"--{key.replace('_', '-')}"
            raise ConfigError(f"{option}: the file describes agents, change its keys instead")


_EXCLUDES = {"requests": "sessions", "sessions": "requests"}
"""A flag that takes the place of another key of the file."""


def parse_distribution(text: str, key: str) -> float | dict[str, Any]:
    """A number, or `kind:name=value,...` such as `lognormal:mean=4000,std=3000,max=32000`.

    Raises: ConfigError naming `key`.
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        return _number(text, key)
    parsed: dict[str, Any] = {"dist": kind}
    for pair in filter(None, rest.split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{key}: expected name=value after {kind}:, got {pair!r}")
        parsed[name] = value if name in _TEXTS else _number(value, f"{key}.{name}")
    return parsed


def _number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        message = "expected a number, or a distribution such as lognormal:mean=4000,std=3000"
        raise ConfigError(f"{key}: {message}, got {text!r}") from None


def _mapping(data: object, path: Path, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: {what}: expected keys of a synthetic workload, such as isl: 4000"
        )
    return dict(data)
