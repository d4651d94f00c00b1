"""Verdicts over finished trials: SLA, frontier, and what is recommended."""

from pathlib import Path
from typing import Any

import pytest

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.sweep_schema import SweepSla
from dynosim.sweep.results import best_rows, judge, meets, trials_table
from dynosim.sweep.space import trials_of

FILE = """\
workload: {trace: t.jsonl}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
space:
  cluster.workers: [1, 2, 3, 4, 5]
constraints: {gpu_budget: 4, sla: {ttft_ms: 100}}
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
        "mean_output_token_throughput_per_user": per_user,
        "mean_ttft_ms": ttft_ms,
    }
    return {"status": "ok", "reason": "", "report": report, **more}


def test_over_budget_is_infeasible_with_its_reason(sweep: SweepConfig) -> None:
    trials = trials_of(sweep)
    assert [trial.config is None for trial in trials] == [False] * 4 + [True]
    assert trials[4].reason == "needs 5 GPUs, constraints.gpu_budget is 4"


def test_a_combination_that_vllm_refuses_is_infeasible(sweep: SweepConfig, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    loaded = load_sweep(path, ["space.engine.max_num_seqs=[128, 16384]"])
    reasons = {trial.values["engine.max_num_seqs"]: trial.reason for trial in trials_of(loaded)}
    assert "less than max_num_seqs (16384)" in reasons[16384]
    assert trials_of(loaded)[0].config is not None


def test_trials_carry_the_sla_of_the_constraints(sweep: SweepConfig) -> None:
    config = trials_of(sweep)[0].config
    assert config is not None and config.sla is not None and config.sla.ttft_ms == 100


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
    assert [row.trial.index for row in best_rows(sweep, rows)] == [1, 2]


def test_equal_trials_are_recommended_once(sweep: SweepConfig) -> None:
    records = {index: record(8.0, 1.0, 50.0) for index in range(3)}
    rows = judge(sweep, trials_of(sweep), records)
    assert sum(row.is_pareto for row in rows) == 3
    assert [row.trial.index for row in best_rows(sweep, rows)] == [0]


def test_a_trial_without_an_objective_is_never_on_the_frontier(sweep: SweepConfig) -> None:
    rows = judge(sweep, trials_of(sweep), {0: record(None, 9.0, 50.0), 1: record(1.0, 1.0, 50.0)})
    assert [row.is_pareto for row in rows] == [False, True, False]


def test_sla_statistic() -> None:
    report = {"completed_requests": 1, "mean_ttft_ms": 50.0, "p90_ttft_ms": 150.0}
    assert meets(SweepSla(ttft_ms=100), report)
    assert not meets(SweepSla(ttft_ms=100, statistic="p90"), report)
    assert meets(SweepSla(itl_ms=1), {**report, "mean_itl_ms": None})
    assert not meets(None, {"completed_requests": 0})


def test_table_has_the_columns_that_plots_need(sweep: SweepConfig) -> None:
    records = {0: record(10.0, 1.0, 500.0), 1: {"status": "failed", "reason": "x", "report": {}}}
    table = trials_table(sweep, judge(sweep, trials_of(sweep), records))
    assert table["trial_id"].to_list() == [0, 1, 4]
    assert table["status"].to_list() == ["ok", "failed", "infeasible"]
    assert table["cluster.workers"].to_list() == [1, 2, 5]
    assert table["output_tok_s_per_gpu"].to_list() == [10.0, None, None]
    assert {"reason", "is_pareto", "meets_sla", "config_hash"} <= set(table.columns)
