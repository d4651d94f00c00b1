"""The HTML report of a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.plots import trials as trial_table
from dynosim.plots.load_curves import Curve, curves_plot
from dynosim.plots.page import Note, Page, Part, folded, number, preformatted, table, write_page
from dynosim.plots.sweep_figures import SweepFigures

if TYPE_CHECKING:
    import polars as pl

Objectives = tuple[str, str]

MAX_ROWS = 500
_COLUMNS = {
    "num_gpus": "GPUs",
    "output_tok_s_per_gpu": "out tok/s/GPU",
    "mean_output_token_throughput_per_user": "out tok/s/user",
    "mean_ttft_ms": "TTFT mean",
    "p99_ttft_ms": "TTFT p99",
    "mean_itl_ms": "ITL mean",
    "p99_itl_ms": "ITL p99",
    "prefix_cache_reused_ratio": "reuse",
    "sla_attainment": "in SLA",
    "goodput_rps": "goodput/s",
}


def write_sweep_html(
    path: Path | str,
    *,
    title: str,
    spec_yaml: str,
    trials: "pl.DataFrame",
    objectives: Objectives,
    curves: Sequence[Curve] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write one self-contained page about a sweep; `curves` come first, where loads were searched.
    `warnings` stand with the notes at its head.

    Raises: ConfigError when plotly is not installed; OSError when the file cannot be written.
    """
    write_page(path, sweep_page(title, spec_yaml, trials, objectives, curves, warnings))


def sweep_page(
    title: str,
    spec_yaml: str,
    trials: "pl.DataFrame",
    objectives: Objectives,
    curves: Sequence[Curve] = (),
    warnings: Sequence[str] = (),
) -> Page:
    """What the report of a sweep shows."""
    figures = SweepFigures(trials, objectives)
    shown = trial_table.finished(trials, objectives)
    front = trial_table.frontier(trials, objectives).sort(objectives[0], descending=True)
    parts = []
    if curves:
        drawn = curves_plot(
            list(curves),
            source=trial_table.common_source(trials),
            note=trial_table.timing_note(trials),
        )
        parts.append(Part("What layouts carry", _CURVES_CAPTION, drawn))
    if not shown.is_empty():
        parts += [
            Part("Pareto frontier", _FRONTIER_CAPTION, figures.frontier()),
            Part("On the frontier", body=_trial_table(front, trials)),
            Part("What each setting does", _EFFECTS_CAPTION, figures.effects()),
            Part("All settings together", _COORDINATES_CAPTION, figures.parallel_coordinates()),
            Part(
                "All trials", body=_all_trials(shown.sort(objectives[0], descending=True), trials)
            ),
        ]
    parts += _not_run(trials)
    parts.append(Part("Sweep file", body=preformatted(spec_yaml)))
    notes = [*_notes(trials, shown), *(Note(text, is_warning=True) for text in warnings)]
    return Page(title, _lead(trials), notes, _cards(trials, front, objectives), parts)


_CURVES_CAPTION = (
    "The best layout of each tensor parallelism, over the load: thick where the SLA is kept, a "
    "diamond at the capacity, pale behind it."
)
_FRONTIER_CAPTION = (
    "Every point is one configuration replayed in full; the line joins those that no other beats "
    "in both directions, the dashed one those that meet the SLA. Rings: more load offered than "
    "sustained. Crosses: the SLA is missed. Hover for the configuration."
)
_EFFECTS_CAPTION = "All finished trials by each varied setting, the other settings mixed."
_COORDINATES_CAPTION = "One line per trial. Drag along an axis to select."


def _lead(trials: "pl.DataFrame") -> str:
    counts = dict(trials.group_by("status").len().iter_rows())
    words = {"ok": "finished", "infeasible": "infeasible", "failed": "failed"}
    parts = [f"{counts[key]:,} {word}" for key, word in words.items() if counts.get(key)]
    return f"{len(trials):,} trials: {', '.join(parts) or 'none'}"


