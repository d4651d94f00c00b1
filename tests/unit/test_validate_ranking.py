"""Order and choice of configurations, predicted against measured."""

import json
from pathlib import Path

import polars as pl
import pytest

from dynosim.compare.ranking import rank, rank_files, read_values
from dynosim.errors import ConfigError, TraceError

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


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_rows_run_from_the_best_measured_down(lower_is_better: bool) -> None:
    predicted = {"d": 1.0, "c": 2.0, "b": 3.0, "a": 4.0, "z": 0.0}
    ranking = rank(predicted, MEASURED, metric="x", lower_is_better=lower_is_better)
    rows = [("a", 10.0, 4.0), ("b", 20.0, 3.0), ("c", 30.0, 2.0), ("d", 40.0, 1.0)]
    assert list(ranking.rows) == (rows if lower_is_better else rows[::-1])
    assert (ranking.metric, ranking.tau) == ("x", -1.0)
    if lower_is_better:
        assert (ranking.chosen, ranking.best, ranking.regret) == ("d", "a", 3.0)
    else:
        assert (ranking.chosen, ranking.best, ranking.regret) == ("a", "d", 0.75)


def naive_tau(one: list[float], other: list[float]) -> float:
    """Kendall's tau-b: pairs in order less pairs out of order, over those that are not tied."""
    pairs = [(i, j) for i in range(len(one)) for j in range(i)]
    signs = [
        [(column[i] > column[j]) - (column[i] < column[j]) for column in (one, other)]
        for i, j in pairs
    ]
    agreeing = sum(a * b for a, b in signs)
    untied = [sum(pair[axis] != 0 for pair in signs) for axis in (0, 1)]
    return agreeing / float(untied[0] * untied[1]) ** 0.5


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0, 4.0],
        [4.0, 1.0, 3.0, 2.0],
        [1.0, 1.0, 2.0, 2.0],
        [2.0, 1.0, 1.0, 3.0],
        [3.0, 3.0, 3.0, 1.0],
    ],
)
def test_tau_counts_pairs_and_knows_ties(values: list[float]) -> None:
    predicted = dict(zip("abcd", values, strict=True))
    ranking = rank(predicted, MEASURED, metric="x", lower_is_better=True)
    assert ranking.tau == pytest.approx(naive_tau(values, list(MEASURED.values())))


def test_of_equal_predictions_the_first_measured_is_chosen() -> None:
    predicted = {"a": 5.0, "b": 1.0, "c": 1.0, "d": 1.0}
    assert rank(predicted, MEASURED, metric="x", lower_is_better=True).chosen == "b"


def test_regret_is_a_share_of_the_best_whatever_its_sign() -> None:
    measured = {"a": -10.0, "b": -5.0, "c": 0.0}
    lost = rank({"a": 3.0, "b": 1.0, "c": 2.0}, measured, metric="x", lower_is_better=True)
    assert (lost.best, lost.chosen, lost.regret) == ("a", "b", 0.5)
    nothing = {"a": 0.0, "b": 5.0, "c": 9.0}
    free = rank({"a": 3.0, "b": 1.0, "c": 2.0}, nothing, metric="x", lower_is_better=True)
    assert (free.best, free.chosen, free.regret) == ("a", "b", 0.0)


def test_a_ranking_is_told_in_json_and_in_words() -> None:
    predicted = {"a": 3.0, "b": 1.0, "c": 4.0, "d": 5.0}
    ranking = rank(predicted, MEASURED, metric="ms", lower_is_better=True)
    assert ranking.to_dict() == {
        "metric": "ms",
        "configurations": [
            {"name": name, "measured": MEASURED[name], "predicted": predicted[name]}
            for name in "abcd"
        ],
        "kendall_tau": pytest.approx(4 / 6),
        "chosen": "b",
        "best": "a",
        "regret": 1.0,
    }
    lines = ranking.text().splitlines()
    assert lines[1].split() == ["a", "10", "3"]
    assert lines[-2:] == [
        "ms: Kendall's tau 0.667 over 4",
        "chosen b, best a: regret 100.00%",
    ]


@pytest.mark.parametrize(("common", "is_enough"), [(2, False), (3, True)])
def test_three_configurations_are_the_least(common: int, is_enough: bool) -> None:
    predicted = {name: 1.0 for name in list(MEASURED)[:common]} | {"other": 2.0}
    if is_enough:
        assert len(rank(predicted, MEASURED, metric="x", lower_is_better=True).rows) == 3
    else:
        with pytest.raises(ConfigError, match="2 configurations have both a measured and a"):
            rank(predicted, MEASURED, metric="x", lower_is_better=True)


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


def test_metrics_may_lie_in_a_report_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"name": "a", "x": 99, "report": {"x": 1}}, {"name": "b", "report": {"x": 2.5}}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert read_values(path, "x") == {"a": 1.0, "b": 2.5}


@pytest.mark.parametrize("key", ["name", "trial"])
def test_tables_of_trials_are_read(tmp_path: Path, key: str) -> None:
    path = tmp_path / "trials.parquet"
    pl.DataFrame({key: [1, 2], "x": [10.0, 20.0], "y": [1, 1]}).write_parquet(path)
    assert read_values(path, "x") == {"1": 10.0, "2": 20.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "x": 1}\n{"name": "a", "x": 2}\n', ":2: a is there twice"),
        ('{"name": "a", "x": true}\n{"name": "b", "x": 2}\n', ":1:x: a: no number under this key"),
        ('{"name": "a", "x": "1"}\n{"name": "b", "x": 2}\n', ":1:x: a: no number under this key"),
        ('{"name": "a", "x": 1}\n{"name": 3, "x": 2}\n', ":2: expected an object with a name"),
        ('{"name": "a", "x": 1}\n[]\n', ":2: expected an object with a name"),
        ('{"name": "a", "x": 1}\nnonsense\n', ":2: not JSON"),
        ("\n", ": no configurations"),
        ("[\n1]", ": expected a JSON object"),
        ("{\nnonsense", ": not readable JSON"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        read_values(path, "x")
    assert f"a.jsonl{message}" in str(caught.value)


def test_a_table_without_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    pl.DataFrame({"x": [10.0]}).write_parquet(path)
    with pytest.raises(TraceError, match="no column name or trial"):
        read_values(path, "x")
    path.write_text("nonsense")
    with pytest.raises(TraceError, match="not readable Parquet"):
        read_values(path, "x")
    with pytest.raises(TraceError, match="no configurations"):
        read_values(tmp_path, "x")
