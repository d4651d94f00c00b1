"""A controller's log on disk: its files, their first line, their lines.

One JSON document per line. The first, a `DecisionLogHeader`, tells of which plan the controller is;
the others are looks (`dynosim.planner.look`). Each file replays on its own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from dynosim.errors import ConfigError
from dynosim.planner.log_values import look_of, plain_look
from dynosim.planner.look import Look

FORMAT = 1
KIND: Literal["decisions"] = "decisions"
PREFIX, SUFFIX = "decisions-", ".jsonl"


@dataclass(frozen=True, slots=True)
class DecisionLogHeader:
    """The first line of a file.

    `plan` is the run file with defaults written out. The controller has seen the looks of the first
    `num_before` lines before the file began: they prepare it, and were decided in another one.
    """

    format: int
    kind: Literal["decisions"]
    plan: dict[str, Any]
    speedup: float
    num_before: int = 0


def encoded(document: DecisionLogHeader | Look) -> bytes:
    """A line. Numbers keep every digit; JSON of Python, where infinity is a number."""
    plain = plain_look(document) if isinstance(document, Look) else msgspec.to_builtins(document)
    return json.dumps(plain, separators=(",", ":")).encode() + b"\n"


def decoded(line: bytes) -> Look:
    """The look of a line. Raises: ValueError that says why it is none."""
    return look_of(json.loads(line))


def file_name(number: int) -> str:
    """The name of a file."""
    return f"{PREFIX}{number:06}{SUFFIX}"


def file_number(path: Path) -> int:
    """The number in a file's name. Raises: ConfigError if it has none."""
    digits = path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
    if not digits.isascii() or not digits.isdigit():
        raise ConfigError(f"{path}: not named as a file of a decision log, such as {file_name(1)}")
    return int(digits)


def decision_files(folder: Path) -> list[Path]:
    """The files of a folder, in order. Raises: ConfigError for one that has no number."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"), key=file_number)


def holds_decisions(path: Path) -> bool:
    """Whether it is a decision log, a file or a folder."""
    if path.is_dir():
        return any(path.glob(f"{PREFIX}*{SUFFIX}"))
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.get("kind") == KIND


class DecisionFile:
    """One file, read line by line. Raises: ConfigError naming the line that is none of a log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []  # what was passed over
        self._lines = self._read()
        self.header = self._read_header()

    def looks(self) -> Iterator[tuple[int, Look]]:
        """Its looks, with the number of their line."""
        for number, line in self._lines:
            try:
                yield number, decoded(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{self.path}:{number}: {error}") from None

    def _read_header(self) -> DecisionLogHeader:
        _, line = next(self._lines, (1, b""))
        try:
            header = msgspec.convert(json.loads(line), DecisionLogHeader)
        except (ValueError, RecursionError) as error:  # msgspec's errors are such, too
            raise ConfigError(f"{self.path}:1: not the head of a decision log: {error}") from None
        if header.format != FORMAT:
            raise ConfigError(
                f"{self.path}:1: written in format {header.format}, this version reads {FORMAT}"
            )
        return header

    def _read(self) -> Iterator[tuple[int, bytes]]:
        """A last line that was cut off is passed over, as a killed process leaves it."""
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if number > 1 and not line.endswith(b"\n"):
                        self.notes.append(
                            f"{self.path}:{number}: the last line is cut off; it was passed over"
                        )
                        return
                    yield number, line
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from None
