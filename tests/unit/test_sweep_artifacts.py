"""The files of a finished sweep: the winners', byte for byte, and nobody else's."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dynosim.compiled import CORE
from dynosim.config import load_run, load_sweep
from dynosim.config.loading import dump_run
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.artifacts import write_artifacts
from dynosim.sweep.results import Row, frontier_rows, judge, trials_table
from dynosim.sweep.space import trials_of
from dynosim.sweep.trial import request_for, run_trial

FILE = """\
name: small
workload: {synthetic: {requests: 10, isl: 100, osl: 10, rate_rps: 5}}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
seed: 11
load: {search: fixed}
space: {cluster.workers: [1, 2, 3, 4, 5]}
constraints: {gpu_budget: 4, sla: {ttft_ms: 100, statistic: mean}}
top: 2
"""
PER_GPU, PER_USER, TTFT = (
    "output_tok_s_per_gpu",
    "median_output_token_throughput_per_user",
    "mean_ttft_ms",
)
NAMES = ("trials.parquet", "pareto.parquet", "pareto.png", "report.html", "summary.json")


def judged(sweep: SweepConfig) -> list[Row]:
    """Trial 0 misses the SLA, 1 to 3 are on its frontier (2 the fastest), 4 is too large."""
    values = ((9.0, 9.0, 500.0), (6.0, 6.0, 50.0), (8.0, 4.0, 50.0), (5.0, 7.0, 50.0))
    records = {
        index: {
            "status": "ok",
            "reason": "",
            "report": {
                "completed_requests": 3, "num_gpus": 1, PER_GPU: y, PER_USER: x, TTFT: ttft_ms,
            },
        }
        for index, (y, x, ttft_ms) in enumerate(values)
    }  # fmt: skip
    return judge(sweep, trials_of(sweep), records)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepConfig, list[Row], Any]:
    """A folder with the files of a sweep; an earlier one had recommended more trials."""
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "sweep.yaml"
    path.write_text(FILE)
    sweep = load_sweep(path)
    rows = judged(sweep)
    out = folder / "out"
    for top in ("top1", "top2", "top3", "top40", "topmost"):
        (out / "agg" / top / "inputs" / "tiny").mkdir(parents=True)
        for name in ("config.yaml", "intervals.json", "bench.sh", "inputs/tiny/config.json"):
            (out / "agg" / top / name).write_text("old")
    (out / "agg" / "top40" / "notes.txt").write_text("mine")
    intervals = {"replays": 2, "metrics": {TTFT: [40.0, 60.0], "p75_tpot_ms": [1.0, 2.0]}}
    rows[1] = replace(rows[1], intervals=intervals, shares={"meets_sla_share": 0.5})
    summary = write_artifacts(
        out, sweep, rows, sweep_hash="abc", sweep_yaml=FILE, interval_failures={2: "boom"}
    )
    return out, sweep, rows, summary


def test_the_winners_run_files_are_theirs(written: Any) -> None:
    out, sweep, rows, _ = written
    best = frontier_rows(sweep, rows)[:2]
    assert [row.trial.index for row in best] == [2, 1]
    for place, row in enumerate(best, 1):
        folder = out / "agg" / f"top{place}"
        assert (folder / "config.full.yaml").read_text() == dump_run(row.trial.config)
        assert len((folder / "config.yaml").read_text()) < 500
        config = load_run(folder / "config.yaml")
        assert dump_run(config) == dump_run(row.trial.config)
        assert config.cluster.workers == row.trial.values["cluster.workers"]
        assert (config.name, config.seed) == (f"small-{row.trial.index}", 11)


def test_a_winners_run_file_gives_what_its_trial_gave(written: Any) -> None:
    out, sweep, rows, _ = written
    winner = frontier_rows(sweep, rows)[0].trial
    again = run_trial(request_for(load_run(out / "agg" / "top1" / "config.yaml")))
    trial = run_trial(request_for(winner.config))
    assert trial["status"] == "ok" and trial["report"]["num_gpus"] == 3
    assert again["report"] == trial["report"]


def test_older_winners_are_gone_and_other_files_stay(written: Any) -> None:
    out, _, _, _ = written
    found = sorted(str(path.relative_to(out / "agg")) for path in (out / "agg").rglob("*.*"))
    files = ["README.md", "bench.sh", "config.full.yaml", "config.yaml", "engine.sh",
             "prediction.json"]  # fmt: skip
    assert found == sorted(
        [
            *(f"top1/{name}" for name in files),
            *(f"top2/{name}" for name in (*files, "intervals.json")),
            "top40/notes.txt",
            *(f"topmost/{name}" for name in ("bench.sh", "config.yaml", "intervals.json")),
            "topmost/inputs/tiny/config.json",
        ]
    )
    assert not (out / "agg" / "top1" / "inputs").exists()
    assert not (out / "agg" / "top3").exists()
    intervals = json.loads((out / "agg" / "top2" / "intervals.json").read_text())
    assert set(intervals["metrics"]) == {TTFT, "p75_tpot_ms"}  # all, not only what is shown


def test_the_summary_says_what_was_found(written: Any) -> None:
    out, _, _, summary = written
    assert json.loads((out / "summary.json").read_text()) == summary
    top = [(brief["trial_id"], brief["config"]) for brief in summary["top"]]
    assert top == [(2, "agg/top1/config.yaml"), (1, "agg/top2/config.yaml")]
    assert [brief["trial_id"] for brief in summary["pareto"]] == [0]
    assert summary["not_run"] == [
        {
            "trial_id": 4,
            "status": "infeasible",
            "values": {"cluster.workers": 5},
            "reason": "needs 5 GPUs, constraints.gpu_budget is 4",
        }
    ]
    assert summary["intervals_failed"] == [{"trial_id": 2, "reason": "boom"}]
    assert (summary["name"], summary["sweep_hash"]) == ("small", "abc")
    assert summary["core"] == CORE.kind
    assert (summary["num_trials"], summary["num_meeting_sla"]) == (5, 3)
    assert summary["objectives"] == {PER_GPU: "max", PER_USER: "max"}
    assert summary["constraints"] == {
        "gpu_budget": 4,
        "sla": {"ttft_ms": 100.0, "statistic": "mean"},
    }
    assert summary["search"] == {"method": "grid", "seed": 0}
    second = summary["top"][1]
    assert second["intervals"] == {"replays": 2, "metrics": {TTFT: [40.0, 60.0]}}
    assert (second["meets_sla_share"], second["meets_sla"]) == (0.5, True)
    assert (second[PER_GPU], second[PER_USER], second[TTFT]) == (6.0, 6.0, 50.0)
    assert "intervals" not in summary["top"][0]


def test_the_tables_are_those_of_the_rows(written: Any) -> None:
    out, sweep, rows, _ = written
    table = pl.read_parquet(out / "trials.parquet")
    assert table.equals(trials_table(sweep, rows))
    front = pl.read_parquet(out / "pareto.parquet")
    assert front["trial_id"].to_list() == [0]
    as_text = pl.read_csv(out / "trials.csv")
    assert as_text.columns == table.columns and as_text["trial_id"].to_list() == [0, 1, 2, 3, 4]
    assert pl.read_csv(out / "pareto.csv")["trial_id"].to_list() == [0]
    best = pl.read_csv(out / "best_config_topn.csv")
    assert best["trial_id"].to_list() == [2, 1] and best["replicas"].to_list() == [3, 2]


def test_a_folder_says_in_six_lines_what_it_is(written: Any) -> None:
    out, _, _, summary = written
    lines = (out / "agg" / "top1" / "README.md").read_text().splitlines()
    assert len(lines) == 6
    assert lines[0] == "# small-2: best, cheapest (agg TP1)"
    assert [brief["roles"] for brief in summary["top"]] == [["best", "cheapest"], ["next best"]]
    for word in ("dynosim run", "dynosim deploy", "dynosim validate", "engine.sh", "bench.sh"):
        assert any(word in line for line in lines), word


def test_scripts_can_be_started(written: Any) -> None:
    out, _, _, _ = written
    for name in ("engine.sh", "bench.sh"):
        assert os.access(out / "agg" / "top1" / name, os.X_OK)


def test_the_frontier_is_sorted_by_the_first_objective(written: Any, tmp_path: Path) -> None:
    _, sweep, rows, _ = written
    rows = [replace(row, is_pareto=row.trial.index < 4) for row in rows]
    write_artifacts(tmp_path, sweep, rows, sweep_hash="abc", sweep_yaml=FILE)
    front = pl.read_parquet(tmp_path / "pareto.parquet")
    assert front[PER_GPU].to_list() == [9.0, 8.0, 6.0, 5.0]
    assert front["trial_id"].to_list() == [0, 2, 1, 3]
    assert "intervals_failed" not in json.loads((tmp_path / "summary.json").read_text())


def test_the_sweep_stands_beside_its_results(written: Any) -> None:
    out, _, _, _ = written
    assert (out / "sweep.yaml").read_text() == FILE
    assert all((out / name).stat().st_size > 100 for name in NAMES)
