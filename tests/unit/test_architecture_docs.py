"""What the pages about the house name is there, and their example runs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_data import ROOT

DOCS = ROOT / "docs"
TWIN = ROOT / "dynosim"
LIVE = ROOT / "runtime" / "dynosim_runtime"
PAGES = [DOCS / "architecture.md", DOCS / "glossary.md"]
DIALECT = ("in_hand", "untold", "retold", "hurried", "noted", "told", "lest", "whoever")


def sources() -> list[Path]:
    return sorted([*TWIN.rglob("*.py"), *LIVE.rglob("*.py")])


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """All statements within, without their expressions, of which there are many more."""
    for block in ("body", "orelse", "finalbody", "handlers"):
        for child in getattr(node, block, ()):
            yield child
            yield from statements(child)


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Classes, functions, constants and fields of both packages, and their modules."""
    found = {path.stem for path in sources()} | {path.parent.name for path in sources()}
    found |= {"dynosim", "dynosim_runtime", "runtime"}
    for path in sources():
        for node in statements(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def quoted(page: Path) -> list[str]:
    """The `code` of a page, outside of its blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    paths = [word for word in quoted(page) if ("." in word and " " not in word) or "/" in word]
    paths = [path for path in paths if re.fullmatch(r"[\w/.]+(/|\.py|\.toml)|[\w/]+/\w+", path)]
    assert len(paths) > (20 if page.stem == "architecture" else -1)
    missing = [
        path for path in paths if not any((base / path).exists() for base in (ROOT, TWIN, LIVE))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_is_there(page: Path, names: set[str]) -> None:
    words = [word for word in quoted(page) if re.fullmatch(r"_?[A-Za-z][A-Za-z_.]*", word)]
    words = [word for word in words if word != "code" and not word.startswith("router.")]
    words = [word for word in words if not word.endswith((".py", ".toml"))]
    assert len(words) > 20
    assert [word for word in words if not set(word.split(".")) <= names] == []


def test_a_word_of_the_glossary_stands_once() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \|$", (DOCS / "glossary.md").read_text(), re.MULTILINE
    )
    words = [word for row, _ in rows[1:] for word in row.split(", ")]
    assert len(words) > 40 and len(words) == len(set(words))


def test_no_module_is_named_in_a_dialect() -> None:
    stems = {path.stem for path in TWIN.rglob("*.py")}
    assert [stem for stem in stems if any(word in stem for word in DIALECT)] == []


def test_the_example_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = (DOCS / "architecture.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(example, "architecture.md", "exec"), {})
    assert "60000" in capsys.readouterr().out
