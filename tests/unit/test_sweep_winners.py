"""Which trials get a folder: one of every family before the winner's neighbours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.answer import answer_of
from dynosim.sweep.operating_point import config_at_capacity
from dynosim.sweep.results import Row
from dynosim.sweep.space import trials_of
from dynosim.sweep.winners import ranked_winners, winners_of

FILE = """\
name: s
workload: {synthetic: {requests: 10, isl: 100, osl: 10, rate_rps: 5}, arrival_scale: 2}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
space: {engine.tensor_parallel: [1, 2, 4], router.mode: [round-robin, least-loaded, kv]}
load: {search: capacity}
top: 4
"""


@pytest.fixture
def sweep(tmp_path: Path) -> SweepConfig:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return load_sweep(path)


def rows_of(sweep: SweepConfig, good: list[float], speeds: list[float], **more: Any) -> list[Row]:
    """All nine, TP by TP; `good` are good tokens/s per GPU. Brackets are too narrow for ties."""
    return [
        Row(
            trial, "ok", "",
            {
                "capacity_load": 1.5, "capacity_load_failed": 1.5001, "num_gpus": 1,
                "goodput_output_throughput_tok_s": good[trial.index],
                "median_output_token_throughput_per_user": speeds[trial.index], **more,
            },
            True,
        )
        for trial in trials_of(sweep)
    ]  # fmt: skip


GOOD = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


def chosen(sweep: SweepConfig, rows: list[Row]) -> dict[int, tuple[str, ...]]:
    winners = winners_of(sweep, rows, answer_of(rows))
    return {winner.row.trial.index: winner.roles for winner in winners}


def test_the_best_of_each_family_comes_before_the_next_best(sweep: SweepConfig) -> None:
    found = chosen(sweep, rows_of(sweep, GOOD, [5.0] * 9))
    assert list(found) == [0, 3, 6, 1]
    assert found == {
        0: ("best", "fastest for users", "cheapest"),
        3: ("best of agg TP2",),
        6: ("best of agg TP4",),
        1: ("next best",),
    }


def test_the_fastest_is_added_beyond_the_number_that_was_asked_for(sweep: SweepConfig) -> None:
    speeds = [5.0] * 8 + [9.0]
    found = chosen(replace(sweep, top=2), rows_of(sweep, GOOD, speeds))
    assert list(found) == [0, 3, 8]
    assert found[8] == ("fastest for users",)


def test_the_cheapest_is_named_where_a_tie_was_won_by_speed(sweep: SweepConfig) -> None:
    """Trial 1 is as good as 0 within the brackets, and faster."""
    rows = rows_of(sweep, GOOD, [5.0, 6.0, *[5.0] * 7], capacity_load_failed=2.0)
    found = chosen(replace(sweep, top=1), rows)
    assert found == {1: ("best", "fastest for users"), 0: ("cheapest",)}


def test_nobody_is_called_fastest_where_speeds_are_unknown(sweep: SweepConfig) -> None:
    rows = [
        replace(row, report={**row.report, "median_output_token_throughput_per_user": None})
        for row in rows_of(sweep, GOOD, [1.0] * 9)
    ]
    roles = [role for winner in ranked_winners(rows, top=9) for role in winner.roles]
    assert "fastest for users" not in roles and len(roles) == 10
    assert ranked_winners([], top=3) == []


# ---- the load that a winner's run file brings ----------------------------------------------------


def test_a_run_file_brings_the_load_that_is_carried(sweep: SweepConfig) -> None:
    row = rows_of(sweep, GOOD, GOOD, workload_repeat=3)[0]
    workload = config_at_capacity(sweep, row).workload
    assert (workload.arrival_scale, workload.repeat, workload.concurrency) == (3.0, 3, None)
    assert row.trial.config is not None and row.trial.config.workload.arrival_scale == 2.0


def test_in_a_closed_loop_that_is_what_is_in_flight(sweep: SweepConfig) -> None:
    closed = replace(sweep, load=sweep.load.model_copy(update={"vary": "concurrency"}))
    row = rows_of(sweep, GOOD, GOOD, capacity_load=12.0)[0]
    workload = config_at_capacity(closed, row).workload
    assert (workload.concurrency, workload.arrival_scale, workload.repeat) == (12, 2.0, 1)


def test_without_a_capacity_the_workload_is_as_it_is(sweep: SweepConfig) -> None:
    row = rows_of(sweep, GOOD, GOOD, capacity_load=None)[0]
    assert config_at_capacity(sweep, row) is row.trial.config
    fixed = replace(sweep, load=sweep.load.model_copy(update={"search": "fixed"}))
    assert config_at_capacity(fixed, rows_of(sweep, GOOD, GOOD)[0]).workload.arrival_scale == 2.0
