"""Intervals of a sweep's frontier: whose are made, how they are kept, and what they say."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import TRUE

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.experiment.intervals import DEFAULT_REPLAYS
from dynosim.silicon.fitted_file import write_fit
from dynosim.sweep.artifacts import write_artifacts
from dynosim.sweep.executor import Answer, LocalExecutor, Request
from dynosim.sweep.frontier_intervals import (
    FUNCTION,
    known_intervals,
    make_intervals,
    run_intervals,
    wanted_replays,
    with_intervals,
)
from dynosim.sweep.ledger import LEDGER, Ledger, new_ledger, resumed_ledger
from dynosim.sweep.results import Row, judge, trials_table
from dynosim.sweep.run import hash_of
from dynosim.sweep.space import trials_of
from dynosim.timing.fitted import Fit

FILE = """\
workload: {synthetic: {requests: 10, isl: 100, osl: 10, rate_rps: 5}}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
load: {search: fixed}
space:
  cluster.workers: [1, 2, 3]
constraints: {sla: {ttft_ms: 100, statistic: mean}}
"""
FITTED = "timing={kind: fitted, file: timing.json}"
PER_GPU, PER_USER, TTFT = (
    "output_tok_s_per_gpu",
    "median_output_token_throughput_per_user",
    "mean_ttft_ms",
)
VALUES = ((10.0, 1.0, 99.0), (8.0, 4.0, 50.0), (7.0, 3.0, 50.0))  # the last one is beaten


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def sweep(sweep_file: Path) -> SweepConfig:
    return load_sweep(sweep_file)


def judged(sweep: SweepConfig, values: Iterable[tuple[float, float, float]] = VALUES) -> list[Row]:
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


def found(replays: int = 4, **metrics: tuple[float, float]) -> dict[str, Any]:
    return {
        "level": 0.95,
        "replays": replays,
        "varied": ["arrivals"],
        "metrics": {key: list(ends) for key, ends in metrics.items()},
        "samples": {},
    }


class FakeExecutor(LocalExecutor):
    """Answers in reverse order, and fails the trials it is told to."""

    def __init__(self, failing: tuple[int, ...] = ()) -> None:
        super().__init__(1)
        self.failing = failing
        self.asked: list[tuple[int, Request]] = []

    def run(  # type: ignore[override]
        self, function: str, requests: Iterable[tuple[int, Request]]
    ) -> Iterator[tuple[int, Answer]]:
        assert function == FUNCTION
        self.asked = list(requests)
        for index, request in reversed(self.asked):
            if index in self.failing:
                yield index, {"status": "failed", "reason": "boom", "intervals": None}
            else:
                yield index, {"status": "ok", "intervals": found(request["replays"])}


def ledger_of(folder: Path, rows: list[Row]) -> Ledger:
    ledger = new_ledger(folder, sweep_hash="abc", overwrite=False)
    for row in rows:
        answer = {"status": row.status, "reason": "", "report": dict(row.report), "wall_ms": 1.0}
        ledger.append(row.trial, answer)
    return ledger


def test_only_trials_on_a_frontier_are_replayed(sweep: SweepConfig) -> None:
    rows = judged(sweep)
    assert wanted_replays(rows, None) == {}  # these step times were fitted to nothing
    assert wanted_replays(rows, 5) == {0: 5, 1: 5}
    assert wanted_replays(rows, 0) == {}
    slow = judged(sweep, [(10.0, 5.0, 900.0), *VALUES[1:]])
    assert [row.is_pareto for row in slow] == [True, False, False]
    assert wanted_replays(slow, 5) == {0: 5, 1: 5}  # 1 is best of those that meet the SLA


def test_fitted_step_times_are_replayed_if_their_file_has_draws(
    sweep_file: Path, tmp_path: Path
) -> None:
    write_fit(Fit(parameters=TRUE), tmp_path / "timing.json")
    rows = judged(load_sweep(sweep_file, [FITTED]))
    assert wanted_replays(rows, None) == {}
    write_fit(Fit(parameters=TRUE, draws=(TRUE, TRUE)), tmp_path / "timing.json")
    assert wanted_replays(rows, None) == {0: DEFAULT_REPLAYS, 1: DEFAULT_REPLAYS}


def test_other_step_times_in_the_file_are_another_sweep(sweep_file: Path, tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file, [FITTED])
    hashes = set()
    for factor in (1.0, 1.1):
        parameters = replace(TRUE, weights_ms=factor * TRUE.weights_ms)
        write_fit(Fit(parameters=parameters), tmp_path / "timing.json")
        hashes.add(hash_of(trials_of(sweep)))
    assert len(hashes) == 2


def test_ledger_keeps_intervals_beside_trials(sweep: SweepConfig, tmp_path: Path) -> None:
    rows = judged(sweep)
    ledger = ledger_of(tmp_path / "out", rows)
    ledger.append_intervals(rows[0].trial, found(4))
    ledger.append_intervals(rows[0].trial, found(8))
    ledger.append_intervals(rows[1].trial, found(8))
    resumed = resumed_ledger(tmp_path / "out", sweep_hash="abc")
    assert resumed.records == ledger.records
    assert resumed.intervals == ledger.intervals == {0: found(8), 1: found(8)}
    path = tmp_path / "out" / LEDGER
    path.write_bytes(path.read_bytes()[:-3])
    assert set(resumed_ledger(tmp_path / "out", sweep_hash="abc").intervals) == {0}


def test_what_the_ledger_has_is_not_made_again(sweep: SweepConfig, tmp_path: Path) -> None:
    rows = judged(sweep)
    ledger = ledger_of(tmp_path / "out", rows)
    ledger.append_intervals(rows[1].trial, found(4))
    executor = FakeExecutor()
    assert make_intervals(rows, {0: 4, 1: 4}, ledger, executor) == {}
    assert [index for index, _ in executor.asked] == [0]
    assert known_intervals(ledger, {0: 4, 1: 4}) == {0: found(4), 1: found(4)}
    make_intervals(rows, {0: 6, 1: 4}, ledger, executor)  # other numbers of replays are others
    assert [(index, request["replays"]) for index, request in executor.asked] == [(0, 6)]


def test_a_failure_costs_its_own_intervals_only(sweep: SweepConfig, tmp_path: Path) -> None:
    rows = judged(sweep)
    ledger = ledger_of(tmp_path / "out", rows)
    wanted = {0: 4, 1: 4}
    failures = make_intervals(rows, wanted, ledger, FakeExecutor(failing=(1,)))
    assert failures == {1: "boom"}
    rows = with_intervals(sweep, rows, known_intervals(ledger, wanted))
    assert [row.intervals is not None for row in rows] == [True, False, False]
    summary = write_artifacts(
        tmp_path, sweep, rows, sweep_hash="abc", sweep_yaml="", interval_failures=failures
    )
    assert summary["intervals_failed"] == [{"trial_id": 1, "reason": "boom"}]
    assert ["intervals" in brief for brief in summary["pareto"]] == [True, False]


def test_a_worker_says_why_it_failed(sweep: SweepConfig, tmp_path: Path) -> None:
    config = {"workload": {"trace": "gone.jsonl"}, "engine": {"num_gpu_blocks": 9}}
    config["timing"] = {"kind": "polynomial"}
    answer = run_intervals({"config": config, "folder": str(tmp_path), "replays": 2})
    assert answer["status"] == "failed" and "gone.jsonl" in answer["reason"]


def test_table_has_the_ends_of_shown_intervals_only(sweep: SweepConfig) -> None:
    rows = judged(sweep)
    assert not [name for name in trials_table(sweep, rows).columns if name.endswith("_low")]
    ends = found(**{PER_GPU: (9.0, 11.0), TTFT: (90.0, 95.0), "p75_tpot_ms": (1.0, 2.0)})
    table = trials_table(sweep, with_intervals(sweep, rows, {0: ends}))
    assert table[f"{PER_GPU}_low"].to_list() == [9.0, None, None]
    assert table[f"{PER_GPU}_high"].to_list() == [11.0, None, None]
    assert table[f"{TTFT}_high"].to_list() == [95.0, None, None]
    assert "p75_tpot_ms_low" not in table.columns and f"{PER_USER}_low" not in table.columns


def test_intervals_of_what_the_sla_bounds_are_shown(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["constraints.sla={e2e_ms: 9, statistic: p90}"])
    rows = with_intervals(sweep, judged(sweep), {0: found(p90_e2e_latency_ms=(1.0, 2.0))})
    assert trials_table(sweep, rows)["p90_e2e_latency_ms_high"].to_list() == [2.0, None, None]


def sampled(**values: list[float | None]) -> dict[str, Any]:
    return {**found(2), "samples": values}


def test_verdicts_are_compared_replay_by_replay(sweep: SweepConfig) -> None:
    known = {
        0: sampled(**{PER_GPU: [10.0, 8.0], PER_USER: [1.0, 0.5], TTFT: [99.0, 101.0]}),
        1: sampled(**{PER_GPU: [9.5, 9.0], PER_USER: [4.0, 4.0], TTFT: [50.0, 50.0]}),
    }
    rows = with_intervals(sweep, judged(sweep), known)
    assert rows[0].shares == {
        "is_pareto_share": 0.5, "is_sla_pareto_share": 0.5, "meets_sla_share": 0.5,
    }  # fmt: skip
    assert rows[1].shares == {
        "is_pareto_share": 1.0, "is_sla_pareto_share": 1.0, "meets_sla_share": 1.0,
    }  # fmt: skip
    assert rows[2].shares == {}
    table = trials_table(sweep, rows)
    assert table["is_pareto_share"].to_list() == [0.5, 1.0, None]


def test_what_moves_all_trials_together_changes_no_order(sweep: SweepConfig) -> None:
    factors = (0.5, 1.0, 2.0)  # intervals overlap by far
    known = {
        index: {
            **sampled(**{PER_GPU: [f * y for f in factors], PER_USER: [f * x for f in factors]})
        }
        for index, (y, x, _) in enumerate(VALUES[:2])
    }
    for part in known.values():
        part["replays"] = len(factors)
    rows = with_intervals(sweep, judged(sweep), known)
    assert [row.shares["is_pareto_share"] for row in rows[:2]] == [1.0, 1.0]


def test_trials_are_on_the_frontier_of_the_sla_only_while_they_meet_it(sweep: SweepConfig) -> None:
    judgement = judged(sweep, [(10.0, 5.0, 900.0), *VALUES[1:]])
    known = {0: sampled(**{TTFT: [900.0, 900.0]}), 1: sampled(**{TTFT: [50.0, 150.0]})}
    rows = with_intervals(sweep, judgement, known)
    assert rows[0].shares["is_sla_pareto_share"] is None
    assert rows[0].shares["meets_sla_share"] == 0.0
    assert rows[1].shares["is_pareto_share"] is None
    assert rows[1].shares["is_sla_pareto_share"] == 0.5


def test_less_is_better_where_sought_and_nothing_completed_is_nowhere(sweep_file: Path) -> None:
    sweep = load_sweep(
        sweep_file, [f"objectives={{{TTFT}: min, {PER_GPU}: max}}", "constraints.sla=null"]
    )
    known = {
        0: sampled(**{TTFT: [40.0, 40.0], PER_GPU: [10.0, None]}),
        1: sampled(**{TTFT: [50.0, 50.0], PER_GPU: [8.0, 8.0]}),
    }
    rows = with_intervals(sweep, judged(sweep), known)
    assert rows[0].shares == {"is_pareto_share": 0.5}
    assert rows[1].shares == {"is_pareto_share": 0.5}


def test_winner_files_come_and_go_with_the_intervals(sweep: SweepConfig, tmp_path: Path) -> None:
    rows = judged(sweep)
    intervals = with_intervals(
        sweep, rows, {0: found(**{PER_GPU: (9.0, 11.0), "p75_tpot_ms": (1, 2)})}
    )
    for given in (intervals, rows):
        write_artifacts(tmp_path, sweep, given, sweep_hash="abc", sweep_yaml="")
        path = tmp_path / "agg" / "top1" / "intervals.json"
        assert path.exists() == (given is intervals)
        if path.exists():
            assert set(json.loads(path.read_text())["metrics"]) == {PER_GPU, "p75_tpot_ms"}
        assert (path.parent / "config.yaml").exists()
    write_artifacts(tmp_path, sweep, intervals, sweep_hash="abc", sweep_yaml="")
    write_artifacts(tmp_path, sweep, [], sweep_hash="abc", sweep_yaml="")
    assert list((tmp_path / "agg").iterdir()) == []
