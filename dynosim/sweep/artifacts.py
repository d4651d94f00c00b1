"""The files of a finished sweep."""

import json
import threading
from collections.abc import Container, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.atomic import Writer, parquet_writer, text_writer, write_files
from dynosim.compiled import CORE
from dynosim.config.loading import dump_run
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.answer import Answer, answer_dict, answer_of
from dynosim.sweep.proposals import sampler_version
from dynosim.sweep.results import Row, best_rows, objective_names, shown_bounds, trials_table
from dynosim.sweep.status import FAILED, OK

if TYPE_CHECKING:
    import polars as pl

    from dynosim.plots.load_curves import Curve

MAX_LISTED = 100
"""Trials that did not run, in the summary; the table has all."""
RUN_FILE, INTERVALS_FILE = "config.yaml", "intervals.json"
TOP_RULE = (
    "frontier of the trials that meet the SLA; most output tokens/s per GPU first, then fewer "
    "GPUs, then the lower trial; of equal trials the first"
)
_ALWAYS_SHOWN = (
    "num_gpus",
    "output_tok_s_per_gpu",
    "mean_output_token_throughput_per_user",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_itl_ms",
    "p99_itl_ms",
    "prefix_cache_reused_ratio",
    "saturated",
    "timing_source",
    "timing_in_range_share",
)


def load_writers() -> None:
    """Start loading the libraries that tables and pictures need, which takes a moment.

    Trials run in other processes, so the time is there before the files are written.
    """
    names = ("polars", "matplotlib.figure", "matplotlib.backends.backend_agg")
    threading.Thread(target=lambda: [*map(import_module, names)], daemon=True).start()


def write_artifacts(
    folder: Path,
    sweep: SweepConfig,
    rows: Sequence[Row],
    *,
    sweep_hash: str,
    sweep_yaml: str,
    interval_failures: Mapping[int, str] | None = None,
    probes: "pl.DataFrame | None" = None,
) -> dict[str, Any]:
    """Write every file of the sweep; returns the summary. Old `agg/topN` folders are removed.

    `interval_failures` says by trial why its intervals could not be made; `probes` has a row for
    every load that was tried, where loads were searched.
    """
    answer = None if sweep.load.search == "fixed" else answer_of(rows)
    best = best_rows(sweep, rows) if answer is None else answer.ranked[: sweep.top]
    summary = summarize_sweep(sweep, rows, best, sweep_hash=sweep_hash)
    if answer is not None:
        summary["load"] = sweep.load.model_dump(mode="json", exclude_none=True)
        summary["answer"] = answer_dict(answer)
    if interval_failures:
        summary["intervals_failed"] = [
            {"trial_id": index, "reason": reason} for index, reason in interval_failures.items()
        ]
    table = trials_table(sweep, rows)
    names = objective_names(sweep)
    curves = partial(_curves, table, probes, answer)
    writers: dict[str, Writer] = {
        "trials.parquet": parquet_writer(lambda: table),
        "pareto.parquet": parquet_writer(lambda: _pareto(table, names)),
        "pareto.png": lambda path: _picture(path, sweep.name, table, names),
        "report.html": lambda path: _page(path, sweep, sweep_yaml, table, names, curves()),
        "summary.json": text_writer(json.dumps(summary, indent=2) + "\n"),
        "sweep.yaml": text_writer(sweep_yaml),
    }
    if probes is not None:
        writers["probes.parquet"] = parquet_writer(lambda: probes)
        writers["curves.png"] = lambda path: _curves_picture(path, sweep.name, table, curves())
    for place, row in enumerate(best, 1):
        writers |= _winner_files(f"agg/top{place}", row)
    write_files(folder, writers)
    _remove_old_tops(folder, keep=writers)
    return summary


def _winner_files(folder: str, row: Row) -> dict[str, Writer]:
    """The run file of a recommended trial, and how sure its prediction is if that was found."""
    files: dict[str, Writer] = {}
    if row.trial.config is not None:
        files[f"{folder}/{RUN_FILE}"] = text_writer(dump_run(row.trial.config))
    if row.intervals is not None:
        text = json.dumps(row.intervals, indent=2) + "\n"
        files[f"{folder}/{INTERVALS_FILE}"] = text_writer(text)
    return files


