"""Result folders that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from dynosim.errors import ConfigError

Writer = Callable[[Path], None]


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a place that cannot become a folder, before any work is done. Raises: ConfigError."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            if not os.access(place, os.W_OK | os.X_OK):
                raise ConfigError(f"{option} {folder}: no permission to write in {place}")
            return
        if place.exists():
            raise ConfigError(f"{option} {folder}: {place} is a file (name a folder)")


def write_files(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Call each writer with a path in a temporary folder; when all are done, move the files.

    Names may contain folders (`agg/top1/config.yaml`). An exception leaves `folder` as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, write in writers.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        for name in writers:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / name, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def text_writer(text: str) -> Writer:
    """A writer of that text."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write
