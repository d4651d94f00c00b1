"""The documentation: commands and links exist, the reference is current, examples are run."""

import re
from pathlib import Path

import pytest
from doc_commands import problem_of, reference_page
from doc_examples import DOCS, PAGES, Block, blocks_of, comparable, update
from shared_data import ROOT

from dynosim import __version__

TEXTS = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TITLE = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def command_lines(text: str) -> list[str]:
    """Lines of code blocks, fenced or indented, that call dynosim; continued lines are joined."""
    lines = text.replace("\\\n", " ").splitlines()
    inside, found = False, []
    for line in lines:
        if line.startswith("```"):
            inside = not inside
        code = line.removeprefix("$ ") if inside else line[4:] if line.startswith("    ") else ""
        if code.startswith("dynosim "):
            found.append(code)
    return found


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_shown_exists_with_its_options(page: Path) -> None:
    problems = {line: problem_of(line) for line in command_lines(page.read_text())}
    assert {line: why for line, why in problems.items() if why} == {}


def test_there_are_commands_to_check() -> None:
    assert sum(len(command_lines(page.read_text())) for page in TEXTS) > 50
    for page in PAGES:
        assert command_lines(page.read_text()), page


def test_a_command_or_an_option_that_is_not_there_is_noticed() -> None:
    assert problem_of("dynosim run run.yaml --out out  # again: --overwrite") is None
    assert problem_of("dynosim trace inspect t.jsonl | head --no-such") is None
    assert "no-such" in str(problem_of("dynosim run run.yaml --no-such"))
    assert "walk" in str(problem_of("dynosim walk run.yaml"))
    assert "no.such" in str(problem_of("dynosim run run.yaml --set no.such=1"))
    assert "peek" in str(problem_of("dynosim trace peek t.jsonl"))
    assert problem_of("dynosim run --out out") is not None  # the file is missing


def test_the_reference_of_commands_is_current() -> None:
    written = (DOCS / "reference" / "commands.md").read_text()
    assert written == reference_page(), "run `make docs-update`"
    for title in ("run", "sweep", "trace inspect", "serve frontend"):
        assert f"## `dynosim {title}`" in written


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if link.startswith(("http:", "https:")):
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    titles = _TITLE.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_make_targets_that_pages_name_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in TEXTS:
        named = set(re.findall(r"`make ([a-z-]+)`", page.read_text()))
        assert named <= targets, page


def test_the_changelog_has_this_version_and_what_comes() -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] == "Unreleased" and __version__ in titles
    assert len(titles) == len(set(titles))


# ---- how examples are run ------------------------------------------------------------------------

PAGE = """\
```text title="a.txt"
one
```

```console
$ cat a.txt \\
    a.txt
old
```

```bash
no-such-program
```
"""


def test_an_example_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown = update(PAGE, tmp_path)
    assert shown == PAGE.replace("old\n", "one\none\n")
    assert update(shown, _empty(tmp_path)) == shown
    assert comparable(shown) != comparable(PAGE)


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"[Nn]o such file"):
        update("```console\n$ cat nothing.txt\n```\n", tmp_path)


def test_what_is_measured_is_not_compared() -> None:
    one, other = (f"```console varies\n$ date\n{day}\n```\n" for day in ("Monday", "Tuesday"))
    assert comparable(one) == comparable(other)
    assert comparable(one) != comparable(one.replace("$ date", "$ date -u"))


def test_blocks_tell_their_files_and_commands() -> None:
    first, second, third = blocks_of(PAGE)
    assert (first.file, first.commands()) == ("a.txt", ["one"])
    assert second == Block("console", "", "$ cat a.txt \\\n    a.txt\nold\n")
    assert second.commands() == ["cat a.txt      a.txt"] and third.file is None


def _empty(folder: Path) -> Path:
    empty = folder / "empty"
    empty.mkdir()
    return empty
