"""Writes what the documentation has from the program itself: `make docs-update`.

The reference of commands, and what the examples of tutorials and how-to pages print. Pages that
measure something in real time are run only if they are named (`howto/calibrate.md`).
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from doc_commands import reference_page
from doc_examples import DOCS, PAGES, measures, update


def main(names: list[str]) -> None:
    """Rewrite the pages that changed, and say which."""
    _write(DOCS / "reference" / "commands.md", reference_page())
    lasting = [page for page in PAGES if not measures(page.read_text())]
    for page in [DOCS / name for name in names] or lasting:
        with TemporaryDirectory() as folder:
            _write(page, update(page.read_text(), Path(folder)))


def _write(page: Path, text: str) -> None:
    if not page.exists() or page.read_text() != text:
        page.write_text(text)
        print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
