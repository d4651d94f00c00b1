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
        above = [section.rsplit(".", cut)[0] for cut in range(section.count(".") + 1)]
        is_told = any(f"### `{one}`" in page for one in above)
        assert is_told if fact.same_as else f"| `{name}` |" in page, fact.key
    page = report_page()
    assert [fact.key for fact in written_facts() if f"| `{fact.key}` |" not in page] == []


def test_a_pool_refers_to_the_sections_that_it_changes() -> None:
    """Their keys stand once on the page, under the section nearest to the root."""
    page = keys_page()
    assert (
        page.count("| `max_num_batched_tokens` |") == page.count("| `overlap_score_credit` |") == 1
    )
    for pool in ("prefill", "decode"):
        for section in ("engine", "router"):
            shared = f"### `cluster.{pool}.{section}`\n\nKeys as those of `{section}`.\n"
            told = shared if pool == "prefill" else "### `cluster.decode`\n\nKeys as those of"
            assert told in page
    assert "### `cluster.decode.engine`" not in page
    table = page.partition("\n### `engine`\n")[2].partition("\n###")[0]
    assert "| `max_num_batched_tokens` |" in table
