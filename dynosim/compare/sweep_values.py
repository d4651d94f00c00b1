"""What a sweep's folder, or the table in it, says of its trials, by their number."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.errors import ConfigError, TraceError
from dynosim.files.user_text import parse_json

if TYPE_CHECKING:
    import polars as pl

TRIALS = "trials.parquet"


def is_sweep(path: Path) -> bool:
    """Whether this is a sweep's folder, or the table of its trials."""
    file = _table_file(path)
    if file.suffix != ".parquet" or not file.is_file():
        return False
    import polars as pl

    try:
        return "trial_id" in pl.read_parquet_schema(file)
    except (OSError, pl.exceptions.PolarsError):
        return False


def trial_rows(path: Path, metric: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(0, number, report) of every trial that has the metric.

    Raises: TraceError if no trial can have it, or the table cannot be read.
    """
    table = _trials(path)
    for name in ("status", metric):
        if name not in table.columns:
            raise TraceError("no such column in the table of trials", path=str(path), field=name)
    known = table.filter((table["status"] == "ok") & table[metric].is_not_null())
    return [(0, str(row["trial_id"]), row) for row in known.iter_rows(named=True)]


def winners(path: Path) -> dict[str, str]:
    """Number of the trial by the names of its folder, `agg/top1` and `top1`; {} for no sweep."""
    file = (path if path.is_dir() else path.parent) / "summary.json"
    if not is_sweep(path) or not file.is_file():
        return {}
    try:
        top = parse_json(file.read_bytes())["top"]
        folders = {Path(entry["config"]).parent: str(entry["trial_id"]) for entry in top}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"no summary of a sweep: {error}", path=str(file)) from None
    names = [folder.name for folder in folders]
    short = {folder.name: n for folder, n in folders.items() if names.count(folder.name) == 1}
    return {**short, **{folder.as_posix(): number for folder, number in folders.items()}}


def check_same_points(first: Path, second: Path) -> None:
    """Raises: ConfigError if a number stands for different points of the space in two sweeps."""
    one, other = _points(first), _points(second)
    for number in one.keys() & other.keys():
        shared = one[number].keys() & other[number].keys()
        differing = [key for key in sorted(shared) if one[number][key] != other[number][key]]
        if differing or one[number].keys() != other[number].keys():
            key = differing[0] if differing else min(one[number].keys() ^ other[number].keys())
            raise ConfigError(
                f"rank: trial {number} is another point in {second}: {key} differs "
                "(both sweeps must have the same `space`)"
            )


def _points(path: Path) -> dict[int, dict[str, Any]]:
    """What was varied, by trial. Keys of a space have dots, those of a report none."""
    table = _trials(path)
    keys = [name for name in table.columns if "." in name]
    return {row["trial_id"]: {key: row[key] for key in keys} for row in table.iter_rows(named=True)}


def _trials(path: Path) -> "pl.DataFrame":
    import polars as pl

    file = _table_file(path)
    try:
        table = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TraceError(f"not readable Parquet: {error}", path=str(file)) from None
    return table


def _table_file(path: Path) -> Path:
    return path / TRIALS if path.is_dir() else path
