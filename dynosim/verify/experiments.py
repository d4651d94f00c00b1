"""Experiments: a run by its specification, means and percentiles by the client's clock."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynosim.errors import ConfigError, TraceError
from dynosim.experiment.run import RunOutcome
from dynosim.silicon.catalogue import model_entry
from dynosim.verify.experiment_file import Experiment, read_experiments
from dynosim.verify.twin import Twin, blind_twin, serve
from dynosim.verify.verdict import EXPERIMENT, RecordingVerdict


def judge_experiment(
    path: Path,
    name: str,
    level: str,
    *,
    version: str | None,
    replays: int,
    seed: int,
    label: str,
    models: Path,
) -> RecordingVerdict:
    """The verdict on one experiment of a list; `version` is for one that states none.

    The configuration of a model that is not known by its name is written into `models`.
    Raises: TraceError, ConfigError.
    """
    if level == "fitted":
        raise ConfigError("means and percentiles tell too little to be fitted to")
    experiment = named(path, name)
    if level == "capacity" and experiment.blocks is None:
        raise ConfigError("the experiment does not state its KV blocks (kv_blocks_of_16)")
    twin = _twin(experiment, level, version, models)
    outcome, figures, varied = serve(
        twin,
        lambda outcome: _statistics(outcome, experiment.measured),
        experiment.measured,
        trace=None,
        replays=replays,
        seed=seed,
    )
    config = twin.config
    layout = f"TP {config.engine.tensor_parallel}"
    if config.engine.data_parallel > 1:
        layout += f" DP {config.engine.data_parallel}"
    return RecordingVerdict(
        recording=label,
        kind=EXPERIMENT,
        level=level,
        setup={
            "model": str(experiment.run_data["model"]),
            "hardware": config.hardware or "",
            "version": config.engine.version or "",
            "layout": layout + (" EP" if config.engine.expert_parallel else ""),
        },
        figures=figures,
        blocks_measured=experiment.blocks,
        blocks_predicted=twin.prepared.capacity.num_gpu_blocks,
        timing=outcome.timing.description,
        timing_notes=outcome.timing.notes,
        varied=varied,
        notes=twin.notes,
        excluded=experiment.unfit,
    )


def named(path: Path, name: str) -> Experiment:
    """The experiment of that name. Raises: TraceError if it is not there, or cannot be used."""
    for one in read_experiments(path):
        if isinstance(one, Experiment) and one.name == name:
            return one
    raise TraceError(f"no experiment {name!r}", path=str(path))


def _twin(experiment: Experiment, level: str, version: str | None, models: Path) -> Twin:
    engine: dict[str, Any] = {**experiment.run_data["engine"]}
    if version is not None:
        engine.setdefault("version", version)
    if level == "capacity":
        engine["num_gpu_blocks"] = experiment.blocks
    model = _model(experiment, models)
    data = {**experiment.run_data, "model": model, "engine": engine}
    return blind_twin(
        data,
        "clients",
        source=experiment.source,
        longest_tokens=experiment.longest_request_tokens,
    )


def _model(experiment: Experiment, models: Path) -> str:
    """The model's name if it is known, else the folder of its recorded configuration."""
    name = str(experiment.run_data["model"])
    try:
        model_entry(name)
    except ConfigError:
        if experiment.model_config is None:
            raise
        folder = models / name.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(experiment.model_config, sort_keys=True)
        (folder / "config.json").write_text(text, encoding="utf-8")
        return str(folder)
    return name


def _statistics(outcome: RunOutcome, measured: Mapping[str, float]) -> dict[str, float]:
    report = outcome.report
    return {name: float(report[name]) for name in measured if report.get(name) is not None}
