"""What tells one file's content, or one piece of data, from another."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


def digest(data: Any) -> str:
    """16 hexadecimal digits that stand for plain data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises: OSError.

    That of a large file is kept: a sweep asks for its trace's once for each of its winners.
    """
    now = path.stat()
    if now.st_size <= CHUNK_BYTES:
        return _sha256(path)
    return _kept_sha256(path, now.st_ino, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=16)
def _kept_sha256(path: Path, inode: int, size: int, changed_ns: int) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()
