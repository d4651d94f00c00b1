"""A plan: a run file, or a folder of a sweep (`agg/top1`) that holds one as config.yaml."""

from collections.abc import Sequence
from pathlib import Path

from dynosim.config import RunConfig, load_run
from dynosim.errors import ConfigError

RUN_FILE = "config.yaml"


def load_plan(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The plan's run configuration, changed by the overrides.

    Raises: ConfigError if there is none, or naming what is wrong with it.
    """
    return load_run(plan_file(path), overrides)


def plan_file(path: Path) -> Path:
    """The run file of a plan. Raises: ConfigError if a folder has none."""
    if not path.is_dir():
        return path
    file = path / RUN_FILE
    if not file.is_file():
        raise ConfigError(
            f"{path}: the folder has no {RUN_FILE} (name a run file, or a folder such as "
            "results/NAME/agg/top1 that a sweep has written)"
        )
    return file
