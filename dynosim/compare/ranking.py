"""Does a prediction put configurations in the right order, and what does its choice cost?

Kendall's tau-b over all configurations, and the regret: how much worse the configuration that the
prediction would choose was measured to be than the best one.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from dynosim.compare.sweep_values import check_same_points, is_sweep, trial_rows, winners
from dynosim.errors import ConfigError, TraceError
from dynosim.files.user_text import parse_json

NEEDED_CONFIGURATIONS = 3


@dataclass(frozen=True, slots=True)
class Ranking:
    """Configurations in order of the measurement, best first."""

    metric: str
    rows: tuple[tuple[str, float, float], ...]  # name, measured, predicted
    tau: float  # 1: the same order; 0: none in common; -1: reversed
    chosen: str  # best by prediction
    best: str  # best by measurement
    regret: float  # of the chosen one, relative to the best measured value

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "metric": self.metric,
            "configurations": [
                {"name": name, "measured": measured, "predicted": predicted}
                for name, measured, predicted in self.rows
            ],
            "kendall_tau": self.tau,
            "chosen": self.chosen,
            "best": self.best,
            "regret": self.regret,
        }

    def text(self) -> str:
        """A table and the verdict."""
        width = max(len(name) for name, _, _ in self.rows)
        lines = [f"{'configuration':{width}}  {'measured':>12}  {'predicted':>12}"]
        lines += [f"{name:{width}}  {m:12.4g}  {p:12.4g}" for name, m, p in self.rows]
        lines.append(f"{self.metric}: Kendall's tau {self.tau:.3f} over {len(self.rows)}")
        lines.append(f"chosen {self.chosen}, best {self.best}: regret {self.regret:.2%}")
        return "\n".join(lines)


def rank(
    predicted: Mapping[str, float],
    measured: Mapping[str, float],
    *,
    metric: str,
    lower_is_better: bool,
) -> Ranking:
    """Compares two valuations of the same configurations.

    Raises: ConfigError if fewer than three configurations are in both.
    """
    names = [name for name in measured if name in predicted]
    if len(names) < NEEDED_CONFIGURATIONS:
        raise ConfigError(
            f"rank: {len(names)} configurations have both a measured and a predicted {metric};"
            f" {NEEDED_CONFIGURATIONS} are needed (names must be equal in both files)"
        )
    sign = 1.0 if lower_is_better else -1.0
    ordered = sorted(names, key=lambda name: sign * measured[name])
    tau = kendalltau([predicted[name] for name in names], [measured[name] for name in names])
    chosen = min(names, key=lambda name: sign * predicted[name])
    best = ordered[0]
    lost = abs(measured[chosen] - measured[best])
    return Ranking(
        metric,
        tuple((name, measured[name], predicted[name]) for name in ordered),
        float(tau.statistic),
        chosen,
        best,
        lost / abs(measured[best]) if measured[best] else 0.0,
    )


def rank_files(predicted: Path, measured: Path, *, metric: str, lower_is_better: bool) -> Ranking:
    """`rank` over two files or folders, see `read_values`.

    Trials of a predicted sweep may be measured under their number or their folder's name (top1).
    Raises: TraceError; ConfigError if two sweeps have other points under the same numbers.
    """
    if is_sweep(predicted) and is_sweep(measured):
        check_same_points(predicted, measured)
    values = read_values(predicted, metric)
    numbers = winners(predicted)
    found: dict[str, float] = {}
    for name, value in read_values(measured, metric).items():
        trial = name if name in values else numbers.get(name, name)
        if trial in found:
            raise TraceError(f"{name} and trial {trial} are the same", path=str(measured))
        found[trial] = value
    return rank(values, found, metric=metric, lower_is_better=lower_is_better)


def read_values(path: Path, metric: str) -> dict[str, float]:
    """Value of one metric by configuration.

    A file is JSON lines, or one JSON object `{name: {metric: value}}`; a line holds `name` and its
    metrics, flat or under `report`. A folder is a sweep's, a run's, or holds `NAME/report.json` for
    every configuration; a Parquet file has a column `name` or `trial`, or is the table of a sweep's
    trials, whose names are their numbers: those that were not run, or carry no load, are left out.

    Raises: TraceError naming file, line and what is missing.
    """
    rows: list[tuple[int, str, Any]]
    if is_sweep(path):
        rows = trial_rows(path, metric)
    elif path.is_dir():
        files = sorted([*path.glob("report.json"), *path.glob("*/report.json")])
        rows = [(0, file.parent.absolute().name, _json(file)) for file in files]
    elif path.suffix == ".parquet":
        rows = _parquet_rows(path)
    else:
        rows = _json_rows(path)
    if not rows:
        remedy = "a folder must be a sweep's, a run's, or hold NAME/report.json"
        raise TraceError(f"no configurations ({remedy})", path=str(path))
    values = {}
    for line, name, report in rows:
        if not isinstance(report, dict):
            raise TraceError(
                f"{name}: expected an object of metrics", path=str(path), line=line, field="report"
            )
        value = _number(report.get(metric))
        if value is None:
            raise TraceError(
                f"{name}: no number under this key", path=str(path), line=line, field=metric
            )
        if name in values:
            raise TraceError(f"{name} is there twice", path=str(path), line=line)
        values[name] = value
    return values


def _number(value: object) -> float | None:
    """The value, if it is a number and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def _json(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TraceError(f"not readable JSON: {error}", path=str(path)) from None
    if not isinstance(data, dict):
        raise TraceError("expected a JSON object", path=str(path))
    return data


def _json_rows(path: Path) -> list[tuple[int, str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", path=str(path)) from None
    except UnicodeDecodeError as error:
        raise TraceError(f"not UTF-8 text at byte {error.start}", path=str(path)) from None
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            row = parse_json(line)
        except ValueError:
            if number == lines[0][0]:
                return [(0, name, report) for name, report in _json(path).items()]
            raise TraceError("not JSON", path=str(path), line=number) from None
        if isinstance(row, dict) and "name" not in row and len(lines) == 1:
            return [(0, name, report) for name, report in row.items()]
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise TraceError("expected an object with a name", path=str(path), line=number)
        rows.append((number, row["name"], row.get("report", row)))
    return rows


def _parquet_rows(path: Path) -> list[tuple[int, str, dict[str, Any]]]:
    import polars as pl

    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TraceError(f"not readable Parquet: {error}", path=str(path)) from None
    key = next((name for name in ("name", "trial") if name in table.columns), None)
    if key is None:
        raise TraceError("no column name or trial", path=str(path))
    return [(0, str(row[key]), row) for row in table.iter_rows(named=True)]
