"""Verdicts over finished trials: SLA, frontier, and what is recommended."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.sweep_schema import Statistic, SweepSla
from dynosim.sweep.results import frontier_rows, judge, meets, objective_names, trials_table
from dynosim.sweep.space import trials_of

FILE = """\
workload: {trace: t.jsonl}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
load: {search: fixed}
space:
  cluster.workers: [1, 2, 3, 4, 5]
constraints: {gpu_budget: 4, sla: {ttft_ms: 100, statistic: mean}}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> SweepConfig:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return load_sweep(path)


def record(per_gpu: float | None, per_user: float, ttft_ms: float, **more: Any) -> dict[str, Any]:
    report = {
        "completed_requests": 3,
        "num_gpus": 1,
        "output_tok_s_per_gpu": per_gpu,
        "median_output_token_throughput_per_user": per_user,
        "mean_ttft_ms": ttft_ms,
    }
    return {"status": "ok", "reason": "", "report": report, **more}


def test_frontiers_with_and_without_the_sla(sweep: SweepConfig) -> None:
    records = {
        0: record(10.0, 1.0, 500.0),  # best per GPU, misses the SLA
        1: record(8.0, 1.0, 50.0),  # beaten by 0, best of those that keep the SLA
        2: record(5.0, 5.0, 50.0),
        3: {"status": "failed", "reason": "boom", "report": {}},
    }
    rows = judge(sweep, trials_of(sweep), records)
    assert [row.is_pareto for row in rows] == [True, False, True, False, False]
    assert [row.is_sla_pareto for row in rows] == [False, True, True, False, False]
    assert [row.meets_sla for row in rows] == [False, True, True, None, None]
    assert [row.trial.index for row in frontier_rows(sweep, rows)] == [1, 2]


def test_equal_trials_are_recommended_once(sweep: SweepConfig) -> None:
    records = {index: record(8.0, 1.0, 50.0) for index in range(3)}
    rows = judge(sweep, trials_of(sweep), records)
    assert sum(row.is_pareto for row in rows) == 3
    assert [row.trial.index for row in frontier_rows(sweep, rows)] == [0]


def test_a_trial_without_an_objective_is_never_on_the_frontier(sweep: SweepConfig) -> None:
    rows = judge(sweep, trials_of(sweep), {0: record(None, 9.0, 50.0), 1: record(1.0, 1.0, 50.0)})
    assert [row.is_pareto for row in rows] == [False, True, False]


def test_of_equal_throughput_fewer_gpus_come_first_and_then_the_lower_trial(
    sweep: SweepConfig,
) -> None:
    """Objectives that tell them apart, so that all four stay."""
    records = {index: record(8.0, 1.0 + index, 50.0) for index in range(3)}
    records[3] = record(9.0, 0.5, 50.0)
    for index, gpus in ((0, 4), (1, 2), (2, 2), (3, 8)):
        records[index]["report"]["num_gpus"] = gpus
    sought = replace(sweep, objectives={"median_output_token_throughput_per_user": "max",
                                        "num_gpus": "max"})  # fmt: skip
    rows = [
        replace(row, is_sla_pareto=True) for row in judge(sought, trials_of(sweep), records)[:4]
    ]
    assert [row.trial.index for row in frontier_rows(sought, rows)] == [3, 1, 2, 0]
    assert [row.trial.index for row in frontier_rows(sought, rows[::-1])] == [3, 1, 2, 0]


def test_equal_objectives_on_other_numbers_of_gpus_are_both_recommended(sweep: SweepConfig) -> None:
    records = {index: record(8.0, 1.0, 50.0) for index in range(4)}
    for index, gpus in ((0, 4), (1, 2), (2, 4), (3, 2)):
        records[index]["report"]["num_gpus"] = gpus
    rows = judge(sweep, trials_of(sweep), records)
    assert [row.trial.index for row in frontier_rows(sweep, rows)] == [1, 0]


@pytest.mark.parametrize("statistic", get_args(Statistic))
@pytest.mark.parametrize(
    ("bound", "key"), [("ttft_ms", "ttft_ms"), ("itl_ms", "itl_ms"), ("e2e_ms", "e2e_latency_ms")]
)
def test_a_bound_is_kept_at_it_and_missed_above_it_by_the_statistic_that_is_named(
    statistic: str, bound: str, key: str
) -> None:
    sla = SweepSla(**{bound: 100.0}, statistic=statistic)  # type: ignore[arg-type]
    others = {f"{name}_{key}": 1e9 for name in get_args(Statistic)}
    for value, is_met in ((99.0, True), (100.0, True), (100.1, False), (None, True)):
        report = {**others, "completed_requests": 1, f"{statistic}_{key}": value}
        assert meets(sla, report) == is_met
    assert meets(sla, {"completed_requests": 1})


