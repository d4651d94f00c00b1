"""The generated part of the documentation is that of this version: `make reference` writes it."""

import pytest
from shared_data import ROOT

from dynosim.reference.catalogue import file_facts, written_facts
from dynosim.reference.pages import keys_page, reference_files, report_page

DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", reference_files())
def test_a_generated_file_is_current(name: str) -> None:
    stands = (DOCS / name).read_text(encoding="utf-8")
    assert stands == reference_files()[name], f"docs/{name} is of another version: make reference"


def test_no_other_schema_is_published() -> None:
    published = {f"schema/{path.name}" for path in (DOCS / "schema").iterdir()}
    assert published == {name for name in reference_files() if name.startswith("schema/")}


def test_the_pages_have_every_key() -> None:
    page = keys_page()
    for fact in file_facts():
        section, _, name = fact.key.rpartition(".")
        assert f"`{section}`" in page if fact.same_as else f"| `{name}` |" in page, fact.key
    page = report_page()
    assert [fact.key for fact in written_facts() if f"| `{fact.key}` |" not in page] == []
