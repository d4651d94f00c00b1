"""Whose a place is: results are replaced by results of the same kind only, and only if asked to.

One rule for every command that writes: a folder is new, or empty, or holds the same kind of results
and `--overwrite` (or `--resume`) was given. What else lies in such a folder is left alone. A folder
that holds anything else is refused whatever was given. Hidden files do not count.

Results are known by files that they have anyway, so those of older versions are known too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError
from dynosim.files.user_text import parse_json

ANY = ""
"""As a key: the file's name alone tells."""


@dataclass(frozen=True, slots=True)
class ResultKind:
    """One kind of results. `marks`: any of these files tells it, if it is JSON with that key."""

    name: str
    marks: Mapping[str, str]
    remedy: str = "give --overwrite to replace it, or another --out"


PLAN = ResultKind("a comparison", {"report.json": "contestants"})
RUN = ResultKind("a run", {"report.json": "dynosim_version"})
SWEEP = ResultKind(
    "a sweep",
    {"ledger.jsonl": ANY, "summary.json": "sweep_hash"},
    "give --resume to go on with it, --overwrite to start anew, or another --out",
)
DEPLOYMENT = ResultKind("a deployment", {"deployment.json": "processes", "logs/deploy.log": ANY})
VALIDATION = ResultKind(
    "a validation",
    {
        "validation.json": ANY,
        "deployment/deployment.json": ANY,
        "deployment/logs/deploy.log": ANY,
    },
)
MODEL = ResultKind(
    "a tiny model",
    {"config.json": "dynosim_tiny_model"},
    "give --overwrite to replace it, or another folder",
)
KINDS = (PLAN, RUN, SWEEP, DEPLOYMENT, VALIDATION, MODEL)
"""A comparison is told by its own key of a file that runs have, too: it comes before them."""


def kind_of(folder: Path) -> ResultKind | None:
    """The kind of results that a folder holds, if dynosim has written there."""
    return next((kind for kind in KINDS if _is_marked(folder, kind.marks)), None)


def check_kind(folder: Path, kind: ResultKind) -> None:
    """Refuse a folder that holds anything but this kind of results. Raises: ConfigError."""
    if not folder.is_dir():
        return
    found = kind_of(folder)
    if found is kind:
        return
    if found is not None:
        raise ConfigError(f"{folder}: holds {found.name}, not {kind.name} (name another folder)")
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others:
        raise ConfigError(
            f"{folder}: holds {others[0]}, which is not of {kind.name} (name a new or empty folder)"
        )


def check_results(folder: Path, kind: ResultKind, *, overwrite: bool) -> None:
    """Refuse a folder that may not take new results of this kind. Raises: ConfigError."""
    check_kind(folder, kind)
    if not overwrite and folder.is_dir() and kind_of(folder) is kind:
        raise ConfigError(f"{folder}: holds {kind.name} already ({kind.remedy})")


def check_files(paths: Iterable[Path], *, overwrite: bool, option: str = "") -> None:
    """Refuse to replace files unless that is asked for. Raises: ConfigError.

    What is no plain file (a device, a pipe) is refused whatever is asked for: writers rename a
    finished file to its name, which would take a device away. `option` is what named them.
    """
    named = f"{option} " if option else ""
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{named}{path}: is a folder (name a file)")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{named}{path}: is no plain file (name one)")
        if path.exists() and not overwrite:
            raise ConfigError(
                f"{named}{path}: is there already (give --overwrite to replace it, or name another)"
            )


def _is_marked(folder: Path, marks: Mapping[str, str]) -> bool:
    return any((folder / name).is_file() and _has(folder / name, marks[name]) for name in marks)


def _has(file: Path, key: str) -> bool:
    if key == ANY:
        return True
    try:
        document: Any = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and key in document
