"""Where the developers' data should be, a test that needs a missing file fails; else it skips."""

from pathlib import Path

import pytest
import shared_data
from shared_data import shared_path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared folder of this test's own, that nobody has named, outside CI."""
    monkeypatch.setattr(shared_data, "SHARED", tmp_path / "shared")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("DYNOSIM_SHARED", raising=False)
    return tmp_path / "shared"


def test_a_file_that_is_there_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    assert shared_path("a.json") == folder / "a.json"
    monkeypatch.setenv("CI", "1")
    assert shared_path("a.json") == folder / "a.json"


@pytest.mark.parametrize(
    ("is_ci", "is_there", "is_named", "fails"),
    [
        (False, False, False, False),
        (False, True, False, False),
        (True, False, False, False),
        (True, True, False, True),
        (True, False, True, True),
        (True, True, True, True),
        (False, False, True, True),
        (False, True, True, True),
    ],
)
def test_a_missing_file_fails_where_it_should_be_there(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_ci: bool,
    is_there: bool,
    is_named: bool,
    fails: bool,
) -> None:
    if is_ci:
        monkeypatch.setenv("CI", "1")
    if is_there:
        folder.mkdir()
    if is_named:
        monkeypatch.setenv("DYNOSIM_SHARED", str(folder))
    wanted = pytest.fail.Exception if fails else pytest.skip.Exception
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as caught:
        shared_path("traces/gone.jsonl")
    assert caught.type is wanted
    assert str(folder / "traces" / "gone.jsonl") in str(caught.value)


def test_an_empty_ci_variable_is_not_ci(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception):
        shared_path("gone")
