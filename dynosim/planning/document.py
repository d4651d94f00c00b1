"""What a comparison says: report.json, its tables, and the decisions with their reasons."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim import __version__
from dynosim.config.formats import PLAN_SCHEMA
from dynosim.config.loading import resolved
from dynosim.metrics.scaling import replica_table
from dynosim.planner.look import Look, decision_row
from dynosim.planning.fixed import layout
from dynosim.planning.played import OfferedLoad, Played, good_by_bin, held_by_bin
from dynosim.planning.study import PERFECT, Contestant, PlanStudy

if TYPE_CHECKING:
    import polars as pl

_FROM_REPORT = {
    "gpu_hours": "gpu_hours",
    "sla_attainment": "sla_attainment",
    "p95_ttft_ms": "p95_ttft_ms",
    "p95_itl_ms": "p95_itl_ms",
    "num_scale_ups": "num_scale_ups",
    "num_scale_downs": "num_scale_downs",
    "peak_workers": "num_workers",
    "num_requests": "num_requests",
}
FIGURES = (*_FROM_REPORT, "missed_requests")
"""What is said of each contestant: the mean of its seeds."""


def plan_document(study: PlanStudy) -> dict[str, Any]:
    """report.json of a comparison. The same study says the same: nothing of the process is in."""
    base = study.file.base
    assert base.sla is not None, "a plan file has one"
    rows = [_row(one) for one in study.contestants]
    bound = next((row["gpu_hours"] for row in rows if row["name"] == PERFECT), None)
    for row in rows:
        hours = row["gpu_hours"]
        row["gpu_hours_by_perfect"] = hours / bound if bound and hours is not None else None
    return {
        "schema": PLAN_SCHEMA,
        "name": base.name,
        "trace_source": study.loads[0].trace.source,
        "seeds": [load.seed for load in study.loads],
        "mean_rps": float(np.mean([load.mean_rps for load in study.loads])),
        "sla": base.sla.model_dump(mode="json", exclude_none=True),
        "attainment_target": study.asked.attainment,
        "bin_s": study.loads[0].bin_ms / 1e3,
        "static_peak": layout(study.peak),
        "notes": list(study.notes),
        "contestants": rows,
        "timing_source": _first_report(study)["timing_source"],
        "timing_description": _first_report(study)["timing_description"],
        "dynosim_version": __version__,
        "config": resolved(study.file.fixed(study.peak)),
    }


def _first_report(study: PlanStudy) -> dict[str, Any]:
    return study.fixed.of(study.peak)[0].report


def _row(one: Contestant) -> dict[str, Any]:
    by_seed = [{"seed": run.outcome.config.seed, **_figures(run)} for run in one.runs]
    means = {key: _mean([row[key] for row in by_seed]) for key in FIGURES}
    return {
        "name": one.name,
        "goes_by": one.goes_by,
        "why_not": one.why_not or None,
        "section": one.section,
        **means,
        "by_seed": by_seed,
        "changes": changes_of(one.runs[0].outcome.looks) if one.runs else [],
    }


def _figures(run: Played) -> dict[str, Any]:
    report = run.report
    figures = {key: report[source] for key, source in _FROM_REPORT.items()}
    missed = report["num_requests"] - report["goodput_completed_requests"]
    return figures | {"missed_requests": missed}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean = float(np.mean(known))
    return int(mean) if mean.is_integer() and all(isinstance(one, int) for one in known) else mean


def changes_of(looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Decisions that asked for another number of workers than was wanted before, with reasons."""
    changes = []
    for look in looks:
        if look.decision is None or look.decision.is_advisory:
            continue
        for one in look.decision.pools:
            wanted = look.seen.pool(one.pool).wanted
            if one.target != wanted:
                changes.append(
                    {
                        "at_s": look.decision.now_ms / 1e3,
                        "pool": one.pool,
                        "before": wanted,
                        "after": one.target,
                        "verdict": one.verdict,
                        "reasons": list(one.reasons),
                    }
                )
    return changes


def decision_lines(looks: Sequence[Look]) -> str:
    """decisions.jsonl of a run."""
    rows = [decision_row(look.decision) for look in looks if look.decision is not None]
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _runs(study: PlanStudy) -> Iterator[tuple[Contestant, Played, OfferedLoad]]:
    for one in study.contestants:
        for run, load in zip(one.runs, study.loads, strict=bool(one.runs)):
            yield one, run, load


def timeline_rows(study: PlanStudy) -> list[dict[str, Any]]:
    """A row per contestant, seed and bin: load, workers, GPU hours, attainment.

    `sla_attainment` is of the requests that arrived in the bin, null where none did.
    """
    rows = []
    for one, run, load in _runs(study):
        num, good = good_by_bin(run, load)
        held = held_by_bin(run.outcome.result, load)
        total = np.cumsum(held["gpu_hours"])
        for place in range(load.num_bins):
            rows.append(
                {
                    "contestant": one.name,
                    "seed": load.seed,
                    "start_s": place * load.bin_ms / 1e3,
                    "num_requests": int(num[place]),
                    "offered_rps": num[place] / load.bin_ms * 1e3,
                    "sla_attainment": good[place] / num[place] if num[place] else None,
                    **{name: float(values[place]) for name, values in held.items()},
                    "gpu_hours_so_far": float(total[place]),
                }
            )
    return rows


def timeline_table(study: PlanStudy) -> "pl.DataFrame":
    """The columns of timeline.parquet: see `timeline_rows`."""
    import polars as pl

    numbers = ("offered_rps", "sla_attainment", "gpu_hours", "starting", "ready", "draining")
    schema: dict[str, Any] = {
        "contestant": pl.String,
        "seed": pl.Int64,
        "start_s": pl.Float64,
        "num_requests": pl.Int64,
        **dict.fromkeys(numbers, pl.Float64),
        "gpu_hours_so_far": pl.Float64,
    }
    return pl.DataFrame(timeline_rows(study), schema=schema)


def replicas_table(study: PlanStudy) -> "pl.DataFrame":
    """The workers of each pool at every change, as `replica_table` has them, of all runs."""
    import polars as pl

    return pl.concat(
        replica_table(run.outcome.result).select(
            pl.lit(one.name).alias("contestant"), pl.lit(load.seed).alias("seed"), pl.all()
        )
        for one, run, load in _runs(study)
    )
