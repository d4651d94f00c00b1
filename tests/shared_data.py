"""The developers' shared data: traces, recorded runs, scenarios. It is theirs and stays there."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DYNOSIM_SHARED", ROOT.parent / "shared"))


def shared_path(relative: str) -> Path:
    """A file or folder of the shared data.

    Where the data should be, a missing file fails the test: somebody named their folder, or CI
    found it. Elsewhere the test is skipped and says what is missing.
    """
    path = SHARED / relative
    if path.exists():
        return path
    if "DYNOSIM_SHARED" in os.environ or (os.environ.get("CI") and SHARED.is_dir()):
        pytest.fail(f"missing in the developers' data: {path}")
    pytest.skip(f"developers' data not here: {path} (set DYNOSIM_SHARED)")
