"""The developers' shared data: traces, recorded runs, scenarios. It is theirs and stays there."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DYNOSIM_SHARED", ROOT.parent / "shared"))


def shared_path(relative: str) -> Path:
    """A file of the shared data, or a skip that says what is missing."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"developers' data not here: {path} (set DYNOSIM_SHARED)")
    return path
