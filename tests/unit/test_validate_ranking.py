"""Order and choice of configurations, predicted against measured."""

import json
from pathlib import Path

import pytest

from dynosim.errors import ConfigError, TraceError
from dynosim.validate.ranking import rank, rank_files, read_values

MEASURED = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0}


def test_same_order_has_no_regret() -> None:
    ranking = rank(
        {k: v * 2 for k, v in MEASURED.items()}, MEASURED, metric="x", lower_is_better=True
    )
    assert (ranking.tau, ranking.regret, ranking.chosen) == (1.0, 0.0, "a")
    assert [name for name, _, _ in ranking.rows] == ["a", "b", "c", "d"]


def test_regret_is_what_the_choice_costs() -> None:
    predicted = {"a": 3.0, "b": 1.0, "c": 4.0, "d": 5.0}
    lower = rank(predicted, MEASURED, metric="x", lower_is_better=True)
    assert (lower.chosen, lower.regret) == ("b", 1.0)
    assert lower.tau == pytest.approx(4 / 6)
    higher = rank(predicted, MEASURED, metric="x", lower_is_better=False)
    assert (higher.chosen, higher.best, higher.regret) == ("d", "d", 0.0)


def test_reversed_order_is_minus_one() -> None:
    predicted = {k: -v for k, v in MEASURED.items()}
    assert rank(predicted, MEASURED, metric="x", lower_is_better=True).tau == -1.0


def test_too_few_common_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 configurations have both"):
        rank({"z": 1.0}, MEASURED, metric="x", lower_is_better=True)


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"name": k, "x": v}) + "\n" for k, v in MEASURED.items()))
    one = tmp_path / "b.json"
    one.write_text(json.dumps({k: {"x": v} for k, v in MEASURED.items()}, indent=1))
    for name, value in MEASURED.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "report.json").write_text(json.dumps({"x": value}))
    for path in (lines, one, tmp_path / "runs"):
        assert read_values(path, "x") == MEASURED
    assert rank_files(lines, one, metric="x", lower_is_better=True).tau == 1.0


def test_missing_metric_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"name": "a", "x": 1}\n{"name": "b"}\n')
    with pytest.raises(TraceError, match=r"a\.jsonl:2:x: b: no number"):
        read_values(path, "x")
