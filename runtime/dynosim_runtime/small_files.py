"""Small files that others read while we write them: whole or not at all, on a full disk too.

Nothing here waits: what is no regular file is refused, not opened and waited for.
"""

import contextlib
import os
import stat
from pathlib import Path

from dynosim.files.storage import is_fault

SPARE_BYTES_MIN = 4096  # a block of most file systems


class UnusableFileError(OSError):
    """No regular file, or a larger one than such files are."""


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """The content of a regular file. Raises: OSError, for links, pipes and large files too."""
    # without O_NONBLOCK, opening a pipe would wait for somebody to write to it
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    file = os.open(path, flags)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFileError("it is no regular file")
        if status.st_size > max_bytes:
            raise UnusableFileError(f"it has {status.st_size} bytes, more than {max_bytes}")
        return os.read(file, max_bytes)
    finally:
        os.close(file)


def replace_file(path: Path, content: bytes, *, scratch: Path, spare: Path | None = None) -> None:
    """Write a file so that readers see the old or the new one. Raises: OSError; the old one stays.

    `scratch` is where it is written first, in the same folder. On a full disk the blocks of
    `spare` are used, a file of the same folder that is kept for this, and the old file is the next
    one: were its blocks given back for a moment, another process could take them. Where there is
    room, a spare file that has become too small is made anew.
    """
    has_room = True
    try:
        _write_new(scratch, content)
        os.replace(scratch, path)
    except OSError as error:
        _remove(scratch)
        if spare is None or not is_fault(error):
            raise
        has_room = False
        _write_into(spare, content, error)
        _exchange(spare, path, scratch)
    if spare is not None:
        least = max(SPARE_BYTES_MIN, len(content)) if has_room else 0
        if _size(spare) < least:
            _remove(spare)
            _make_spare(spare, max(SPARE_BYTES_MIN, 2 * len(content)))


def _write_new(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a left-over, whatever it is
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _write_all(file, content)
    finally:
        os.close(file)


def _write_into(spare: Path, content: bytes, reason: OSError) -> None:
    """Overwrite its blocks, which takes no new ones. Raises: `reason` if there is none."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(spare, flags)
    except OSError:
        raise reason from None
    try:
        _write_all(file, content)
        os.ftruncate(file, len(content))
    finally:
        os.close(file)


def _exchange(new: Path, path: Path, between: Path) -> None:
    """Put a file in the place of another, which takes its name, if the file system has links."""
    try:
        os.link(path, between)
    except OSError:
        os.replace(new, path)
        return
    os.replace(new, path)
    os.replace(between, new)


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _size(path: Path) -> int:
    """Bytes of a file; -1: there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _make_spare(spare: Path, num_bytes: int) -> None:
    """Keep so many bytes, if the disk has them."""
    try:
        file = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError:
        return
    try:
        os.posix_fallocate(file, 0, num_bytes)
    except OSError:
        _remove(spare)
    finally:
        os.close(file)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
