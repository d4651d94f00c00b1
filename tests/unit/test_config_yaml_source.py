"""YAML is read with the place of every key, and nothing ambiguous gets through."""

from pathlib import Path

import pytest

from dynosim.config.yaml_source import parse_value, read_document
from dynosim.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


def test_places_name_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\nb:\n  c: [x, 2.5, true, null]\n")
    document = read_document(path)
    assert document.data == {"a": 1, "b": {"c": ["x", 2.5, True, None]}}
    assert document.place(("b", "c")) == f"{path}:3"
    assert document.place(("b", "missing")) == f"{path}:2"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\na: 2\n", 2, "a: given twice"),
        ("a: .nan\n", 1, "a: must be a finite number"),
        ("a:\n  - 1\n  - -.inf\n", 3, "a[1]: must be a finite number"),
        ("a: 1e999\n", 1, "a: must be a finite number"),
        ("a: 010\n", 1, "a: "),
        ("a: 12:30\n", 1, "a: "),
        ("b: &x {c: 1}\na:\n  <<: *x\n", 3, "merge keys"),
        ("a: !!python/object:os.system x\n", 1, "tag"),
        ("a: [1\nb: 2\n", 2, "not valid YAML"),
        ("a: {[1]: 2}\n", 1, "a key must be a word"),
    ],
)
def test_refuses_with_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert f"{path}:{line}" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "just text\n", "a: 1\n---\nb: 2\n"])
def test_refuses_what_is_not_one_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        read_document(write(tmp_path, text))


def test_refuses_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_document(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="folder"):
        read_document(tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_document(binary)


def test_refuses_aliases_that_multiply(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for i in range(1, 9):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    with pytest.raises(ConfigError, match="too large"):
        read_document(write(tmp_path, "\n".join(lines)))


def test_numbers_follow_yaml_1_2() -> None:
    assert parse_value("1e3", name="x") == 1000.0
    assert parse_value("-2.5E-1", name="x") == -0.25
    assert parse_value("1_000", name="x") == 1000
    assert parse_value("2024-01-01", name="x") == "2024-01-01"
    assert parse_value("", name="x") is None
