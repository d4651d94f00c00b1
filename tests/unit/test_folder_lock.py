"""One process at a time works in a result folder."""

from pathlib import Path

import pytest

from dynosim.atomic import LOCK, locked_folder
from dynosim.errors import ConfigError


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    with locked_folder(tmp_path, work="a sweep"):
        (tmp_path / "kept").write_text("mine")
        with (
            pytest.raises(ConfigError, match=rf"{tmp_path}: a sweep is running .*process \d+"),
            locked_folder(tmp_path, work="a sweep"),
        ):
            pytest.fail("two had the folder")
        assert (tmp_path / LOCK).exists()
    with locked_folder(tmp_path, work="a sweep"):
        assert (tmp_path / "kept").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_lock_ends_with_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked_folder(tmp_path, work="a sweep"):
        raise ZeroDivisionError
    with locked_folder(tmp_path, work="a sweep"):
        pass


def test_a_folder_that_was_made_for_nothing_is_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with locked_folder(folder, work="a sweep"):
        assert folder.is_dir()
    assert not folder.exists()
    with locked_folder(folder, work="a sweep"):
        (folder / "result").touch()
    assert (folder / "result").exists()


def test_an_empty_folder_that_was_there_stays(tmp_path: Path) -> None:
    with locked_folder(tmp_path, work="a sweep"):
        pass
    assert tmp_path.is_dir()


def test_a_lock_that_a_dead_process_left_does_not_bind(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("12345")
    with locked_folder(tmp_path, work="a sweep"):
        pass
