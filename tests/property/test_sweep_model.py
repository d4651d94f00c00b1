"""A sweep's verdicts against their definitions: frontiers, the best, shares, the table."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.sweep_schema import SweepConstraints, SweepSla
from dynosim.sweep.artifacts import summarize_sweep
from dynosim.sweep.frontier_intervals import with_intervals
from dynosim.sweep.results import THROUGHPUT_PER_GPU, Row, frontier_rows, judge, trials_table
from dynosim.sweep.space import Trial, trials_of
from dynosim.sweep.winners import Winner, winners_of

SEEDS = st.integers(0, 2**32 - 1)
FILE = """\
workload: {trace: t.jsonl}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
load: {search: fixed}
space: {cluster.workers: [1]}
"""
PER_USER, TTFT = "mean_output_token_throughput_per_user", "mean_ttft_ms"
KEYS = (THROUGHPUT_PER_GPU, PER_USER, TTFT, "p90_itl_ms", "p90_e2e_latency_ms")
Report = dict[str, Any]


@cache
def base_sweep() -> SweepConfig:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(FILE)
        return load_sweep(path)


def random_sweep(rng: random.Random) -> SweepConfig:
    """One to three objectives of either direction, with and without bounds."""
    names = rng.sample([*KEYS, "num_gpus"], rng.randint(1, 3))
    slas = [
        None,
        SweepSla(ttft_ms=2.0),
        SweepSla(itl_ms=2.0, e2e_ms=3.0, statistic="p90"),
        SweepSla(itl_ms=1.0, statistic="p99"),  # no trial tells it
    ]
    return replace(
        base_sweep(),
        objectives={name: rng.choice(["max", "min"]) for name in names},
        constraints=SweepConstraints(sla=rng.choice(slas)),
        top=rng.randint(1, 4),
    )


def random_report(rng: random.Random) -> Report:
    """Few different values, so that much is equal; some are missing or null."""
    report: Report = {"completed_requests": rng.choice([0, 3, 3, 3, None])}
    for name in KEYS:
        if rng.random() < 0.95:
            report[name] = rng.choice([None, 1.0, 2.0, 3.0, 3.0])
    report["num_gpus"] = rng.choice([1, 2, 2, None])
    return report


def random_trials(rng: random.Random) -> tuple[list[Trial], dict[int, dict[str, Any]]]:
    config = trials_of(base_sweep())[0].config
    trials, records = [], {}
    for index in range(rng.randint(0, 9)):
        values = {"cluster.workers": index}
        if rng.random() < 0.1:
            trials.append(Trial(index, values, None, "too large"))
            continue
        trials.append(Trial(index, values, config))
        status = rng.choice(["ok"] * 8 + ["failed", "infeasible"])
        report = random_report(rng) if status == "ok" else {}
        if rng.random() < 0.9:  # else it has not ended
            records[index] = {"status": status, "reason": f"r{index}", "report": report}
    return trials, records


def meets(sweep: SweepConfig, report: Report) -> bool:
    sla = sweep.constraints.sla
    if not report.get("completed_requests"):
        return False
    if sla is None:
        return True
    bounds = {"ttft_ms": sla.ttft_ms, "itl_ms": sla.itl_ms, "e2e_latency_ms": sla.e2e_ms}
    return not any(
        bound is not None and (value := report.get(f"{sla.statistic}_{name}")) is not None
        and value > bound
        for name, bound in bounds.items()
    )  # fmt: skip


def beats(sweep: SweepConfig, one: Report, other: Report) -> bool:
    """At least as good in every objective, and better in one."""
    signs = {name: 1 if goal == "max" else -1 for name, goal in sweep.objectives.items()}
    gains = [signs[name] * (one[name] - other[name]) for name in signs]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def on_front(sweep: SweepConfig, reports: list[Report | None]) -> list[bool]:
    """Which reports no other one beats; None and one without an objective take no part."""
    whole = [
        report
        if report is not None and all(report.get(name) is not None for name in sweep.objectives)
        else None
        for report in reports
    ]
    return [
        one is not None and not any(other and beats(sweep, other, one) for other in whole)
        for one in whole
    ]


def check_verdicts(sweep: SweepConfig, rows: list[Row]) -> None:
    ran = [dict(row.report) if row.status == "ok" else None for row in rows]
    met = [report is not None and meets(sweep, report) for report in ran]
    assert [row.meets_sla for row in rows] == [
        None if report is None else good for report, good in zip(ran, met, strict=True)
    ]
    assert [row.is_pareto for row in rows] == on_front(sweep, ran)
    allowed = [report if good else None for report, good in zip(ran, met, strict=True)]
    assert [row.is_sla_pareto for row in rows] == on_front(sweep, allowed)


def recommended(sweep: SweepConfig, rows: list[Row]) -> list[int]:
    """Most tokens/s per GPU first, then fewer GPUs, then the lower trial; equal ones once."""

    def rank(row: Row) -> tuple[float, float, int]:
        speed, gpus = row.report.get(THROUGHPUT_PER_GPU), row.report.get("num_gpus")
        last = float("inf")
        return last if speed is None else -speed, last if gpus is None else gpus, row.trial.index

    seen, chosen = [], []
    for row in sorted((row for row in rows if row.is_sla_pareto), key=rank):
        kind = [row.report.get(name) for name in (*sweep.objectives, "num_gpus")]
        if kind not in seen:
            seen.append(kind)
            chosen.append(row.trial.index)
    return chosen


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_verdicts_and_recommendations_are_what_their_rules_say(seed: int) -> None:
    rng = random.Random(seed)
    sweep, (trials, records) = random_sweep(rng), random_trials(rng)
    rows = judge(sweep, trials, records)
    ended = [trial for trial in trials if trial.config is None or trial.index in records]
    assert [row.trial for row in rows] == ended
    for row in rows:
        known = records.get(row.trial.index)
        wanted = ("infeasible", "too large", {}) if known is None else tuple(known.values())
        assert (row.status, row.reason, row.report) == wanted
    check_verdicts(sweep, rows)
    best = frontier_rows(sweep, rows)
    assert [row.trial.index for row in best] == recommended(sweep, rows)
    winners = winners_of(sweep, rows, None)
    assert [winner.row for winner in winners][: sweep.top] == best[: sweep.top]  # one family
    check_summary(sweep, rows, winners)
    check_table(sweep, rows)


def check_summary(sweep: SweepConfig, rows: list[Row], winners: list[Winner]) -> None:
    summary = summarize_sweep(sweep, rows, winners, sweep_hash="abc")
    best = [winner.row for winner in winners]
    counts = {
        name: sum(row.status == name for row in rows) for name in ("ok", "infeasible", "failed")
    }
    assert (summary["counts"], summary["num_trials"]) == (counts, len(rows))
    assert summary["num_meeting_sla"] == sum(row.meets_sla is True for row in rows)
    assert [brief["trial_id"] for brief in summary["pareto"]] == [
        row.trial.index for row in rows if row.is_pareto
    ]
    assert [brief["trial_id"] for brief in summary["top"]] == [row.trial.index for row in best]
    for place, (brief, row) in enumerate(zip(summary["top"], best, strict=True), 1):
        assert brief["config"] == f"agg/top{place}/config.yaml"
        assert (brief["values"], brief["meets_sla"]) == (row.trial.values, True)
        for name in (*sweep.objectives, "num_gpus", THROUGHPUT_PER_GPU, TTFT):
            assert brief[name] == row.report.get(name)
    assert [entry["trial_id"] for entry in summary["not_run"]] == [
        row.trial.index for row in rows if row.status != "ok"
    ]


def check_table(sweep: SweepConfig, rows: list[Row]) -> None:
    """Every cell of the table of trials."""
    table = trials_table(sweep, rows)
    names = list(dict.fromkeys(name for row in rows for name in row.report))
    assert set(table.columns) == {
        "trial_id", "status", "reason", "config_hash", "is_pareto", "is_sla_pareto", "meets_sla",
        "cluster.workers", *names,
    }  # fmt: skip
    for cells, row in zip(table.iter_rows(named=True), rows, strict=True):
        assert cells == {
            "trial_id": row.trial.index,
            "status": row.status,
            "reason": row.reason,
            "config_hash": row.trial.config_hash,
            "is_pareto": row.is_pareto,
            "is_sla_pareto": row.is_sla_pareto,
            "meets_sla": row.meets_sla,
            "cluster.workers": row.trial.values["cluster.workers"],
            **{name: row.report.get(name) for name in names},
        }


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_shares_are_counted_replay_by_replay(seed: int, num_replays: int) -> None:
    """Of the trials with samples, with everything else as in the trial's own report."""
    rng = random.Random(seed)
    sweep, (trials, records) = random_sweep(rng), random_trials(rng)
    rows = judge(sweep, trials, records)
    shown = [row for row in rows if row.is_pareto or row.is_sla_pareto]
    sampled = rng.sample(shown, rng.randint(0, len(shown)))
    known = {
        row.trial.index: {
            "replays": num_replays,
            "metrics": {},
            "samples": {
                name: [rng.choice([None, 1.0, 2.0, 3.0]) for _ in range(num_replays)]
                for name in rng.sample(KEYS, 3)
            },
        }
        for row in sorted(sampled, key=lambda row: row.trial.index)
    }
    found = {row.trial.index: row for row in with_intervals(sweep, rows, known)}
    assert list(found) == [row.trial.index for row in rows]
    part = [row for row in rows if row.trial.index in known]
    kept = [verdicts(sweep, part, known, replay) for replay in range(num_replays)]
    for place, row in enumerate(part):
        share = [sum(one[column][place] for one in kept) / num_replays for column in range(3)]
        wanted = {"is_pareto_share": share[0] if row.is_pareto else None}
        if sweep.constraints.sla is not None:
            wanted["is_sla_pareto_share"] = share[1] if row.is_sla_pareto else None
            wanted["meets_sla_share"] = share[2]
        assert found[row.trial.index].shares == wanted
        assert found[row.trial.index].intervals == {"replays": num_replays, "metrics": {}}
    for index in found.keys() - known.keys():
        assert (found[index].shares, found[index].intervals) == ({}, None)


def verdicts(
    sweep: SweepConfig, rows: list[Row], known: dict[int, dict[str, Any]], replay: int
) -> tuple[list[bool], list[bool], list[bool]]:
    """Of one replay: who of those on a frontier is on it still, and who keeps to the SLA."""
    reports = [
        {**row.report}
        | {name: values[replay] for name, values in known[row.trial.index]["samples"].items()}
        for row in rows
    ]
    met = [meets(sweep, report) for report in reports]
    pareto = [one if row.is_pareto else None for one, row in zip(reports, rows, strict=True)]
    allowed = [
        one if row.is_sla_pareto and good else None
        for one, row, good in zip(reports, rows, met, strict=True)
    ]
    return on_front(sweep, pareto), on_front(sweep, allowed), met
