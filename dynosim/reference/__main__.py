"""`python -m dynosim.reference DOCS`: writes the generated part of the documentation."""

import sys
from pathlib import Path

from dynosim.atomic import text_writer, write_files
from dynosim.reference.pages import reference_files


def main(docs: Path) -> None:
    """Write every generated file into the folder."""
    files = reference_files()
    write_files(docs, {name: text_writer(text) for name, text in files.items()})
    print("\n".join(str(docs / name) for name in files))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
