"""Other names of keys: those that AIConfigurator and Dynamo use for the same things.

A file may use either name, not both. They are exchanged before anything is checked, so messages and
whatever is written have our names.
"""

from collections.abc import Mapping
from typing import Any

from dynosim.config.problems import Path, Problem, dotted
from dynosim.config.yaml_source import Document
from dynosim.router.dynamo_names import KEY_ALIASES, our_value
from dynosim.silicon.names import OTHER_NAMES

Aliases = Mapping[str, str]
"""From a dotted key that may be written to the one that is meant."""

_COMMON = {
    "model_path": "model",
    "system": "hardware",
    "system_name": "hardware",
    "backend": "timing.backend",
    "backend_name": "timing.backend",
    "backend_version": "timing.backend_version",
    "isl": "workload.synthetic.isl",
    "osl": "workload.synthetic.osl",
    "prefix": "workload.synthetic.shared_prefix_tokens",
    "workload.isl": "workload.synthetic.isl",
    "workload.osl": "workload.synthetic.osl",
    **KEY_ALIASES,
    "planner.target": "planner.optimization_target",
    "planner.interval_s": "planner.throughput_adjustment_interval_ms",
    "planner.throughput_adjustment_interval_seconds": "planner.throughput_adjustment_interval_ms",
    "planner.load_interval_s": "planner.load_adjustment_interval_ms",
    "planner.load_adjustment_interval_seconds": "planner.load_adjustment_interval_ms",
    "planner.min_replicas": "planner.min_endpoint",
    "planner.max_replicas": "planner.max_endpoint",
    "planner.min_gpus": "planner.min_gpu_budget",
    "planner.max_gpus": "planner.max_gpu_budget",
}
_SECONDS = ("_s", "_seconds")
_BOUNDS = {
    "ttft": "ttft_ms",
    "tpot": "itl_ms",
    "tpot_ms": "itl_ms",
    "itl": "itl_ms",
    "request_latency": "e2e_ms",
}


def _bounds_in(section: str) -> dict[str, str]:
    return {f"{section}.{name}": f"{section}.{key}" for name, key in _BOUNDS.items()}


def _bounds_at_root(section: str) -> dict[str, str]:
    return {name: f"{section}.{key}" for name, key in _BOUNDS.items() if name != "tpot_ms"}


RUN_ALIASES: Aliases = _COMMON | _bounds_at_root("sla") | _bounds_in("sla")
SWEEP_ALIASES: Aliases = {
    **_COMMON,
    **_bounds_at_root("constraints.sla"),
    **_bounds_in("constraints.sla"),
    **_bounds_in("sla"),
    "total_gpus": "constraints.gpu_budget",
}


def names_of(key: str, aliases: Aliases) -> list[str]:
    """Other names of a key, the shortest first."""
    return sorted((alias for alias, target in aliases.items() if target == key), key=len)


def our_path(path: Path, aliases: Aliases) -> Path:
    """The path with our name of the key that it begins with."""
    for length in range(len(path), 0, -1):
        target = aliases.get(dotted(path[:length]))
        if target is not None:
            return (*target.split("."), *path[length:])
    return path


def use_our_names(document: Document, aliases: Aliases) -> None:
    """Exchange every other name in the document, and in its `space`, for ours.

    Raises: ConfigError where a key stands under both names.
    """
    problems: list[Problem] = []
    for alias, key in aliases.items():
        _move(document, tuple(alias.split(".")), tuple(key.split(".")), problems)
        _move(document, ("space", alias), ("space", key), problems)
    if problems:
        raise document.error(problems)
    use_sheet_names(document.data)


def use_sheet_names(data: dict[str, Any]) -> None:
    """The names that data sheets have for hardware, at the root and in `space`."""
    sections = [data, data["space"]] if isinstance(data.get("space"), dict) else [data]
    for section in sections:
        for key in ("hardware", "hardware.name"):
            if key in section:
                section[key] = _with_sheet_names(section[key])


def _with_sheet_names(given: Any) -> Any:
    """A name, or a list of names, with those of the data sheets; anything else as it is."""
    if isinstance(given, list):
        return [_with_sheet_names(name) for name in given]
    if isinstance(given, dict) and "name" in given:
        return {**given, "name": _with_sheet_names(given["name"])}
    if isinstance(given, dict) and "choices" in given:
        return {**given, "choices": _with_sheet_names(given["choices"])}
    return OTHER_NAMES.get(given, given) if isinstance(given, str) else given


def _move(document: Document, old: Path, new: Path, problems: list[Problem]) -> None:
    section = _section(document.data, old[:-1])
    if section is None or old[-1] not in section:
        return
    home = _section(document.data, new[:-1], make=True)
    if home is None:
        text = f"stands for {dotted(new)}, but {dotted(new[:-1])} is no section of keys"
        problems.append(Problem(old, text, f"remove it, or make {dotted(new[:-1])} a section"))
        return
    if new[-1] in home:
        remedy = "keep one of them"
        problems.append(Problem(old, f"given beside {dotted(new)}, which it stands for", remedy))
        return
    value = our_value(dotted(_in_space(old)), section.pop(str(old[-1])))
    if str(old[-1]).endswith(_SECONDS) and str(new[-1]).endswith("_ms"):
        value = _in_ms(value)
    home[str(new[-1])] = value
    if not section and len(old) > 1:
        _section(document.data, old[:-2], make=True).pop(str(old[-2]))  # type: ignore[union-attr]
    places = document.places
    for place in [place for place in places if place[: len(old)] == old]:
        places[(*new, *place[len(old) :])] = places.pop(place)


def _in_ms(value: Any) -> Any:
    """Of a number of seconds, or of each in a list or range; anything else as it is."""
    if isinstance(value, list):
        return [_in_ms(one) for one in value]
    if isinstance(value, dict):
        return {part: _in_ms(one) for part, one in value.items()}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value * 1000.0 if is_number else value


def _in_space(path: Path) -> Path:
    """A key of `space` without that."""
    return path[1:] if path[0] == "space" else path


def _section(data: dict[str, Any], path: Path, *, make: bool = False) -> dict[str, Any] | None:
    """The section at the path; None where there is none, unless it is to be made."""
    for part in path:
        below = data.get(str(part))
        if below is None and make:
            below = data[str(part)] = {}
        if not isinstance(below, dict):
            return None
        data = below
    return data
