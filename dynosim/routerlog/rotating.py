"""The log of a router that runs for ever: the last files only, each of which replays on its own.

A new file begins with the router's state. What ranks hold of blocks is most of it, and is written
a part at a time between inputs, into a file that gets its name when it is complete; until then the
old file goes on. So nobody waits long, and a process that is killed leaves whole files.
"""

import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import msgspec

from dynosim.errors import ConfigError
from dynosim.files.storage import is_fault
from dynosim.indexer.base import BlockEvent
from dynosim.indexer.make import AnyExtentIndex, IndexSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.log.checkpoint import CheckpointInParts, check_can_be_told
from dynosim.router.log.plain import Entry
from dynosim.router.log.recorder import RouterLog, logged_router
from dynosim.router.policy import StatefulPolicy
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.routerlog.replay import FORMAT, PREFIX, SUFFIX, LogHeader, file_name, file_number

UNFINISHED = ".part"
ROTATE_AT = 0.75  # of the size of a file: room for what is logged while the next is prepared
PART_S = 0.005  # of a rotation, between two inputs; the last rank begun is finished
BUFFER_BYTES = 1 << 18
RETRY_S_MIN, RETRY_S_MAX = 5.0, 60.0  # from a failure to the next try; doubles

logger = logging.getLogger(__name__)


class RotatingLog:
    """Keeps a router's last inputs and decisions in `folder`, as `router-000001.jsonl`, ...

    At most `max_files` files of `max_bytes` each are kept, the one being prepared included. Only a
    router whose state alone takes more than half of `max_bytes` gets larger files, of twice that.
    Call `maintain` between the router's inputs, and every second or so when there are none.

    Rotation changes nothing in the router, except that a placement policy without `state` and
    `restore` begins anew. Should the disk or the policy fail, the log ends there, `failure` tells
    why, and the router goes on; later a file is begun anew, with the state at that time, until that
    works.
    Raises: ConfigError if the folder cannot be written or a limit makes no sense; a disk that is
    full or broken at the start is a failure like any later one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 64 << 20,
        max_files: int = 4,
        flush_interval_s: float = 1.0,
    ) -> None:
        if max_bytes < 1 or max_files < 2 or not flush_interval_s >= 0:
            raise ConfigError(
                f"{folder}: a rotating router log needs at least 1 byte per file and 2 files, got "
                f"{max_bytes} and {max_files}, and a flush interval of at least 0 s"
            )
        self.failure: str | None = None
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._flush_interval_s = flush_interval_s
        self._flush_at_s = 0.0
        self._is_broken = False  # the current file cannot be replayed to its end
        self._is_open = False
        self._retry_s = RETRY_S_MIN
        self._retry_at_s = 0.0
        self._file: _File | None = None
        self._next: _File | None = None
        self._parts: CheckpointInParts | None = None
        self._limit_bytes = max_bytes
        try:
            _make_folder(folder)
            for leftover in folder.glob(f"{PREFIX}*{SUFFIX}{UNFINISHED}"):
                with contextlib.suppress(OSError):
                    leftover.unlink()
            self._kept = sorted(folder.glob(f"{PREFIX}*{SUFFIX}"), key=file_number)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None

    def open(
        self,
        settings: RouterSpec,
        index: IndexSpec,
        *,
        policy: str | None = None,
        estimator: PrefillEstimator | None = None,
    ) -> RouterLog[BlockEvent]:
        """A new router, whose inputs are logged from now on, in a file of its own.

        `policy` is `package.module:Class`. Raises: ConfigError if the folder cannot be written, or
        for an index or policy whose state cannot be told.
        """
        number = file_number(self._kept[-1]) + 1 if self._kept else 1
        self._header = LogHeader(
            FORMAT, settings, index, policy, estimator is not None, number=number, knows_tiers=True
        )
        placement = self._header.make_policy()
        if isinstance(placement, StatefulPolicy):
            _through_json(placement.state(), policy)
        made = index.make()
        check_can_be_told(made)
        assert not isinstance(made, AnyExtentIndex)
        inputs = logged_router(self._write, settings, made, policy=placement, estimator=estimator)
        self._inputs = inputs
        self._is_open = True
        try:
            self._file = self._begin_file(self._header, is_finished=True)
            self.flush()
        except OSError as error:
            if not is_fault(error):
                raise ConfigError(f"{self._folder}: cannot be written: {error.strerror}") from None
            if self._file is not None:  # its header at least is not there
                self._kept.remove(self._file.path)
                self._file.discard()
                self._file = None
            self._fail(error)
        return inputs

    def maintain(self) -> None:
        """Write out what has waited for `flush_interval_s`; go on with a rotation if one is due.

        After a failure: try again now and then.
        """
        if not self._is_open or (self._file is None and monotonic() < self._retry_at_s):
            return
        try:
            if self._file is None:
                self._resume()
            elif self._is_broken:
                self._rotate_at_once()
            elif self._parts is not None:
                self._go_on(self._parts)
            elif self._file.num_bytes >= ROTATE_AT * self._limit_bytes:
                self._begin_rotation(self._header)
            if monotonic() >= self._flush_at_s:
                self.flush()
        except Exception as error:  # a policy's state() may raise anything; routing must go on
            self._fail(error)

    def flush(self) -> None:
        """Hand everything logged so far to the operating system."""
        if self._file is not None:
            self._file.flush()
            self._flush_at_s = monotonic() + self._flush_interval_s

    def close(self) -> None:
        """Finish the log; the router goes on unlogged."""
        self._is_open = False
        self._drop_next()
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._fail(error)
            self._file = None

    # ---- entries -------------------------------------------------------------------------------

    def _write(self, entry: Entry) -> None:
        if self._file is None:
            return
        try:
            line = self._file.write(entry)
            if self._parts is not None and self._next is not None and self._parts.belongs(entry):
                self._next.write_line(line)
        except OSError as error:
            self._fail(error)
        except Exception as error:  # no JSON can hold it; the encoder raises what it likes
            self._note_unwritable(entry, error)
        if entry[0] == "broken":
            self._is_broken = True

    def _note_unwritable(self, entry: Entry, error: Exception) -> None:
        """An input could not be written: the file ends here, and the next begins at once."""
        kind, now_ms = entry[:2]
        reason = ascii(f"an entry {kind} cannot be told: {type(error).__name__}: {error}")
        logger.error("%s: the router log goes on in another file: %s", self._folder, reason)
        self._write(["broken", now_ms, reason])

    def _fail(self, error: Exception) -> None:
        """The disk is full, or a policy cannot tell its state: go on without a log for a while."""
        reason = (
            error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        )
        is_news = self.failure is None
        self.failure = f"{self._folder}: the router log ends here: {reason}"
        if is_news:
            logger.error("%s", self.failure)
        for file in (self._next, self._file):
            if file is not None:
                file.abandon()
        self._file = self._next = self._parts = None
        self._is_broken = True
        self._retry_at_s = monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_S_MAX)

    def _resume(self) -> None:
        """Begin a file anew, with all that the router knows by now."""
        number = file_number(self._kept[-1]) if self._kept else 0
        self._begin_rotation(replace(self._header, number=number))
        assert self._parts is not None
        self._finish_rotation(self._parts)
        self._retry_s = RETRY_S_MIN
        self.failure = None
        logger.warning("%s: the router log goes on", self._folder)

    # ---- rotation ------------------------------------------------------------------------------

    def _begin_rotation(self, header: LogHeader) -> None:
        """Prepare the next file: what it begins with is the state when it is finished."""
        assert header.number is not None
        self._header = replace(header, number=header.number + 1, follows=not self._is_broken)
        self._next = self._begin_file(self._header, is_finished=False)
        self._parts = CheckpointInParts(self._inputs.router)
        self._next.write(self._parts.begin(self._inputs.now_ms))

    def _go_on(self, parts: CheckpointInParts) -> None:
        """Write what some ranks hold; then, or when the old file is full, change files."""
        assert self._file is not None and self._next is not None
        if self._file.num_bytes < self._limit_bytes:
            until_s = perf_counter() + PART_S
            while not parts.is_complete:
                for entry in parts.next_part(self._inputs.now_ms):
                    self._next.write(entry)
                if perf_counter() >= until_s:
                    return
        self._finish_rotation(parts)

    def _finish_rotation(self, parts: CheckpointInParts) -> None:
        assert self._next is not None
        line = b""
        for entry in parts.finish(self._inputs.now_ms):
            line = self._next.write(entry)
        self._renew_policy(line)
        self._next.flush()
        if self._file is not None:
            self._file.close()
        self._next.give_name()
        self._file, self._next, self._parts = self._next, None, None
        self._kept.append(self._file.path)
        self._is_broken = False
        self._limit_bytes = max(self._max_bytes, 2 * self._file.num_bytes)

    def _rotate_at_once(self) -> None:
        """Leave behind a file that cannot be replayed any further."""
        header = self._header
        if self._next is not None:
            assert header.number is not None
            header = replace(header, number=header.number - 1)
            self._drop_next()
        self._begin_rotation(header)
        assert self._parts is not None
        self._finish_rotation(self._parts)

    def _renew_policy(self, line: bytes) -> None:
        """Go on with a policy made as a replay will make it, from the state entry."""
        policy = self._header.make_policy()
        if policy is None:
            return
        if isinstance(policy, StatefulPolicy):
            policy.restore(msgspec.json.decode(line)[2]["policy"])
        self._inputs.router.use_policy(policy)

    def _begin_file(self, header: LogHeader, *, is_finished: bool) -> "_File":
        """A file with its header; makes room for it first."""
        assert header.number is not None
        num_left = max(self._max_files - 1, 0 if is_finished else 1)
        while len(self._kept) > num_left:
            self._kept.pop(0).unlink(missing_ok=True)
        file = _File(self._folder / file_name(header.number), is_finished=is_finished)
        if is_finished:
            self._kept.append(file.path)
        file.write(header)
        return file

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next.abandon()
            self._next = self._parts = None


class _File:
    """One file of a log; it gets its name at once or when it is finished."""

    def __init__(self, path: Path, *, is_finished: bool) -> None:
        self.path = path
        self.num_bytes = 0
        self._now_at = path if is_finished else path.with_name(path.name + UNFINISHED)
        self._file = self._now_at.open("wb", buffering=BUFFER_BYTES)
        self._encode = msgspec.json.Encoder().encode

    def write(self, document: Any) -> bytes:
        """Append a document; returns its line."""
        line = self._encode(document) + b"\n"
        self.write_line(line)
        return line

    def write_line(self, line: bytes) -> None:
        """Append a line."""
        self._file.write(line)
        self.num_bytes += len(line)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def give_name(self) -> None:
        """The file is complete."""
        self._now_at = self._now_at.replace(self.path)

    def abandon(self) -> None:
        """Close the file as well as may be; one without its name is removed."""
        with contextlib.suppress(OSError):  # what could not be written is lost, as is known
            self._file.close()
        if self._now_at != self.path:
            self._remove()

    def discard(self) -> None:
        """Close and remove the file."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):  # a disk that has become read-only
            self._now_at.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Raises: OSError if it is not there and cannot be made."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)


def _through_json(value: Any, policy: str | None) -> Any:
    """A policy's state as it will come back. Raises: ConfigError if it is not plain."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"router.policy {policy}: state() must return what JSON can hold: {error}"
        ) from None
