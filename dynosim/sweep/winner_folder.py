"""The folder of a winner: all that it takes to run, serve and prove it, here or elsewhere."""

import json
from pathlib import Path
from typing import Any

from dynosim.atomic import Writer, text_writer
from dynosim.build.engine_command import name_for_clients
from dynosim.config.file_keys import FileKey, with_files
from dynosim.config.loading import check_run, written_out
from dynosim.config.minimal import minimal
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.experiment.prediction import PREDICTION_FILE, prediction_document
from dynosim.sweep.bench_script import bench_script
from dynosim.sweep.engine_script import engine_script, model_folder, script_name
from dynosim.sweep.operating_point import config_at_capacity
from dynosim.sweep.pool_files import GENERATOR_FILE, POOL_FILES, pool_files
from dynosim.sweep.results import CAPACITY, FAILED_LOAD
from dynosim.sweep.travelling_files import INPUTS, TravellingFile, travelling_files
from dynosim.sweep.winner_readme import winner_readme
from dynosim.sweep.winners import Recommended

RUN_FILE, FULL_RUN_FILE, INTERVALS_FILE = "config.yaml", "config.full.yaml", "intervals.json"
BENCH_SCRIPT, README = "bench.sh", "README.md"
WINNER_FILES = (
    RUN_FILE, FULL_RUN_FILE, INTERVALS_FILE, "engine.sh", "run_0.sh", *POOL_FILES.values(),
    GENERATOR_FILE, BENCH_SCRIPT, PREDICTION_FILE, README,
)  # fmt: skip
LOAD_KEYS = {
    "load": CAPACITY,
    "load_failed": FAILED_LOAD,
    "load_low": "capacity_load_low",
    "load_high": "capacity_load_high",
    "offered_rps": "capacity_rps",
    "attainment": "capacity_attainment",
}


def winner_files(sweep: SweepConfig, winner: Recommended, folder: Path) -> dict[str, Writer]:
    """Writers of the files of the winner's own folder in `folder`, by their names there."""
    row, name = winner.row, winner.folder
    place = folder / name
    if row.trial.config is None:
        return {}
    config = config_at_capacity(sweep, row)
    files = travelling_files(config, place)
    there = _moved(config, files, place)
    title = f"{config.name} ({winner.family})"
    model = name_for_clients(config, lambda: model_folder(there, place))
    document = prediction_document(
        config, row.report, load=_load(sweep, winner, config), intervals=row.intervals
    )
    writers: dict[str, Writer] = {
        RUN_FILE: text_writer(run_file_text(config, files)),
        FULL_RUN_FILE: text_writer(_full_text(config, files)),
        script_name(there): script_writer(engine_script(there, title=title, folder=place)),
        BENCH_SCRIPT: script_writer(bench_script(config, row.report, title=title, model=model)),
        PREDICTION_FILE: text_writer(_json(document)),
        README: text_writer(winner_readme(sweep, winner, config, files)),
    }
    if row.intervals is not None:
        writers[INTERVALS_FILE] = text_writer(_json(row.intervals))
    for file_name, text in pool_files(there, place).items():
        writers[file_name] = text_writer(text)
    for file in files:
        writers |= file.writers()
    return {f"{name}/{file}": write for file, write in writers.items()}


def remove_old_winner(top: Path, kept: set[str]) -> None:
    """Take away what an earlier sweep left in the folder `top`; `kept` are names inside it.

    Files that nobody of us has written stay, and so does the folder then.
    """
    old = [top / name for name in WINNER_FILES]
    old += [path for path in (top / INPUTS).rglob("*") if path.is_file()]
    for path in old:
        if str(path.relative_to(top)) not in kept:
            path.unlink(missing_ok=True)
    folders = sorted((path for path in (top / INPUTS).rglob("*") if path.is_dir()), reverse=True)
    for folder in (*folders, top / INPUTS):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if RUN_FILE not in kept and not any(top.iterdir()):
        top.rmdir()


def run_file_text(config: RunConfig, files: list[TravellingFile]) -> str:
    """config.yaml: what differs from the defaults, files named from where it lies."""
    data = _named(minimal(config), files)
    notes = [
        f"# {'.'.join(file.key)}: {file.label}, not copied; where it is not found: --set\n"
        for file in files
        if not file.copies
    ]
    return "".join(notes) + _yaml(data)


def script_writer(text: str) -> Writer:
    """A writer of a file that can be started."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    return write


def _full_text(config: RunConfig, files: list[TravellingFile]) -> str:
    return _yaml(_named(written_out(config), files))


def _named(data: dict[str, Any], files: list[TravellingFile]) -> dict[str, Any]:
    names: dict[FileKey, str] = {file.key: file.name for file in files}
    return with_files(data, lambda key, name: names.get(key, name))


def _moved(config: RunConfig, files: list[TravellingFile], place: Path) -> RunConfig:
    """The configuration as one reads it from the folder."""
    moved = check_run(_named(minimal(config), files), place)
    assert isinstance(moved, RunConfig), moved
    return moved


def _load(sweep: SweepConfig, winner: Recommended, config: RunConfig) -> dict[str, Any]:
    """At which load the prediction is, and how sure that is."""
    report = winner.row.report
    return {
        "search": sweep.load.search,
        "vary": sweep.load.vary,
        **{name: report.get(key) for name, key in LOAD_KEYS.items()},
        "concurrency": config.workload.concurrency,
        "arrival_scale": config.workload.arrival_scale,
        "repeat": config.workload.repeat,
    }


def _yaml(data: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _json(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"
