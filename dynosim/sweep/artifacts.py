"""The files of a finished sweep."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.atomic import Writer, csv_writer, parquet_writer, text_writer, write_files
from dynosim.compiled import CORE
from dynosim.config.formats import SWEEP_SCHEMA
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.aic_table import aic_table
from dynosim.sweep.answer import Answer, answer_dict, answer_of, need_dict
from dynosim.sweep.proposals import sampler_version
from dynosim.sweep.results import Row, front_of, objective_names, shown_bounds, trials_table
from dynosim.sweep.sample_warnings import capacity_warnings, fixed_warnings
from dynosim.sweep.screen_report import screen_dict
from dynosim.sweep.space import num_same_points
from dynosim.sweep.status import FAILED, OK, SCREENED
from dynosim.sweep.winner_folder import RUN_FILE, remove_old_winner, winner_files
from dynosim.sweep.winners import Recommended, mode_of_row, winners_of

if TYPE_CHECKING:
    import polars as pl

    from dynosim.plots.sweep_html import SweepStory

LOAD_PICTURES = ("curves.png", "attainment.png", "effects.png")
"""Of sweeps that search loads."""
MODES = ("agg", "disagg")
MODE_TABLES = ("pareto.csv", "best_config_topn.csv")
MAX_LISTED = 100
"""Trials that did not run, in the summary; the table has all."""
TOP_RULE = (
    "frontier of the trials that meet the SLA; most output tokens/s per GPU first, then fewer "
    "GPUs, then the lower trial; of equal trials the first; the best of every family (mode, GPUs "
    "per worker) before the others; the fastest for users and the cheapest always"
)
_ALWAYS_SHOWN = (
    "num_gpus",
    "output_tok_s_per_gpu",
    "median_output_token_throughput_per_user",
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
    tables: "Mapping[str, pl.DataFrame] | None" = None,
) -> dict[str, Any]:
    """Write every file of the sweep; returns the summary. Old folders of winners are removed.

    `interval_failures` says by trial why its intervals could not be made; `probes` has a row for
    every load that was tried, where loads were searched; `tables` are further ones, by file name.
    """
    answer = None if sweep.load.search == "fixed" else answer_of(rows)
    winners = winners_of(sweep, rows, answer)
    summary = summarize_sweep(sweep, rows, winners, sweep_hash=sweep_hash)
    summary |= _told_of_load(sweep, answer) | _told_of_space(sweep, rows)
    warnings = fixed_warnings(rows) if answer is None else capacity_warnings(sweep, answer)
    if warnings:
        summary["warnings"] = warnings
    if interval_failures:
        summary["intervals_failed"] = [
            {"trial_id": index, "reason": reason} for index, reason in interval_failures.items()
        ]
    table = trials_table(sweep, rows)
    names = objective_names(sweep)
    best = [winner.row for winner in winners]
    run_files = [f"{winner.folder}/{RUN_FILE}" for winner in winners]

    @cache
    def story() -> "SweepStory":
        from dynosim.sweep.story import story_of, with_space

        told = story_of(sweep, rows, best, run_files, table=table, answer=answer, probes=probes)
        return with_space(told, summary)

    writers: dict[str, Writer] = {
        "trials.parquet": parquet_writer(lambda: table),
        "trials.csv": csv_writer(lambda: table),
        "pareto.parquet": parquet_writer(lambda: _pareto(table, names)),
        "pareto.csv": csv_writer(lambda: _pareto(aic_table(sweep, rows), names)),
        "best_config_topn.csv": csv_writer(lambda: aic_table(sweep, [w.row for w in winners])),
        "pareto.png": lambda path: _picture(path, sweep.name, table, names),
        "report.html": lambda path: _page(path, sweep, sweep_yaml, table, names, story(), warnings),
        "summary.json": text_writer(json.dumps(summary, indent=2) + "\n"),
        "sweep.yaml": text_writer(sweep_yaml),
    }
    if probes is not None:
        writers["probes.parquet"] = parquet_writer(lambda: probes)
        writers["probes.csv"] = csv_writer(lambda: probes)
        for name in LOAD_PICTURES:
            writers[name] = partial(_load_picture, name, sweep.name, story)
    elif (axis := _varied_axis(table)) is not None:
        writers["along.png"] = lambda path: _axis_picture(path, sweep.name, table, axis)
    for name, further in (tables or {}).items():
        writers[name] = parquet_writer(partial(_as_it_is, further))
    writers |= _tables_of_modes(sweep, rows, winners, names)
    for winner in winners:
        writers |= winner_files(sweep, winner, folder)
    write_files(folder, writers)
    _remove_old_tops(folder, keep=writers)
    return summary


def _told_of_load(sweep: SweepConfig, answer: Answer | None) -> dict[str, Any]:
    """What the summary says where loads were searched."""
    if answer is None:
        return {}
    told: dict[str, Any] = {
        "load": sweep.load.model_dump(mode="json", exclude_none=True),
        "answer": answer_dict(answer),
    }
    if sweep.load.need is not None:
        told["need"] = need_dict(answer, sweep.load.need.given)
    return told


def _told_of_space(sweep: SweepConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """What the summary says of points that were no trials, or were not tried."""
    told: dict[str, Any] = {}
    if sweep.search.screen is not None:
        told["screen"] = screen_dict(sweep.search, rows)
    same = 0 if sweep.load.need is not None else num_same_points(sweep, len(rows))
    return told | ({"num_same_points": same} if same else {})


def _tables_of_modes(
    sweep: SweepConfig,
    rows: Sequence[Row],
    winners: Sequence[Recommended],
    names: tuple[str, str],
) -> dict[str, Writer]:
    """Where there are disaggregated layouts: each mode's frontier and winners, beside its folders,
    as AIConfigurator has them."""
    by_mode = {mode: [row for row in rows if mode_of_row(row) == mode] for mode in MODES}
    if not by_mode["disagg"]:
        return {}
    writers: dict[str, Writer] = {}
    for mode, own in by_mode.items():
        best = [winner.row for winner in winners if mode_of_row(winner.row) == mode]
        if best:
            frontier, top = MODE_TABLES
            writers[f"{mode}/{frontier}"] = csv_writer(partial(_frontier_among, sweep, own, names))
            writers[f"{mode}/{top}"] = csv_writer(partial(aic_table, sweep, best))
    return writers


def _frontier_among(
    sweep: SweepConfig, rows: Sequence[Row], names: tuple[str, str]
) -> "pl.DataFrame":
    """The frontier of these rows alone."""
    stable = [row.status == OK and not row.report.get("saturated") for row in rows]
    front = front_of(sweep, [row.report for row in rows], stable)
    alone = [replace(row, is_pareto=is_on) for row, is_on in zip(rows, front, strict=True)]
    return _pareto(aic_table(sweep, alone), names)


def _as_it_is(table: "pl.DataFrame") -> "pl.DataFrame":
    return table


def summarize_sweep(
    sweep: SweepConfig, rows: Sequence[Row], winners: Sequence[Recommended], *, sweep_hash: str
) -> dict[str, Any]:
    """The sweep in one JSON document, free of real time: the same for any number of jobs."""
    counts = {status: 0 for status in (OK, "infeasible", "failed")}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    not_run = [row for row in rows if row.status != OK]
    crashed_first = sorted(not_run, key=lambda row: (row.status != FAILED, row.status == SCREENED))
    listed = sorted(crashed_first[:MAX_LISTED], key=lambda row: row.trial.index)
    constraints = sweep.constraints.model_dump(mode="json", exclude_none=True)
    sla = sweep.constraints.sla
    if sla is not None and sla.statistic is None:
        constraints["sla"]["attainment"] = sla.share
    return {
        "schema": SWEEP_SCHEMA,
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
            {"config": f"{winner.folder}/{RUN_FILE}", "roles": list(winner.roles),
             **_brief(sweep, winner.row)}
            for winner in winners
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
    from dynosim.plots.sweep_charts import write_pareto_png

    write_pareto_png(path, title=title, trials=_plottable(table, names), objectives=names)


def _varied_axis(table: "pl.DataFrame") -> str | None:
    from dynosim.plots.axis_curve import varied_axis

    return varied_axis(table)


def _axis_picture(path: Path, title: str, table: "pl.DataFrame", axis: str) -> None:
    from dynosim.plots.axis_curve import axis_chart
    from dynosim.plots.png_chart import write_chart_png

    write_chart_png(path, axis_chart(table, axis), title=title)


def _load_picture(name: str, title: str, story: "Callable[[], SweepStory]", path: Path) -> None:
    from dynosim.plots.load_curves import attainment_chart, curves_chart
    from dynosim.plots.png_chart import write_chart_png
    from dynosim.plots.tornado import tornado_chart

    told = story()
    curves = told.curves
    assert curves is not None
    if name == "curves.png":
        chart = curves_chart(curves)
    elif name == "attainment.png":
        chart = attainment_chart(curves)
    else:
        chart = tornado_chart(told.effects, source=curves.source, note=curves.note)
    write_chart_png(path, chart, title=title)


def _page(
    path: Path,
    sweep: SweepConfig,
    sweep_yaml: str,
    table: "pl.DataFrame",
    names: tuple[str, str],
    story: "SweepStory",
    warnings: Sequence[str],
) -> None:
    from dynosim.plots.sweep_html import write_sweep_html

    write_sweep_html(
        path,
        title=sweep.name,
        spec_yaml=sweep_yaml,
        trials=_plottable(table, names),
        objectives=names,
        story=story,
        warnings=warnings,
    )


def _plottable(table: "pl.DataFrame", names: tuple[str, str]) -> "pl.DataFrame":
    """The table with both objectives even if no trial ran."""
    import polars as pl

    missing = [name for name in names if name not in table.columns]
    return table.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in missing)


def _remove_old_tops(folder: Path, *, keep: Iterable[str]) -> None:
    """An earlier, longer list of bests must not stay beside the new one, nor its files."""
    tops = [top for mode in MODES for top in (folder / mode).glob("top*")]
    for top in tops:
        if top.name.removeprefix("top").isdigit():
            ours = f"{top.parent.name}/{top.name}/"
            kept = {name.removeprefix(ours) for name in keep if name.startswith(ours)}
            remove_old_winner(top, kept)
    for mode in MODES:
        for name in MODE_TABLES:
            if f"{mode}/{name}" not in keep:
                (folder / mode / name).unlink(missing_ok=True)
