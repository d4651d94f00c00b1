"""prediction.json: what is said of a deployment before it runs, for whoever measures it later.

It stands beside the run file that it was made for, and knows it again: by its configuration (all of
it but its name and how it is served) and by the content of the files that it names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dynosim import __version__
from dynosim.config.file_keys import FileKey, file_keys, with_files
from dynosim.config.minimal import minimal
from dynosim.config.problems import shown
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.experiment.intervals import Intervals
from dynosim.files.digest import digest, file_sha256

PREDICTION_FILE = "prediction.json"
SCHEMA = "dynosim.prediction/1"
_NOT_PREDICTED = {"name", "live"}
"""What a run file says that no prediction depends on."""


@dataclass(frozen=True, slots=True)
class SavedPrediction:
    """A prediction as it was written."""

    path: Path
    versions: Mapping[str, str]
    load: Mapping[str, Any]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]  # by key: SHA-256 of what it names
    report: Mapping[str, Any]
    intervals: Intervals | None

    def changes(self, config: RunConfig) -> list[str]:
        """What is not as it was when this was predicted, each in words; empty if all is."""
        old, new = _flat(self.config), _flat(predicted_config(config))
        words = [
            f"{key}: {_said(old, key)} then, {_said(new, key)} now"
            for key in dict.fromkeys((*old, *new))
            if _said(old, key) != _said(new, key)
        ]
        now = input_digests(config)
        words += [
            f"{key}: another file than then"
            for key, sha in self.inputs.items()
            if now.get(key, sha) != sha
        ]
        return words


def prediction_document(
    config: RunConfig,
    report: Mapping[str, Any],
    *,
    load: Mapping[str, Any],
    intervals: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What prediction.json says of `config`: the report, and all that it hangs on."""
    data = predicted_config(config)
    return {
        "schema": SCHEMA,
        "name": config.name,
        "versions": _versions(config),
        "load": dict(load),
        "timing": {
            "source": report.get("timing_source"),
            "in_range_share": report.get("timing_in_range_share"),
        },
        "report": dict(report),
        "intervals": None if intervals is None else dict(intervals),
        "config_hash": digest(data),
        "inputs": input_digests(config),
        "config": data,
    }


def read_prediction(plan: Path) -> SavedPrediction | None:
    """The prediction in a folder, or beside a run file; None if there is none.

    Raises: ConfigError for one that cannot be read.
    """
    path = (plan if plan.is_dir() else plan.parent) / PREDICTION_FILE
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error} (remove it to predict anew)") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise ConfigError(
            f"{path}: schema {found!r}, but this version reads {SCHEMA} (remove it to predict anew)"
        )
    try:
        return _saved(path, data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: not what dynosim has written: {error!r} (remove it to predict anew)"
        ) from None


def _saved(path: Path, data: dict[str, Any]) -> SavedPrediction:
    found = data["intervals"]
    intervals = None
    if found is not None:
        metrics = {key: (float(low), float(high)) for key, (low, high) in found["metrics"].items()}
        intervals = Intervals(int(found["replays"]), tuple(found["varied"]), metrics)
    sections = {name: data[name] for name in ("versions", "load", "config", "inputs", "report")}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise TypeError(f"{name} is no section")
    return SavedPrediction(path, **sections, intervals=intervals)


def predicted_config(config: RunConfig) -> dict[str, Any]:
    """The configuration as far as it decides a prediction, files by their names alone.

    Without what is at its default, so that keys which later versions add are no change.
    """
    data = {key: value for key, value in minimal(config).items() if key not in _NOT_PREDICTED}
    return with_files(data, lambda _, name: Path(name).name)


def input_files(config: RunConfig) -> dict[FileKey, Path]:
    """By key, the files whose content a prediction depends on; of a model, its description."""
    found: dict[FileKey, Path] = {}
    for key, name in file_keys(config.model_dump(mode="json")).items():
        path = config.resolve(name)
        found[key] = path / "config.json" if key == ("model",) and path.is_dir() else path
    return found


def input_digests(config: RunConfig) -> dict[str, str]:
    """The SHA-256 of each of them that is there, by dotted key."""
    files = {".".join(key): path for key, path in input_files(config).items() if path.is_file()}
    return {key: file_sha256(path) for key, path in files.items()}


def _versions(config: RunConfig) -> dict[str, str]:
    versions = {"dynosim": __version__}
    if config.timing.kind == "aiconfigurator":
        versions["aiconfigurator-core"] = version("aiconfigurator-core")
    return versions


def _said(flat: Mapping[str, Any], key: str) -> str:
    return shown(flat[key]) if key in flat else "its default"


def _flat(data: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat
