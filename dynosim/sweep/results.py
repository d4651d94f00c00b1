"""What a finished sweep says: the table of trials, its frontier, and the best of it.

Nothing here depends on real time or on the order in which trials ended.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.sweep_schema import SweepSla
from dynosim.plots.trials import LAYOUT
from dynosim.sweep.ledger import Record
from dynosim.sweep.pareto import pareto_front
from dynosim.sweep.space import Trial
from dynosim.sweep.status import INFEASIBLE, OK
from dynosim.sweep.study import USER_SPEED

if TYPE_CHECKING:
    import polars as pl

_TEXTS = ("status", "reason", "config_hash")
"""Columns of words, be there any or not."""
CAPACITY, FAILED_LOAD = "capacity_load", "capacity_load_failed"
"""The keys of the largest load that a layout carries, None: none, and of the first that failed."""
NOT_PURSUED = "capacity_not_pursued"
"""The key of why a layout's capacity was not sought to the end; not there where it was."""
THROUGHPUT_PER_GPU = "output_tok_s_per_gpu"
_SHOWN_WITH_INTERVALS = (
    THROUGHPUT_PER_GPU,
    USER_SPEED,
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_itl_ms",
    "p99_itl_ms",
    "prefix_cache_reused_ratio",
    "sla_attainment",
    "goodput_rps",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One trial and its verdicts. `meets_sla` is None for a trial that did not run."""

    trial: Trial
    status: str
    reason: str
    report: Mapping[str, Any]
    meets_sla: bool | None
    is_pareto: bool = False  # no other finished trial beats it
    is_sla_pareto: bool = False  # no other finished trial that meets the SLA beats it
    intervals: Mapping[str, Any] | None = None  # `Intervals.to_dict`, where they were made
    shares: Mapping[str, float | None] = field(default_factory=dict)  # of replays, by verdict
    draws: Sequence[float] = ()  # the capacity if other sessions had come, the same for all rows


def named_values(row: Row) -> dict[str, Any]:
    """What a trial's name is made of: what varied, and how many workers each of its pools has."""
    config = row.trial.config
    is_split = config is not None and config.cluster.is_disagg
    layout = {LAYOUT: config.layout} if config is not None and is_split else {}
    return {"trial_id": row.trial.index, **layout, **row.trial.values}


def judge(sweep: SweepConfig, trials: Sequence[Trial], records: Mapping[int, Record]) -> list[Row]:
    """Every trial that has ended, in order, with its verdicts."""
    rows = []
    for trial in trials:
        record = records.get(trial.index)
        if trial.config is None:
            rows.append(Row(trial, INFEASIBLE, trial.reason, {}, None))
        elif record is not None:
            report = record["report"]
            is_ok = record["status"] == OK
            verdict = _verdict(sweep, report) if is_ok else None
            status, reason, draws = record["status"], record["reason"], record.get("draws", ())
            rows.append(Row(trial, status, reason, report, verdict, draws=draws))
    reports = [row.report for row in rows]
    stable = [row.status == OK and not row.report.get("saturated") for row in rows]
    front = front_of(sweep, reports, stable)
    sla_front = front_of(sweep, reports, [row.meets_sla is True for row in rows])
    return [
        replace(row, is_pareto=on_front, is_sla_pareto=on_sla_front)
        for row, on_front, on_sla_front in zip(rows, front, sla_front, strict=True)
    ]


def _verdict(sweep: SweepConfig, report: Mapping[str, Any]) -> bool:
    if sweep.load.need is not None:
        return report.get("need_is_held") is True
    if sweep.load.search != "fixed":
        return report.get(CAPACITY) is not None
    return meets(sweep.constraints.sla, report)


def meets(sla: SweepSla | None, report: Mapping[str, Any]) -> bool:
    """Whether so many requests keep every bound as the SLA asks for; where it names a statistic,
    whether that of each bounded latency is within its bound.

    Without inter-token gaps their bound is kept. A trial that completed nothing keeps no bound, and
    neither does one that was offered more than it sustained.
    """
    if not report.get("completed_requests") or report.get("saturated"):
        return False
    if sla is None:
        return True
    if sla.statistic is None:
        attainment = report.get("sla_attainment")
        return attainment is None or attainment >= sla.share
    measured = [(report.get(key), bound) for key, bound in _sla_bounds(sla).items()]
    return all(value is None or value <= bound for value, bound in measured)


def _sla_bounds(sla: SweepSla) -> dict[str, float]:
    """Upper bounds by key of the report, where a statistic is to keep them."""
    if sla.statistic is None:
        return {}
    bounds = (("ttft_ms", sla.ttft_ms), ("itl_ms", sla.itl_ms), ("e2e_latency_ms", sla.e2e_ms))
    return {f"{sla.statistic}_{metric}": bound for metric, bound in bounds if bound is not None}


def shown_bounds(sweep: SweepConfig, row: Row) -> dict[str, tuple[float, float]]:
    """The intervals of objectives, of what the SLA bounds, and of what tables show."""
    if row.intervals is None:
        return {}
    sla = sweep.constraints.sla
    bounded = () if sla is None else _sla_bounds(sla)
    keys = dict.fromkeys((*sweep.objectives, *bounded, *_SHOWN_WITH_INTERVALS))
    metrics = row.intervals["metrics"]
    return {key: (metrics[key][0], metrics[key][1]) for key in keys if key in metrics}


def frontier_rows(sweep: SweepConfig, rows: Sequence[Row]) -> list[Row]:
    """The trials to recommend, best first.

    Rule: on the frontier of the trials that meet the SLA; most output tokens/s per GPU first, then
    fewer GPUs, then the lower index. Of trials with equal objectives and GPUs only the first.
    """
    front = sorted((row for row in rows if row.is_sla_pareto), key=_rank)
    chosen: dict[tuple[Any, ...], Row] = {}
    for row in front:
        chosen.setdefault((*objective_values(sweep, row.report), row.report.get("num_gpus")), row)
    return list(chosen.values())


def trials_table(sweep: SweepConfig, rows: Sequence[Row]) -> "pl.DataFrame":
    """One row per trial: verdicts, the space's keys, the report's keys; null where none is.

    Ends of intervals are `{key}_low` and `{key}_high`, shares of replays `{verdict}_share`; the
    columns are there if any trial has them.
    """
    columns: dict[str, list[Any]] = {
        "trial_id": [row.trial.index for row in rows],
        "status": [row.status for row in rows],
        "reason": [row.reason or None for row in rows],
        "config_hash": [row.trial.config_hash for row in rows],
        "is_pareto": [row.is_pareto for row in rows],
        "is_sla_pareto": [row.is_sla_pareto for row in rows],
        "meets_sla": [row.meets_sla for row in rows],
    }
    for dimension in sweep.dimensions:
        columns[dimension.key] = [row.trial.values.get(dimension.key) for row in rows]
    names = dict.fromkeys(key for row in rows for key in row.report)
    for name in names:
        columns.setdefault(name, [row.report.get(name) for row in rows])
    for name in dict.fromkeys(key for row in rows for key in row.shares):
        columns[name] = [row.shares.get(name) for row in rows]
    bounds = [shown_bounds(sweep, row) for row in rows]
    for name in dict.fromkeys(key for shown in bounds for key in shown):
        for end, side in enumerate(("low", "high")):
            columns[f"{name}_{side}"] = [
                shown[name][end] if name in shown else None for shown in bounds
            ]
    return table_of(columns)


def table_of(columns: Mapping[str, list[Any]]) -> "pl.DataFrame":
    """Columns of values of any kind as a table."""
    import polars as pl

    return pl.DataFrame([_series(name, values) for name, values in columns.items()])


def objective_names(sweep: SweepConfig) -> tuple[str, str]:
    """The two objectives that plots show: upwards, and to the right."""
    names = [*sweep.objectives, USER_SPEED, THROUGHPUT_PER_GPU]
    first, second = list(dict.fromkeys(names))[:2]
    return first, second


def _rank(row: Row) -> tuple[float, float, int]:
    throughput = row.report.get(THROUGHPUT_PER_GPU)
    gpus = row.report.get("num_gpus")
    return (
        math.inf if throughput is None else -throughput,
        math.inf if gpus is None else gpus,
        row.trial.index,
    )


def objective_values(sweep: SweepConfig, report: Mapping[str, Any]) -> tuple[float, ...]:
    """What is sought, from a report; NaN where it has none."""
    values = (report.get(name) for name in sweep.objectives)
    return tuple(math.nan if value is None else float(value) for value in values)


def front_of(
    sweep: SweepConfig, reports: Sequence[Mapping[str, Any]], allowed: Sequence[bool]
) -> list[bool]:
    """Which of the allowed reports no other allowed one beats in all objectives."""
    nothing = (math.nan,) * len(sweep.objectives)
    table = [
        objective_values(sweep, report) if is_allowed else nothing
        for report, is_allowed in zip(reports, allowed, strict=True)
    ]
    if not table:
        return []
    maximize = [goal == "max" for goal in sweep.objectives.values()]
    front: list[bool] = pareto_front(np.array(table, dtype=np.float64), maximize).tolist()
    return front


def _series(name: str, values: list[Any]) -> "pl.Series":
    """A column of the narrowest type that holds all values; lists and sections as JSON."""
    import polars as pl

    kinds = {type(value) for value in values if value is not None}
    if name in _TEXTS:
        return pl.Series(name, values, dtype=pl.String)
    if kinds <= {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds <= {int}:
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds <= {int, float}:
        numbers = [None if value is None else float(value) for value in values]
        return pl.Series(name, numbers, dtype=pl.Float64)
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pl.Series(name, texts, dtype=pl.String)
