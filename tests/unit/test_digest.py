"""What tells one file from another."""

import hashlib
import os
from pathlib import Path

import pytest

from dynosim.files import digest as module
from dynosim.files.digest import CHUNK_BYTES, digest, file_sha256


@pytest.mark.parametrize("size", [0, 3, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_a_files_digest_is_its_contents(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    for byte in (b"x", b"y"):
        path.write_bytes(byte * size)
        os.utime(path, ns=(0, ord(byte)))
        assert file_sha256(path) == hashlib.sha256(byte * size).hexdigest()


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (CHUNK_BYTES + 1))
    first = file_sha256(path)
    monkeypatch.setattr(module, "_sha256", lambda path: "read again")
    assert file_sha256(path) == first
    path.write_bytes(b"y" * (CHUNK_BYTES + 2))
    assert file_sha256(path) == "read again"


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
