"""What tutorials and how-to pages show is what their commands print."""

from pathlib import Path

import pytest
from doc_examples import DOCS, PAGES, comparable, measures, update

LASTING = [page for page in PAGES if not measures(page.read_text())]
MEASURING = [page for page in PAGES if measures(page.read_text())]


def name(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", LASTING, ids=name)
def test_a_page_shows_what_its_commands_print(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert comparable(text) == comparable(update(text, tmp_path)), "run `make docs-update`"


@pytest.mark.live
@pytest.mark.parametrize("page", MEASURING, ids=name)
def test_the_commands_of_a_page_that_measures_succeed(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert comparable(text) == comparable(update(text, tmp_path)), "run `make docs-update`"
