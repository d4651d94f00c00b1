"""Writes the file to begin with, and the schema that it names, both or none."""

from pathlib import Path

from dynosim.atomic import check_folder, text_writer, write_files
from dynosim.errors import ConfigError
from dynosim.reference.schemas import schema_text
from dynosim.reference.starter import Starter, run_text, sweep_text

_OURS = '"title": "dynosim '


def write_starter(starter: Starter, *, is_run: bool, overwrite: bool) -> list[Path]:
    """Write the file and, if it names one, the schema beside it; returns what was written.

    A schema of ours that is there is replaced by this version's. Raises: ConfigError for a file
    that is there already, and for what cannot be used.
    """
    folder, path = starter.path.parent, starter.path
    check_folder(folder, "file")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: a run or sweep file ends in .yaml")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: is there already (give --overwrite, or another name)")
    starter.check()
    texts = {path.name: run_text(starter) if is_run else sweep_text(starter)}
    if starter.schema is not None:
        _check_schema(folder / starter.schema)
        texts[starter.schema] = schema_text("run" if is_run else "sweep")
    write_files(folder, {name: text_writer(text) for name, text in texts.items()})
    return [folder / name for name in texts]


def _check_schema(path: Path) -> None:
    if path.exists() and _OURS not in path.read_text(encoding="utf-8", errors="replace")[:500]:
        raise ConfigError(f"{path}: is there and not ours (give --no-schema, or move it)")
