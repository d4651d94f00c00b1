"""prediction.json: what was said then, and whether it was of this plan."""

import json
from pathlib import Path
from typing import Any

import pytest

from dynosim import __version__
from dynosim.config.loading import check_run
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.experiment.prediction import (
    PREDICTION_FILE,
    prediction_document,
    read_prediction,
)
from dynosim.experiment.run import run
from dynosim_runtime.validate.saved import predicted_side

INTERVALS = {
    "level": 0.95,
    "replays": 9,
    "varied": ["arrivals"],
    "metrics": {"mean_ttft_ms": [1, 3]},
}


def plan(folder: Path, **keys: Any) -> RunConfig:
    data: dict[str, Any] = {
        "name": "p",
        "workload": {"synthetic": {"requests": 20, "isl": 64, "osl": 8, "rate_rps": 5}},
        "engine": {"num_gpu_blocks": 90},
        "timing": {"kind": "fixed", "prefill_ms": 4, "decode_ms": 2},
    }
    config = check_run({**data, **keys}, folder)
    assert isinstance(config, RunConfig), config
    return config


def save(folder: Path, config: RunConfig, report: dict[str, Any], **more: Any) -> None:
    document = prediction_document(config, report, load={"load": 1.5}, intervals=None) | more
    (folder / PREDICTION_FILE).write_text(json.dumps(document))


def test_what_was_saved_is_what_counts(tmp_path: Path) -> None:
    config = plan(tmp_path)
    today = run(config)
    save(tmp_path, config, {**today.report, "mean_ttft_ms": 777.0}, intervals=INTERVALS)
    side = predicted_side(read_prediction(tmp_path), config, today)
    assert side.outcome.report["mean_ttft_ms"] == 777.0
    assert side.outcome.report["mean_itl_ms"] == today.report["mean_itl_ms"]
    assert side.intervals is not None and side.intervals.metrics == {"mean_ttft_ms": (1.0, 3.0)}
    assert side.source is not None and side.source["is_used"] and side.source["load"]["load"] == 1.5
    (used, drift) = side.notes
    assert PREDICTION_FILE in used and f"dynosim {__version__}" in used
    assert "TTFT mean 777" in drift and "this version" in drift


def test_what_the_twin_still_says_needs_no_note(tmp_path: Path) -> None:
    config = plan(tmp_path)
    today = run(config)
    save(tmp_path, config, today.report)
    assert len(predicted_side(read_prediction(tmp_path), config, today).notes) == 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"engine": {"num_gpu_blocks": 91}}, "engine.num_gpu_blocks: 90 then, 91 now"),
        ({"seed": 4}, "seed: its default then, 4 now"),
        ({"cluster": {"workers": 2}}, "cluster.workers: its default then, 2 now"),
        ({"timing": {"kind": "polynomial"}}, 'timing.kind: "fixed" then, "polynomial" now'),
    ],
)
def test_a_changed_plan_is_noticed_and_predicted_anew(
    tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    config = plan(tmp_path)
    save(tmp_path, config, {**run(config).report, "mean_ttft_ms": 777.0})
    changed = plan(tmp_path, **keys)
    today = run(changed)
    side = predicted_side(read_prediction(tmp_path), changed, today)
    assert side.outcome is today and side.intervals is None
    assert side.source is not None and not side.source["is_used"]
    assert words in side.source["changes"] and words in side.notes[0]


def test_how_a_plan_is_served_and_called_is_no_part_of_a_prediction(tmp_path: Path) -> None:
    config = plan(tmp_path)
    save(tmp_path, config, {})
    saved = read_prediction(tmp_path)
    assert saved is not None
    assert saved.changes(plan(tmp_path, name="q", live={"port": 1})) == []


def test_another_file_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    trace = tmp_path / "a.jsonl"
    trace.write_text('{"arrival_ms": 0, "input_tokens": 3, "output_tokens": 2}\n')
    config = plan(tmp_path, workload={"trace": "a.jsonl"})
    save(tmp_path, config, {})
    saved = read_prediction(tmp_path)
    assert saved is not None and saved.changes(config) == []
    elsewhere = plan(tmp_path, workload={"trace": str(trace)})
    assert saved.changes(elsewhere) == []  # a folder that was moved names it from elsewhere
    trace.write_text('{"arrival_ms": 0, "input_tokens": 4, "output_tokens": 2}\n')
    assert saved.changes(config) == ["workload.trace: another file than then"]


def test_without_a_prediction_the_twin_predicts(tmp_path: Path) -> None:
    config = plan(tmp_path)
    today = run(config)
    assert read_prediction(tmp_path) is None and read_prediction(tmp_path / "run.yaml") is None
    side = predicted_side(None, config, today)
    assert (side.outcome, side.source, side.notes) == (today, None, [])


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", '{"schema": "dynosim.prediction/9"}', '{"schema": "dynosim.prediction/1"}',
        '{"schema": "dynosim.prediction/1", "intervals": {"metrics": 3}}',
        '{"schema": "dynosim.prediction/1", "intervals": null, "versions": {}, "load": {},'
        ' "config": [], "inputs": {}, "report": {}}',
    ],
)  # fmt: skip
def test_a_damaged_prediction_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / PREDICTION_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"prediction\.json: .*remove it"):
        read_prediction(tmp_path)