def test_every_bound_has_to_be_kept() -> None:
    sla = SweepSla(ttft_ms=1, itl_ms=2, e2e_ms=3, statistic="mean")
    fine = {"completed_requests": 1, "mean_ttft_ms": 1, "mean_itl_ms": 2, "mean_e2e_latency_ms": 3}
    assert meets(sla, fine)
    for name in ("mean_ttft_ms", "mean_itl_ms", "mean_e2e_latency_ms"):
        assert not meets(sla, {**fine, name: 3.5})


def test_without_a_statistic_so_many_requests_must_keep_all_bounds() -> None:
    report = {"completed_requests": 9, "mean_ttft_ms": 1e9}
    for attainment, is_met in ((0.95, True), (0.9499, False), (None, True)):
        assert meets(SweepSla(ttft_ms=1.0), {**report, "sla_attainment": attainment}) == is_met
    half = SweepSla(ttft_ms=1.0, attainment=0.5)
    assert meets(half, {**report, "sla_attainment": 0.5})


def test_what_is_overloaded_meets_nothing_and_is_on_no_frontier(sweep: SweepConfig) -> None:
    assert not meets(None, {"completed_requests": 9, "saturated": True})
    records = {0: record(10.0, 9.0, 50.0), 1: record(8.0, 1.0, 50.0)}
    records[0]["report"]["saturated"] = True
    rows = judge(sweep, trials_of(sweep), records)
    assert [row.is_pareto for row in rows[:2]] == [False, True]
    assert [row.meets_sla for row in rows[:2]] == [False, True]


@pytest.mark.parametrize("sla", [None, SweepSla(ttft_ms=100)])
def test_a_trial_that_completed_nothing_keeps_no_bound(sla: SweepSla | None) -> None:
    for report in ({"completed_requests": 0}, {"completed_requests": None}, {}):
        assert not meets(sla, {**report, "mean_ttft_ms": 1.0})
    assert meets(sla, {"completed_requests": 1, "mean_ttft_ms": 1.0})


@pytest.mark.parametrize(
    ("objectives", "names"),
    [
        ({}, ("median_output_token_throughput_per_user", "output_tok_s_per_gpu")),
        ({"mean_ttft_ms": "min"}, ("mean_ttft_ms", "median_output_token_throughput_per_user")),
        ({"output_tok_s_per_gpu": "max"},
         ("output_tok_s_per_gpu", "median_output_token_throughput_per_user")),
        ({"a": "min", "b": "max", "c": "max"}, ("a", "b")),
    ],
)  # fmt: skip
def test_plots_show_the_first_two_objectives_or_what_stands_in_for_them(
    sweep: SweepConfig, objectives: dict[str, Any], names: tuple[str, str]
) -> None:
    assert objective_names(replace(sweep, objectives=objectives)) == names


def test_columns_have_the_narrowest_type_that_holds_them(sweep: SweepConfig) -> None:
    reports = [
        {"flag": True, "count": 1, "mixed": 1, "text": "a", "section": {"x": 1}, "both": 1},
        {"flag": None, "count": None, "mixed": 0.5, "text": None, "section": [1], "both": "b"},
    ]
    records = {index: {"status": "ok", "reason": "", "report": report}
               for index, report in enumerate(reports)}  # fmt: skip
    table = trials_table(sweep, judge(sweep, trials_of(sweep)[:2], records))
    kinds = [
        str(table[name].dtype) for name in ("flag", "count", "mixed", "text", "section", "both")
    ]
    assert kinds == ["Boolean", "Int64", "Float64", "String", "String", "String"]
    assert table["mixed"].to_list() == [1.0, 0.5] and table["both"].to_list() == ["1", "b"]
    assert table["section"].to_list() == ['{"x": 1}', "[1]"]
    assert table["text"].to_list() == ["a", None]


def test_table_has_the_columns_that_plots_need(sweep: SweepConfig) -> None:
    records = {0: record(10.0, 1.0, 500.0), 1: {"status": "failed", "reason": "x", "report": {}}}
    table = trials_table(sweep, judge(sweep, trials_of(sweep), records))
    assert table["trial_id"].to_list() == [0, 1, 4]
    assert table["status"].to_list() == ["ok", "failed", "infeasible"]
    assert table["cluster.workers"].to_list() == [1, 2, 5]
    assert table["output_tok_s_per_gpu"].to_list() == [10.0, None, None]
    assert {"reason", "is_pareto", "meets_sla", "config_hash"} <= set(table.columns)
