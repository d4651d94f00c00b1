"""What pyproject.toml promises of versions."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import dynosim

ROOT = Path(__file__).parents[2]
DOCUMENT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DOCUMENT["project"]
USED = [
    *PROJECT["dependencies"],
    *(one for extra in ("runtime", "search", "ray", "notebook")
      for one in PROJECT["optional-dependencies"][extra]),
]  # fmt: skip


@pytest.mark.parametrize("requirement", USED)
def test_every_library_has_a_lower_bound_and_ends_before_a_major_version(requirement: str) -> None:
    assert re.fullmatch(r"[\w\[\]-]+(==[\d.]+|>=[\d.]+,<\d+)", requirement), requirement


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_what_is_installed_here_is_allowed(requirement: str) -> None:
    name, bounds = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
    found = numbers(version(name))
    for sign, bound in re.findall(r"(==|>=|<)([\d.]+)", bounds):
        assert {
            "==": found[: len(numbers(bound))] == numbers(bound),
            ">=": found >= numbers(bound),
            "<": found < numbers(bound),
        }[sign], (requirement, found)


def numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


def test_the_version_stands_once() -> None:
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    assert DOCUMENT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dynosim.__version__"}
    written = f'"{dynosim.__version__}"'
    places = [
        path
        for folder in ("dynosim", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        if written in path.read_text()
    ]
    assert places == [ROOT / "dynosim" / "__init__.py"]