def summarize_sweep(
    sweep: SweepConfig, rows: Sequence[Row], best: Sequence[Row], *, sweep_hash: str
) -> dict[str, Any]:
    """The sweep in one JSON document, free of real time: the same for any number of jobs."""
    counts = {status: 0 for status in (OK, "infeasible", "failed")}
    for row in rows:
        counts[row.status] += 1
    not_run = [row for row in rows if row.status != OK]
    crashed_first = sorted(not_run, key=lambda row: row.status != FAILED)
    listed = sorted(crashed_first[:MAX_LISTED], key=lambda row: row.trial.index)
    constraints = sweep.constraints.model_dump(mode="json", exclude_none=True)
    sla = sweep.constraints.sla
    if sla is not None and sla.statistic is None:
        constraints["sla"]["attainment"] = sla.share
    return {
        "name": sweep.name,
        "sweep_hash": sweep_hash,
        "core": CORE.kind,
        "num_trials": len(rows),
        "counts": counts,
        "num_meeting_sla": sum(row.meets_sla is True for row in rows),
        "objectives": dict(sweep.objectives),
        "constraints": constraints,
        "search": _search(sweep),
        "pareto": [_brief(sweep, row) for row in rows if row.is_pareto],
        "top_rule": TOP_RULE,
        "top": [
            {"config": f"agg/top{place}/{RUN_FILE}", **_brief(sweep, row)}
            for place, row in enumerate(best, 1)
        ],
        "not_run": [
            {"trial_id": row.trial.index, "status": row.status, "values": row.trial.values,
             "reason": row.reason}
            for row in listed
        ],
        "not_run_more": len(not_run) - len(listed),
    }  # fmt: skip


def _search(sweep: SweepConfig) -> dict[str, Any]:
    """How points were chosen; with what chose them, if not the sweep file alone."""
    search = sweep.search.model_dump(mode="json", exclude_none=True)
    if not sweep.search.is_adaptive:
        return search
    sampler = sampler_version(sweep.search.method)
    return search | {"batch": sweep.search.batch_size, "sampler": sampler}


def _brief(sweep: SweepConfig, row: Row) -> dict[str, Any]:
    names = dict.fromkeys((*sweep.objectives, *_ALWAYS_SHOWN))
    brief = {
        "trial_id": row.trial.index,
        "values": row.trial.values,
        "meets_sla": row.meets_sla,
        **{name: row.report.get(name) for name in names},
    }
    if row.intervals is not None:
        bounds = {key: list(ends) for key, ends in shown_bounds(sweep, row).items()}
        brief |= {"intervals": {**row.intervals, "metrics": bounds}, **row.shares}
    return brief


def _pareto(table: "pl.DataFrame", names: tuple[str, str]) -> "pl.DataFrame":
    front = table.filter(table["is_pareto"])
    return front.sort(names[0], descending=True) if names[0] in front.columns else front


def _picture(path: Path, title: str, table: "pl.DataFrame", names: tuple[str, str]) -> None:
    from dynosim.plots.pareto import write_pareto_png

    write_pareto_png(path, title=title, trials=_plottable(table, names), objectives=names)


def _curves(
    table: "pl.DataFrame", probes: "pl.DataFrame | None", answer: Answer | None
) -> "list[Curve]":
    """What layouts do over the load; nothing where loads were not searched."""
    if probes is None or answer is None:
        return []
    from dynosim.plots.load_curves import curves_of

    return curves_of(table, probes, [row.trial.index for row in answer.ranked])


def _curves_picture(path: Path, title: str, table: "pl.DataFrame", curves: "list[Curve]") -> None:
    from dynosim.plots.load_curves import write_curves_png

    write_curves_png(path, title=title, curves=curves, trials=table)


def _page(
    path: Path,
    sweep: SweepConfig,
    sweep_yaml: str,
    table: "pl.DataFrame",
    names: tuple[str, str],
    curves: "list[Curve]",
) -> None:
    from dynosim.plots.sweep_html import write_sweep_html

    write_sweep_html(
        path,
        title=sweep.name,
        spec_yaml=sweep_yaml,
        trials=_plottable(table, names),
        objectives=names,
        curves=curves,
    )


def _plottable(table: "pl.DataFrame", names: tuple[str, str]) -> "pl.DataFrame":
    """The table with both objectives even if no trial ran."""
    import polars as pl

    missing = [name for name in names if name not in table.columns]
    return table.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in missing)


def _remove_old_tops(folder: Path, *, keep: Container[str]) -> None:
    """An earlier, longer list of bests must not stay beside the new one, nor its intervals."""
    for top in (folder / "agg").glob("top*"):
        if not top.name.removeprefix("top").isdigit():
            continue
        old = [name for name in (RUN_FILE, INTERVALS_FILE) if f"agg/{top.name}/{name}" not in keep]
        for name in old:
            (top / name).unlink(missing_ok=True)
        if RUN_FILE in old and not any(top.iterdir()):
            top.rmdir()
