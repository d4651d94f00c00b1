"""What tutorials and how-to pages show is what their commands print.

Pages that take more than ten seconds, or measure something in real time, are run with the live
tests.
"""

from pathlib import Path

import pytest
from doc_examples import DOCS, PAGES, comparable, measures, update

LONG = (
    "tutorials/first_sizing.md",
    "howto/read_the_frontier.md",
    "howto/several_machines.md",
    "howto/what_it_costs.md",
)


def run_with(page: Path) -> object:
    name = str(page.relative_to(DOCS))
    is_live = name in LONG or measures(page.read_text())
    return pytest.param(page, id=name, marks=[pytest.mark.live] if is_live else [])


@pytest.mark.parametrize("page", [run_with(page) for page in PAGES])
def test_a_page_shows_what_its_commands_print(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert comparable(text) == comparable(update(text, tmp_path)), "run `make docs-update`"


def test_the_long_pages_are_there() -> None:
    assert all((DOCS / name).exists() for name in LONG)
