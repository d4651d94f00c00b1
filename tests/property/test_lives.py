"""Workers that live for part of a run: every figure against a plain second computation.

The runs are of workers that were there all along; lives that could have been theirs, and further
workers that nobody placed anything on, are made up.
"""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_run import plain_run
from naive_tables import timeline_rows
from report_runs import Told, told_run
from test_report_definitions import check_report, check_rows

from dynosim.experiment.sent_ahead import AHEAD_KEYS
from dynosim.metrics import check_conservation, summarize, timeline_table
from dynosim.metrics.lives import lived_ms, lived_shares, mean_gpus, most_at_once
from dynosim.records import IntArray, RunResult, WorkerLog

SEEDS = st.integers(0, 2**32 - 1)
TIMES_MS = st.integers(0, 30)
LIVES = st.lists(
    st.tuples(st.integers(0, 4), TIMES_MS, st.none() | TIMES_MS).filter(
        lambda life: life[2] is None or life[2] >= life[1]
    ),
    max_size=6,
)


# ---- sums over lives, millisecond by millisecond ---------------------------------------------


def log_of(lives: list[tuple[int, int, int | None]]) -> WorkerLog:
    """Workers of so many GPUs, launched and ended at these times."""
    count = len(lives)
    launched_ms = np.array([float(launched) for _, launched, _ in lives])
    return replace(
        WorkerLog.equal(count),
        gpus=np.array([gpus for gpus, _, _ in lives], np.int64),
        launched_ms=launched_ms,
        ready_ms=launched_ms,
        ended_ms=np.array([math.nan if end is None else float(end) for _, _, end in lives]),
    )


def held(lives: list[tuple[int, int, int | None]], now_ms: int) -> int:
    """GPUs held in the millisecond that begins at `now_ms`."""
    return sum(
        gpus
        for gpus, launched, ended in lives
        if launched <= now_ms and (ended is None or now_ms < ended)
    )


@given(LIVES, TIMES_MS, TIMES_MS)
def test_gpu_time_is_the_sum_of_what_is_held_each_millisecond(
    lives: list[tuple[int, int, int | None]], start_ms: int, length_ms: int
) -> None:
    workers, end_ms = log_of(lives), start_ms + length_ms
    gpu_ms = sum(held(lives, now_ms) for now_ms in range(start_ms, end_ms))
    if length_ms:
        assert mean_gpus(workers, start_ms, end_ms) * length_ms == pytest.approx(gpu_ms)
    cells = lived_ms(workers, np.arange(start_ms, end_ms, 1.0), np.ones(length_ms))
    np.testing.assert_array_equal(workers.gpus @ cells, [held(lives, ms) for ms in
                                                         range(start_ms, end_ms)])  # fmt: skip


@given(LIVES, TIMES_MS)
def test_the_most_at_once_is_the_largest_of_all_instants(
    lives: list[tuple[int, int, int | None]], end_ms: int
) -> None:
    workers = log_of(lives)
    most = max((held(lives, now_ms) for now_ms in range(end_ms + 1)), default=0)
    assert most_at_once(workers, workers.gpus, end_ms) == most


@given(st.integers(1, 100), st.integers(1, 16), st.floats(0.1, 1e9), st.floats(0.0, 0.9))
def test_workers_that_are_there_all_along_count_whole(
    count: int, gpus: int, end_ms: float, share: float
) -> None:
    """To the last bit, however long the run was."""
    workers = WorkerLog.equal(count, gpus=gpus)
    for start_ms in (0.0, share * end_ms):
        assert lived_shares(workers, start_ms, end_ms).tolist() == [1.0] * count
        assert mean_gpus(workers, start_ms, end_ms) == count * gpus
    assert most_at_once(workers, workers.gpus, end_ms) == count * gpus


# ---- reports and tables ----------------------------------------------------------------------


def with_lives(result: RunResult, rng: random.Random) -> RunResult:
    """The same steps and requests, by workers that came and went as they could have."""
    old, steps, log = result.workers, result.steps, result.requests
    launched, ready, ended = [], [], []
    for worker in range(len(old)):
        starts = steps.start_ms[steps.worker_id == worker].tolist()
        ends = (steps.start_ms + steps.duration_ms)[steps.worker_id == worker].tolist()
        placed = log.dispatch_ms[log.worker_id == worker].tolist()
        first_ms, last_ms = min([*starts, *placed, result.end_ms]), max([*ends, *placed, 0.0])
        ready.append(rng.choice([0.0, rng.uniform(0.0, first_ms)]))
        launched.append(rng.choice([0.0, 0.0, rng.uniform(0.0, ready[-1])]) if ready[-1] else 0.0)
        last_ms = max(last_ms, ready[-1])
        ends_early = last_ms < result.end_ms and rng.random() < 0.6
        ended.append(rng.uniform(last_ms, result.end_ms) if ends_early else math.nan)
    for _ in range(rng.randrange(3)):
        launched.append(rng.uniform(0.0, result.end_ms))
        ready.append(rng.choice([math.nan, launched[-1]]))
        ended.append(rng.choice([math.nan, rng.uniform(launched[-1], result.end_ms)]))
    more = len(launched) - len(old)
    workers = WorkerLog(
        pool=old.pool + ("later",) * more,
        role=old.role + ("agg",) * more,
        gpus=extended(old.gpus, more, rng),
        usable_blocks=extended(old.usable_blocks, more, rng),
        step_time_scale=np.append(old.step_time_scale, np.ones(more)),
        launched_ms=np.array(launched),
        ready_ms=np.array(ready),
        ended_ms=np.array(ended),
        seats=np.append(old.seats, np.full(more, old.seats[0])),
    )
    return replace(result, workers=workers)


def extended(values: IntArray, more: int, rng: random.Random) -> IntArray:
    """By equal values or by others."""
    other = int(values[0]) * rng.choice([1, 1, 3])
    return np.append(values, np.full(more, other)).astype(np.int64)


def lived(seed: int) -> Told:
    """A run with made-up lives, and its report."""
    told = told_run(seed)
    outcome = told.outcome
    result = with_lives(outcome.result, random.Random(f"{seed}/lives"))
    known = ("skipped_lines", "assumed_lengths", "max_model_len")
    known += (*AHEAD_KEYS, *outcome.capacity.report_keys())
    report = summarize(result, outcome.timing, sla=outcome.config.sla, wall_time_ms=1e9)
    report |= {key: outcome.report[key] for key in known}
    outcome = replace(outcome, result=result, report=report)
    return Told(outcome, told.served, plain_run(result, outcome.trace, told.served))


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_figures_of_workers_that_come_and_go(seed: int) -> None:
    told = lived(seed)
    check_conservation(told.outcome.result, told.outcome.trace)
    check_report(told)
    check_rows(timeline_table(told.outcome.result).to_dicts(), timeline_rows(told.run))


def test_the_lives_are_of_all_kinds() -> None:
    told = [lived(seed) for seed in range(30)]
    reports = [one.outcome.report for one in told]
    logs = [one.outcome.result.workers for one in told]
    assert any(report["gpus_per_worker"] is None for report in reports)
    assert any(report["num_gpu_blocks"] is None for report in reports)
    assert any(report["num_workers"] < len(log) for report, log in zip(reports, logs, strict=True))
    assert any(np.isnan(log.ready_ms).any() for log in logs)
    assert any((log.launched_ms < log.ready_ms).any() for log in logs)
    assert any((~np.isnan(log.ended_ms)).any() for log in logs)
    assert any(report["saturation_sustained_tok_s"] for report in reports)
