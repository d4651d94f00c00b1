"""Sweeps without their pictures, for tests that look at other files: drawing takes longer than the
rest of a small sweep."""

from pathlib import Path
from typing import Any

import pytest


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    """Pictures of sweeps of this process are empty files."""

    def empty(*arguments: Any) -> None:
        (path,) = [each for each in arguments if isinstance(each, Path)]
        path.write_bytes(b"")

    patch.setattr("dynosim.sweep.artifacts._picture", empty)
    patch.setattr("dynosim.sweep.artifacts._load_picture", empty)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)
