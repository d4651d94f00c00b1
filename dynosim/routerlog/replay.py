"""Router logs on disk: writing them, and deriving every decision again.

One JSON document per line. The first tells what the router was: its settings, its index, its
policy; the others are entries of `dynosim.router.log.entries`. A log in several files (see
`dynosim.routerlog.rotating`) is a folder; each of its files is a log of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import msgspec

from dynosim.blocks.tier import Tier
from dynosim.build.routing import load_policy
from dynosim.errors import ConfigError, DynosimError
from dynosim.indexer.make import IndexSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.kv_router import AnyRouter, KvRouter
from dynosim.router.log.checkpoint import difference
from dynosim.router.log.estimates import ReplayEstimator
from dynosim.router.log.plain import Entry
from dynosim.router.log.recorder import Sink
from dynosim.router.log.replay import replay_entry
from dynosim.router.policy import PlacementPolicy

FORMAT = 1
PREFIX, SUFFIX = "router-", ".jsonl"


@dataclass(frozen=True, slots=True)
class LogHeader:
    """The first line of a log."""

    format: int
    settings: RouterSpec
    index: IndexSpec
    policy: str | None = None
    has_estimator: bool = False  # prefill load decays; entries tell the predicted times
    number: int | None = None  # of the file, in a log of several
    follows: bool = False  # it goes on where the file before it ends
    knows_tiers: bool = False  # False: every event was taken for one of the device

    def make_router(self) -> AnyRouter:
        """A router as the logged one was at its start."""
        return KvRouter(
            self.settings,
            self.index.make(),
            key_blocks=self.index.extent_blocks,
            estimator=ReplayEstimator() if self.has_estimator else None,
            policy=self.make_policy(),
        )

    def make_policy(self) -> PlacementPolicy | None:
        """A new policy of the router's kind, if it has one."""
        if self.policy is None:
            return None
        return load_policy(self.policy)(self.settings, self.settings.seed)


