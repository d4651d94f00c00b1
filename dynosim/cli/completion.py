"""What a shell may offer at the end of a command line: commands, options, keys, names, files.

The shell's script (`completion_scripts`) calls `dynosim` with the line up to the cursor in
`_DYNOSIM_LINE`, and gets one whole word a line. Nothing here is loaded at any other time.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

LINE = "_DYNOSIM_LINE"

_BLANKS = re.compile(r"([\s'\"\\$&;()|<>*?!`])")
_YAML = (".yaml", ".yml")


def answer(root: Any, shell: str) -> int:
    """Print what could stand at the end of the line; `root` is the command `dynosim`. Returns 0."""
    words, incomplete = split_line(os.environ.get(LINE, ""))
    for word in candidates(root, words[1:], incomplete):
        print(_BLANKS.sub(r"\\\1", word) if shell == "bash" else word)  # others quote by themselves
    return 0


def split_line(line: str) -> tuple[list[str], str]:
    """The whole words of a line, and what has been typed of the last one."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is not closed yet
        words = line.split()
    if not words or line[-1:].isspace():
        return words, ""
    return words[:-1], words[-1]


def candidates(root: Any, words: list[str], incomplete: str) -> list[str]:
    """Words that begin with `incomplete` and may follow `words`, in order."""
    command, waiting, num_arguments = root, None, 0
    for word in words:
        if waiting is not None:
            waiting = None
        elif word.startswith("-"):
            option = _option(command, word.partition("=")[0])
            waiting = option if "=" not in word and _takes_value(option) else None
        elif hasattr(command, "commands"):
            command = command.get_command(None, word)
            if command is None:
                return []
        else:
            num_arguments += 1
    if waiting is not None:
        found = _values(command, waiting, incomplete)
    elif incomplete.startswith("-") and "=" in incomplete:
        name, _, begun = incomplete.partition("=")
        option = _option(command, name)
        values = _values(command, option, begun) if _takes_value(option) else []
        found = (f"{name}={value}" for value in values)
    elif incomplete.startswith("-"):
        found = (name for one in command.params for name in one.opts if name.startswith("--"))
    elif hasattr(command, "commands"):
        found = iter(command.list_commands(None))
    else:
        found = _argument_values(command, num_arguments, incomplete)
    return [word for word in dict.fromkeys(found) if word.startswith(incomplete)]


def _option(command: Any, name: str) -> Any:
    return next((one for one in command.params if name in one.opts), None)


def _takes_value(option: Any) -> bool:
    return option is not None and not getattr(option, "is_flag", False) and option.name != "help"


def _argument_values(command: Any, place: int, incomplete: str) -> Iterable[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    if not arguments:
        return []
    if place >= len(arguments) and arguments[-1].nargs != -1:
        return []
    return _values(command, arguments[min(place, len(arguments) - 1)], incomplete)


def _values(command: Any, parameter: Any, incomplete: str) -> Iterable[str]:
    """What a parameter may be."""
    if parameter.name == "set_":
        return _settings(incomplete, is_sweep=command.name in ("sweep", "size"))
    if (command.name, parameter.name) == ("explain", "key"):
        return (key.removesuffix("=") for key in _settings("", is_sweep=True))
    chosen = [item.value for item in parameter.shell_complete(None, incomplete)]
    if chosen and chosen != [incomplete]:
        return chosen
    described = getattr(parameter, "type_descriptor", None)
    kind = getattr(parameter, "type", None) if described is None else described.annotation
    if "path" in str(kind).lower():
        return paths(incomplete, _YAML if parameter.name in ("spec", "config", "plan") else ())
    return _names(parameter.name)


def _names(of: str) -> list[str]:
    if of == "model":
        from dynosim.silicon.catalogue import known_models

        return list(known_models())
    if of == "hardware":
        from dynosim.silicon.hardware import known_hardware

        return list(known_hardware())
    return []


def paths(incomplete: str, suffixes: tuple[str, ...] = ()) -> Iterator[str]:
    """Folders, with a slash, and files of these kinds (any if none is named) as they are begun."""
    head, _, begun = incomplete.rpartition("/")
    prefix = f"{head}/" if "/" in incomplete else ""
    try:
        found = sorted(Path(prefix or ".").expanduser().iterdir())
    except (OSError, RuntimeError):
        return
    for path in found:
        if path.name.startswith(".") and not begun.startswith("."):
            continue
        if path.is_dir():
            yield f"{prefix}{path.name}/"
        elif not suffixes or path.name.endswith(suffixes):
            yield f"{prefix}{path.name}"


# ---- --set ---------------------------------------------------------------------------------------


def _settings(incomplete: str, *, is_sweep: bool) -> Iterator[str]:
    """Keys of the file with "=" behind them; behind that, the values that a key may have."""
    from dynosim.config.keys import all_keys
    from dynosim.config.schema import RunConfig
    from dynosim.config.sweep_schema import SweepKeys

    key, equals, begun = incomplete.partition("=")
    roots = (RunConfig, SweepKeys) if is_sweep else (RunConfig,)
    if equals:
        values = (value for root in roots for value in _values_of(root, key, begun))
        yield from (f"{key}={value}" for value in values)
        return
    keys = [one for root in roots for one in all_keys(root)]
    sections = {key.rpartition(".")[0] for key in keys}
    leaves = [key for key in keys if key not in sections]
    yield from (f"{key}=" for key in leaves)
    if is_sweep and incomplete.startswith("space."):
        yield from (f"space.{key}=" for key in leaves)


def _values_of(root: Any, key: str, begun: str) -> Iterator[str]:
    name = key.rpartition(".")[2]
    yield from _names(key)
    for annotation in _annotations(root, key.split(".")):
        yield from _literals(annotation)
    if name in ("trace", "file"):
        yield from paths(begun)


def _annotations(root: Any, parts: list[str]) -> Iterator[Any]:
    """What the key may hold, in each kind of its section that has it."""
    from dynosim.config.keys import sections_of

    field = root.model_fields.get(parts[0])
    if field is None:
        return
    if len(parts) == 1:
        yield field.annotation
    for section in sections_of(field):
        if len(parts) > 1:
            yield from _annotations(section, parts[1:])


def _literals(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _literals(part)
