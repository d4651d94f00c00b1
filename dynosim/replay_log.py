"""Router logs on disk: writing them, and deriving every decision again.

One JSON document per line. The first tells what the router was: its settings, its index, its
policy; the others are entries of `dynosim.router.log`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from dynosim.errors import ConfigError, DynosimError
from dynosim.indexer.make import IndexSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log import Sink, replay_entry
from dynosim.router.settings import RouterSettings
from dynosim.routing_config import load_policy

FORMAT = 1


@dataclass(frozen=True, slots=True)
class LogHeader:
    """The first line of a log."""

    format: int
    settings: RouterSettings
    index: IndexSpec
    policy: str | None = None

    def make_router(self) -> KvRouter:
        """A router as the logged one was at its start."""
        key_blocks = self.index.extent_blocks if self.index.kind == "extents" else None
        policy = None
        if self.policy is not None:
            policy = load_policy(self.policy)(self.settings, self.settings.seed)
        return KvRouter(self.settings, self.index.make(), key_blocks=key_blocks, policy=policy)


class LogWriter:
    """Writes a router log; `open` gives the sink for a `LoggedRouter`.

    Raises: ConfigError if the file cannot be written.
    """

    def __init__(self, path: Path, policy: str | None = None) -> None:
        self._encoder = msgspec.json.Encoder()
        self._policy = policy
        try:
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def open(self, settings: RouterSettings, index: IndexSpec) -> Sink:
        """Write the header; what is returned appends entries."""
        self._write(LogHeader(FORMAT, settings, index, self._policy))
        return self._write

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _write(self, document: Any) -> None:
        self._file.write(self._encoder.encode(document) + b"\n")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a replay found: all decisions equal, or the first one that differs."""

    num_entries: int
    num_decisions: int
    line: int | None = None  # of the first difference
    now_ms: float | None = None
    logged: Any = None
    derived: Any = None

    @property
    def is_equal(self) -> bool:
        """Whether every decision came out as logged."""
        return self.line is None


def replay_log(path: Path) -> Verdict:
    """Derive every decision of a log again, up to the first that differs.

    Raises: ConfigError naming the line that is not what a router writes.
    """
    entries = _lines(path)
    router = _header(path, entries).make_router()
    num_entries = num_decisions = 0
    for line, entry in entries:
        try:
            logged, derived = replay_entry(router, entry)
        except DynosimError as error:
            raise ConfigError(f"{path}:{line}: {error}") from None
        num_entries += 1
        if entry[0] in ("arrive", "release", "stale"):
            num_decisions += len(logged) if entry[0] == "release" else 1
        if _plain(derived) != logged:
            return Verdict(num_entries, num_decisions, line, entry[1], logged, _plain(derived))
    return Verdict(num_entries, num_decisions)


def _plain(value: Any) -> Any:
    """As it would come back from the file."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _header(path: Path, entries: Iterator[tuple[int, Any]]) -> LogHeader:
    _, first = next(entries, (0, None))
    try:
        header = msgspec.convert(first, LogHeader)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}:1: not the header of a router log: {error}") from None
    if header.format != FORMAT:
        raise ConfigError(
            f"{path}:1: written in format {header.format}, this version reads {FORMAT}"
        )
    return header


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, msgspec.json.decode(line)
                except msgspec.DecodeError as error:
                    raise ConfigError(f"{path}:{number}: not JSON: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