class LogWriter:
    """Writes a router log; `open` gives the sink for a `RouterLog`.

    Raises: ConfigError if the file cannot be written.
    """

    def __init__(self, path: Path, policy: str | None = None) -> None:
        self._encoder = msgspec.json.Encoder()
        self._policy = policy
        try:
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def open(self, settings: RouterSpec, index: IndexSpec, has_estimator: bool = False) -> Sink:
        """Write the header; what is returned appends entries."""
        header = LogHeader(FORMAT, settings, index, self._policy, has_estimator, knows_tiers=True)
        self._write(header)
        return self._write

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _write(self, document: Any) -> None:
        self._file.write(self._encoder.encode(document) + b"\n")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a replay found: all decisions equal, or the first one that differs.

    A file that does not begin as the one before it ended counts as a difference too; then `derived`
    tells in what.
    """

    num_entries: int
    num_decisions: int
    line: int | None = None  # of the first difference
    now_ms: float | None = None
    logged: Any = None
    derived: Any = None
    file: str | None = None  # with the first difference, in a log of several
    num_files: int = 1
    notes: tuple[str, ...] = ()  # what could not be looked at, and why

    @property
    def is_equal(self) -> bool:
        """Whether every decision came out as logged."""
        return self.line is None

    def with_file(self, name: str, verdict: "Verdict") -> "Verdict":
        """This one of some files of a log, all equal, and the verdict on the next, together."""
        return replace(
            verdict,
            num_entries=self.num_entries + verdict.num_entries,
            num_decisions=self.num_decisions + verdict.num_decisions,
            file=None if verdict.is_equal else name,
            num_files=self.num_files + 1,
            notes=self.notes + verdict.notes,
        )


def replay_log(path: Path) -> Verdict:
    """Derive every decision of a log, a file or a folder, again, up to the first that differs.

    A last line that was cut off is passed over and noted, as a killed process leaves it.
    Raises: ConfigError naming the line that is not what a router writes.
    """
    if not path.is_dir():
        return _Replay(path).run(None)
    total = Verdict(0, 0, num_files=0)
    before: _Replay | None = None
    for file in log_files(path):
        replay = _Replay(file)
        verdict = replay.run(before)
        total = total.with_file(file.name, verdict)
        if not total.is_equal:
            break
        before = replay
    return total


def log_files(folder: Path) -> list[Path]:
    """The files of a log in several files, in order. Raises: ConfigError if there are none."""
    files = sorted(folder.glob(f"{PREFIX}*{SUFFIX}"), key=file_number)
    if not files:
        raise ConfigError(
            f"{folder}: holds no router log ({file_name(1)}, ...); is it the right folder?"
        )
    return files


def file_name(number: int) -> str:
    """The name of a file of a log in several files."""
    return f"{PREFIX}{number:06}{SUFFIX}"


def file_number(path: Path) -> int:
    """The number of a file of a log in several files. Raises: ConfigError if it has none."""
    digits = path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
    if not digits.isascii() or not digits.isdigit():
        raise ConfigError(f"{path}: not named as a file of a router log, such as {file_name(1)}")
    return int(digits)


class _Replay:
    """One file, derived again; `router` is then as the logged one was at its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._notes: list[str] = []
        self._lines = self._documents()
        self.header = self._read_header()
        self.router = self.header.make_router()
        self.is_whole = True

    def run(self, before: "_Replay | None") -> Verdict:
        """The verdict on the file, which may follow another one."""
        num_entries = num_decisions = 0
        for line, entry in self._lines:
            if not self.header.knows_tiers:
                _forget_tier(entry)
            try:
                logged, derived = replay_entry(self.router, entry)
            except DynosimError as error:
                raise ConfigError(f"{self._path}:{line}: {error}") from None
            num_entries += 1
            if entry[0] in ("arrive", "best", "release", "stale"):
                num_decisions += len(logged) if entry[0] == "release" else 1
            elif entry[0] == "state" and before is not None and self._follows(before):
                part = difference(before.router, self.router)
                if part is not None:
                    derived = f"at the end of the file before, the {part} differ"
            elif entry[0] == "broken":
                self._note(line, f"the router failed ({logged}); the rest cannot be derived")
                break
            if _plain(derived) != logged:
                return Verdict(
                    num_entries, num_decisions, line, entry[1], logged, _plain(derived),
                    notes=tuple(self._notes),
                )  # fmt: skip
        return Verdict(num_entries, num_decisions, notes=tuple(self._notes))

    def _follows(self, before: "_Replay") -> bool:
        """Whether this router must be what the one of another file became."""
        number, last = self.header.number, before.header.number
        is_next = number is not None and last is not None and number == last + 1
        return is_next and self.header.follows and before.is_whole

    def _note(self, line: int, what: str) -> None:
        self._notes.append(f"{self._path}:{line}: {what}")
        self.is_whole = False

    def _read_header(self) -> LogHeader:
        _, first = next(self._lines, (0, None))
        try:
            header = msgspec.convert(first, LogHeader)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{self._path}:1: not the header of a router log: {error}") from None
        if header.format != FORMAT:
            raise ConfigError(
                f"{self._path}:1: written in format {header.format}, this version reads {FORMAT}"
            )
        return header

    def _documents(self) -> Iterator[tuple[int, Any]]:
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        document = msgspec.json.decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                        if number > 1 and not line.endswith(b"\n"):
                            self._note(number, "the last line is cut off; it was passed over")
                            return
                        raise ConfigError(f"{self._path}:{number}: not JSON: {error}") from None
                    yield number, document
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror}") from None


def _plain(value: Any) -> Any:
    """As it would come back from the file."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _forget_tier(entry: Entry) -> None:
    """Let an event be one of the device, as it was taken in logs of before."""
    match entry:
        case ["event", _, _, _, {"tier": _} as event]:
            event["tier"] = int(Tier.DEVICE)
