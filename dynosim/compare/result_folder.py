"""The folders that commands leave behind, read back: a run's, or a sweep's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.errors import ConfigError
from dynosim.files.user_text import parse_json, parse_yaml

if TYPE_CHECKING:
    import polars as pl

_RUN = ("report.json", "requests.parquet", "config.yaml")
_SWEEP = ("summary.json", "trials.parquet")
_TEXTS = ("request_id", "session_id", "status")
_NUMBERS = (
    "arrival_ms", "dispatch_ms", "input_tokens", "output_tokens", "cached_tokens",
    "prefill_worker_id", "prefill_wait_time_ms", "prefill_time_ms", "ttft_ms", "tpot_ms", "e2e_ms",
    "preemptions",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What `dynosim run --out` wrote."""

    path: Path
    report: Mapping[str, Any]
    requests: "pl.DataFrame"
    config: Mapping[str, Any]  # by dotted key


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """What a finished `dynosim sweep` wrote."""

    path: Path
    summary: Mapping[str, Any]
    trials: "pl.DataFrame"
    config: Mapping[str, Any]  # of the sweep file, by dotted key
    space: tuple[str, ...]  # the keys that it varied


def read_folder(path: Path) -> RunFolder | SweepFolder:
    """The results in a folder. Raises: ConfigError naming what is missing, and the remedy."""
    if not path.is_dir():
        raise ConfigError(f"{path}: not a folder (give the --out of a run or of a sweep)")
    if all((path / name).is_file() for name in _SWEEP):
        return _read_sweep(path)
    if all((path / name).is_file() for name in _RUN):
        return _read_run(path)
    raise ConfigError(f"{path}: {_what_it_is(path)}")


def flattened(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections by dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _what_it_is(path: Path) -> str:
    if (path / "ledger.jsonl").is_file():
        return "a sweep that has not ended (finish it with `dynosim sweep FILE --resume`)"
    if (path / "config.yaml").is_file():
        config = path / "config.yaml"
        return f"a configuration without results (make them: dynosim run {config} --out NEW)"
    return (
        "holds no results of a run (report.json, requests.parquet) or of a sweep (summary.json, "
        "trials.parquet)"
    )


def _read_run(path: Path) -> RunFolder:
    report = _json(path / "report.json")
    if "num_requests" not in report:
        raise ConfigError(f"{path / 'report.json'}: not the report of a run")
    requests = _parquet(path / "requests.parquet", texts=_TEXTS, numbers=_NUMBERS)
    return RunFolder(path, report, requests, flattened(_yaml(path / "config.yaml")))


def _read_sweep(path: Path) -> SweepFolder:
    summary = _json(path / "summary.json")
    if not _has_winners(summary):
        raise ConfigError(f"{path / 'summary.json'}: not the summary of a sweep")
    trials = _parquet(path / "trials.parquet", texts=("status",), numbers=("trial_id",))
    sections = _yaml(path / "sweep.yaml")
    space = sections.get("space") or {}
    keys = tuple(key for key in space if key in trials.columns)
    return SweepFolder(path, summary, trials, flattened(sections), keys)


def _has_winners(summary: Mapping[str, Any]) -> bool:
    """Whether it lists the best trials, and the answer of a search for capacities as trials."""
    top, answer = summary.get("top"), summary.get("answer", {})
    lists = isinstance(top, list) and isinstance(answer, dict)
    return lists and all(isinstance(one, dict) and "trial_id" in one for one in top or ())


def _json(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return data


def _yaml(path: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable YAML: {error}") from None
    if not isinstance(data, dict) or "workload" not in data:
        raise ConfigError(f"{path}: not a run or sweep file: it has no workload")
    return data


def _parquet(path: Path, *, texts: tuple[str, ...], numbers: tuple[str, ...]) -> "pl.DataFrame":
    import polars as pl

    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path}: not readable Parquet: {error}") from None
    schema = table.schema
    missing = [name for name in (*texts, *numbers) if name not in schema]
    wrong = [name for name in texts if schema.get(name) not in (None, pl.String, pl.Null)]
    wrong += [name for name in numbers if name in schema and not schema[name].is_numeric()]
    if missing or wrong:
        what = (
            f"no column {missing[0]}" if missing else f"column {wrong[0]} is not what it should be"
        )
        raise ConfigError(f"{path}: {what} (make it anew with this version)")
    return table