def _notes(trials: "pl.DataFrame", shown: "pl.DataFrame") -> list[Note]:
    if shown.is_empty():
        return [Note("No trial finished: the reasons are below.", is_warning=True)]
    is_measured = trial_table.common_source(trials) == "measured"
    outside = (trial_table.lowest_in_range(trials) or 0.0) < 1
    notes = [Note(trial_table.timing_note(trials), is_warning=not is_measured or outside)]
    rows = shown.to_dicts()
    saturated = sum(bool(row.get("saturated")) for row in rows)
    if saturated:
        text = (
            f"{saturated:,} of {len(rows):,} trials are saturated (ringed): their latencies depend "
            "on the length of the trace, so compare their throughput only."
        )
        notes.append(Note(text, is_warning=True))
    missing = sum(trial_table.violates_sla(row) for row in rows)
    if missing:
        notes.append(Note(f"{missing:,} of {len(rows):,} trials miss the SLA (crossed)."))
    return notes


def _cards(
    trials: "pl.DataFrame", front: "pl.DataFrame", objectives: Objectives
) -> list[tuple[str, str]]:
    cards = [("trials", number(len(trials))), ("on the frontier", number(len(front)))]
    for objective in objectives:
        if not front.is_empty():
            best = front.sort(objective, descending=True).row(0, named=True)
            name = trial_table.label(best, trial_table.varied_keys(trials))
            title = f"largest {trial_table.axis_title(objective)}: {name}"
            cards.append((title, number(best[objective])))
    return cards


def _trial_table(rows: "pl.DataFrame", trials: "pl.DataFrame") -> str:
    keys = trial_table.varied_keys(trials)
    columns = [name for name in _COLUMNS if name in rows.columns]
    names = trial_table.short_names(keys)
    header = [
        "trial",
        *(names[key] for key in keys),
        *(_COLUMNS[name] for name in columns),
        "remarks",
    ]
    body = [
        [
            str(row["trial_id"]),
            *(str(row[key]) for key in keys),
            *(_number(row, name) for name in columns),
            _remarks(row),
        ]
        for row in rows.head(MAX_ROWS).to_dicts()
    ]
    return table(header, body)


def _number(row: dict[str, Any], key: str) -> str:
    """The number and, where it was found, its interval."""
    ends = trial_table.interval(row, key)
    between = "" if ends is None else f" ({number(ends[0], 4)} to {number(ends[1], 4)})"
    return number(row[key], 4) + between


def _remarks(row: dict[str, Any]) -> str:
    remarks = []
    if row.get("saturated"):
        remarks.append("saturated")
    if trial_table.violates_sla(row):
        remarks.append("misses SLA")
    share = row.get("is_pareto_share")
    if share is not None and share < 1:
        remarks.append(f"on the frontier in {100 * share:.0f} % of replays")
    return ", ".join(remarks)


def _all_trials(rows: "pl.DataFrame", trials: "pl.DataFrame") -> str:
    summary = f"{len(rows):,} finished trials"
    if len(rows) > MAX_ROWS:
        summary += f", the first {MAX_ROWS} shown (all are in trials.parquet)"
    return folded(summary, _trial_table(rows, trials))


def _not_run(trials: "pl.DataFrame") -> list[Part]:
    """Infeasible and failed trials with their reasons, one part each."""
    import polars as pl

    keys = trial_table.varied_keys(trials)
    titles = {"infeasible": "Infeasible", "failed": "Failed"}
    parts = []
    for status, title in titles.items():
        rows = trials.filter(pl.col("status") == status).to_dicts()
        if rows:
            body = [
                [str(row["trial_id"]), *(str(row[key]) for key in keys), row["reason"] or ""]
                for row in rows
            ]
            html = table(("trial", *keys, "reason"), body, text_columns=len(keys) + 2)
            parts.append(Part(f"{title}: {len(rows):,}", body=html))
    return parts
