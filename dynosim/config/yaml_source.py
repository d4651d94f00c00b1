"""YAML that remembers where every key was written and reads nothing into it.

Stricter than YAML on purpose: duplicate keys, NaN and infinity, octal or sexagesimal numbers, merge
keys and tags are errors, because each of them silently means something else than it seems to.
Numbers follow YAML 1.2: `1e3` is a number.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from dynosim.config.problems import Path, Problem, config_error, shown
from dynosim.errors import ConfigError

MAX_NODES = 200_000
MAX_DEPTH = 50
MAX_DIGITS = 40
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_TAG = "tag:yaml.org,2002:"
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BaseLoader):  # type: ignore[misc]  # chosen at run time
    """The safe loader, with YAML 1.2's floats (an exponent needs no point)."""


_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclass(slots=True)
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the place of each key."""

    data: dict[str, Any]
    name: str
    folder: FilePath
    places: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """Where the key, or the nearest section around it, was written."""
        for length in range(len(path), -1, -1):
            if found := self.places.get(path[:length]):
                return found
        return self.name

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """The problems with their places, as one exception."""
        return config_error(list(problems), self.place, source=self.name)


def read_document(path: FilePath) -> Document:
    """The YAML file at `path`.

    Raises: ConfigError for a file that cannot be read or is not one mapping of strictly valid YAML.
    """
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file (check the path)") from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a folder (name the YAML file in it)") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    reader = _Reader(name)
    data = reader.read(text)
    document = Document({}, name, path.resolve().parent, reader.places)
    if not reader.problems and not isinstance(data, dict):
        what = "is empty" if data is None else "is not a mapping of keys to values"
        raise ConfigError(f"{name}: {what} (a run file begins with `model:`, `workload:`, ...)")
    if reader.problems:
        raise document.error(reader.problems)
    document.data = data
    return document


def parse_value(text: str, *, name: str) -> Any:
    """The value of one `--set`, by the rules of the file.

    Raises: ConfigError naming `name`.
    """
    reader = _Reader(name)
    value = reader.read(text)
    if reader.problems:
        raise config_error(reader.problems, lambda _: name, source=name)
    return value


class _Reader:
    """Turns YAML nodes into data, noting places and problems on the way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self.num_nodes = 0

    def read(self, text: str) -> Any:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(
                f"{self.name}{line}: not valid YAML: {error.problem or error.context}"
            ) from None
        except yaml.YAMLError as error:
            detail = " ".join(str(error).split())
            raise ConfigError(f"{self.name}: not valid YAML: {detail}") from None
        finally:
            loader.dispose()
        return None if node is None else self._value(node, ())

    def _value(self, node: Any, path: Path) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise ConfigError(f"{self.name}: too large or too deep (aliases of aliases?)")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return self._sequence(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._refuse(path, f"the tag {node.tag} is not allowed", "write plain YAML")
        return None

    def _sequence(self, node: Any, path: Path) -> list[Any]:
        result = []
        for index, item in enumerate(node.value):
            self._note((*path, index), item.start_mark.line + 1)
            result.append(self._value(item, (*path, index)))
        return result

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            here = (*path, key if isinstance(key, str) else "?")
            if not isinstance(key_node, yaml.ScalarNode):
                self._note(path, line)
                self._refuse(path, "a key must be a word")
                continue
            if key_node.tag == f"{_TAG}merge":
                self._note(here, line)
                self._refuse(here, "merge keys are not supported", "write the keys out")
                continue
            if key in result:
                first = self.places.get(here, "")
                text = f"given twice, first at {first}" if first else "given twice"
                self._note(here, line)
                self._refuse(here, text, "keep one of them")
                continue
            self._note(here, line)
            result[key] = self._value(value_node, here)
        return result

    def _scalar(self, node: Any, path: Path) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp", "value"):
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("yes", "true", "on")
        if kind == "int" and len(text) <= MAX_DIGITS and _DECIMAL.fullmatch(text):
            return int(text.replace("_", ""))
        if kind == "float":
            return self._float(text, path)
        if kind == "int":
            remedy = "write a plain decimal number, or quote it"
            self._refuse(path, f"{shown(text)} reads as octal, hexadecimal or minutes", remedy)
        else:
            self._refuse(path, f"the tag {node.tag} is not allowed", "write plain YAML")
        return None

    def _float(self, text: str, path: Path) -> float | None:
        try:
            number = float(text.replace("_", ""))
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
        remedy = "leave the key out, or write null, for no limit"
        self._refuse(path, f"must be a finite number, got {shown(text)}", remedy)
        return None

    def _note(self, path: Path, line: int) -> None:
        self.places[path] = f"{self.name}:{line}"

    def _refuse(self, path: Path, text: str, remedy: str = "") -> None:
        self.problems.append(Problem(path, text, remedy))
