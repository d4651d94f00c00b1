"""From a file (and `--set`) to a checked run configuration, and back to a file."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dynosim.config.aliases import RUN_ALIASES, use_our_names
from dynosim.config.explain import explain
from dynosim.config.file_keys import with_files
from dynosim.config.overrides import apply_overrides
from dynosim.config.problems import Problem
from dynosim.config.schema import RunConfig
from dynosim.config.yaml_source import Document, read_document


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run file at `path`, changed by the overrides.

    Raises: ConfigError that tells every problem with its file, line, key and remedy.
    """
    document = read_document(Path(path))
    use_our_names(document, RUN_ALIASES)
    apply_overrides(document, overrides, RUN_ALIASES)
    return run_config(document)


def run_config_from_dict(data: dict[str, Any], source: str = "configuration") -> RunConfig:
    """A run configuration from plain data; `source` names it in messages. Raises: ConfigError."""
    document = Document(deepcopy(data), source, Path.cwd())
    use_our_names(document, RUN_ALIASES)
    return run_config(document)


def run_config(document: Document) -> RunConfig:
    """The document as a run configuration. Raises: ConfigError."""
    checked = check_run(document.data, document.folder)
    if isinstance(checked, RunConfig):
        return checked
    raise document.error(checked)


def check_run(data: dict[str, Any], folder: Path) -> RunConfig | list[Problem]:
    """The data as a run configuration, or all that is wrong with it."""
    try:
        config = RunConfig.of(data)
    except ValidationError as error:
        return explain(error, RunConfig, data)
    config._base_dir = folder
    return config


def dump_run(config: RunConfig) -> str:
    """A run file that stands for itself: defaults written out, file names absolute."""
    import yaml

    return yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True)


def written_out(section: BaseModel) -> dict[str, Any]:
    """A section as plain data, all keys but those that are null by default."""
    data: dict[str, Any] = section.model_dump(mode="json", exclude_none=True)
    _put_nulls_back(section, data)
    return data


def _put_nulls_back(section: BaseModel, data: dict[str, Any]) -> None:
    """Null where a key's default is another value says something: `max_gpu_budget`, no limit."""
    for key, known in type(section).model_fields.items():
        value = getattr(section, key)
        if value is None and known.default is not None:
            data[key] = None
        elif isinstance(value, BaseModel) and isinstance(data.get(key), dict):
            _put_nulls_back(value, data[key])


def resolved(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain data, without keys null by default, file names absolute."""
    data = written_out(config.model_copy(update={"planner": config.planner_in_full}))
    return with_files(data, lambda key, name: str(config.resolve(name).resolve()))
