"""Result folders: written whole or not at all, and by one process at a time."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError

Writer = Callable[[Path], None]

LOCK = ".lock"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe is not waited for


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a place that cannot become a folder, before any work is done. Raises: ConfigError."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            if not os.access(place, os.W_OK | os.X_OK):
                raise ConfigError(f"{option} {folder}: no permission to write in {place}")
            return
        if place.exists():
            raise ConfigError(f"{option} {folder}: {place} is a file (name a folder)")


def write_files(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Call each writer with a path in a temporary folder; when all are done, move the files.

    Names may contain folders (`agg/top1/config.yaml`). An exception leaves `folder` as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, write in writers.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        for name in writers:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / name, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def locked_folder(folder: Path, *, work: str) -> Iterator[None]:
    """Inside, no other process that asks for `folder` gets it; it is made if it is not there.

    A folder that was made for the lock and holds nothing at the end is taken away again.
    Raises: ConfigError naming the process that has it; `work` says what that process does there.
    """
    while True:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(os.open(folder / LOCK, _FLAGS, 0o644), "r+b", buffering=0)
        try:
            _take(lock, folder, work)
        except BaseException:
            lock.close()
            raise
        if _is_at(lock, folder / LOCK):
            break
        lock.close()  # its last owner has just removed it
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
        lock.close()


def _take(lock: FileIO, folder: Path, work: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = (lock.read(20) or b"").decode("ascii", "replace").strip() or "?"
        raise ConfigError(
            f"{folder}: {work} is running there already (process {owner}); wait for its end, stop "
            "it, or give another --out"
        ) from None
    with suppress(OSError):  # a full disk costs only the name of who has it
        lock.truncate(0)
        lock.write(b"%d" % os.getpid())


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether the open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def parquet_writer(make_table: Callable[[], Any]) -> Writer:
    """A writer of the polars table that `make_table` returns."""
    return _table_writer(make_table, "write_parquet")


def csv_writer(make_table: Callable[[], Any]) -> Writer:
    """A writer of the same as text with commas."""
    return _table_writer(make_table, "write_csv")


def _table_writer(make_table: Callable[[], Any], how: str) -> Writer:
    def write(path: Path) -> None:
        from polars.exceptions import PolarsError

        table = make_table()
        try:
            getattr(table, how)(path)
        except PolarsError as error:  # so that a full disk is an OSError whoever meets it
            raise OSError(f"{path.name}: cannot be written: {error}") from error

    return write


def text_writer(text: str) -> Writer:
    """A writer of that text."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write
