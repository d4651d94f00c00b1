"""The HTML report of a sweep: the answer, its pictures, every trial, and what did not run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.plots import trials as trial_table
from dynosim.plots.axis_curve import axis_chart, varied_axis
from dynosim.plots.load_curves import (
    X_METRICS,
    Y_METRICS,
    LoadCurves,
    attainment_chart,
    curves_chart,
)
from dynosim.plots.page import (
    FigureChoice,
    Headline,
    Note,
    Page,
    Part,
    RunFiles,
    number,
    preformatted,
    write_page,
)
from dynosim.plots.plotly_chart import plotly_figure
from dynosim.plots.sweep_charts import Objectives, SweepCharts
from dynosim.plots.sweep_table import not_run_table, trials_data_table
from dynosim.plots.tornado import MAX_BARS, TornadoBar, tornado_chart

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class SweepStory:
    """What a sweep found out, beyond its table of trials.

    `ranked` are trials, the best first, of which `num_tied` are equally good. `curves` are there
    where loads were searched; `unpaired` are settings of which no two layouts differ in them alone.
    """

    headline: Headline | None = None
    ranked: Sequence[int] = ()
    num_tied: int = 0
    run: RunFiles | None = None
    curves: LoadCurves | None = None
    effects: Sequence[TornadoBar] = ()
    unpaired: Sequence[str] = ()


def write_sweep_html(
    path: Path | str,
    *,
    title: str,
    spec_yaml: str,
    trials: "pl.DataFrame",
    objectives: Objectives,
    story: SweepStory | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Write one self-contained page about a sweep; `warnings` stand with the notes at its head.

    Raises: ConfigError when plotly is not installed; OSError when the file cannot be written.
    """
    write_page(path, sweep_page(title, spec_yaml, trials, objectives, story, warnings))


def sweep_page(
    title: str,
    spec_yaml: str,
    trials: "pl.DataFrame",
    objectives: Objectives,
    story: SweepStory | None = None,
    warnings: Sequence[str] = (),
) -> Page:
    """What the report of a sweep shows."""
    story = story or SweepStory()
    shown = trial_table.finished(trials, objectives)
    parts = _load_parts(story) if story.curves is not None else _axis_parts(shown)
    if not shown.is_empty():
        parts += _trial_parts(trials, objectives, story)
    parts += _not_run(trials)
    parts.append(Part("Sweep file", body=preformatted(spec_yaml)))
    return Page(
        title,
        _lead(trials),
        [*_notes(trials, shown), *(Note(text, is_warning=True) for text in warnings)],
        _cards(trials, objectives) if story.headline is None else [],
        parts,
        story.headline,
        story.run,
    )


_CURVES_CAPTION = (
    "The best layout of each family, over the load: thick where the load is carried, a diamond at "
    "the capacity with its interval, thin and pale behind it, and nothing once requests pile up. "
    "Click a point for its row, its run file and its command. "
)
_ATTAINMENT_CAPTION = (
    "Requests within the SLA as each GPU is given more to do; the largest mark is the capacity."
)
_AXIS_CAPTION = (
    "Requests within the SLA along the one setting that this sweep varies, and what else changes "
    "with it. Click a point for its row. "
) + trial_table.FILLS_CAPTION
_TORNADO_CAPTION = (
    "Pairs of layouts that differ in one setting alone: by how much the capacity changes, on "
    "average over the pairs; lines are what the brackets of the capacities allow, grey is a tie."
)
_FRONTIER_CAPTION = (
    "Every point is one configuration replayed in full; the line joins those that no other beats "
    "in both directions, the dashed one those that meet the SLA. Rings: more load offered than "
    "sustained. Crosses: the SLA is missed. Click a point for its row."
)
_CAPACITY_FRONTIER_CAPTION = (
    "Every layout at its capacity; the line joins those that no other beats in both directions."
)
_SPREAD_CAPTION = "All finished trials by each varied setting, the other settings mixed."
_COORDINATES_CAPTION = "One line per trial. Drag along an axis to select."
_TABLE_CAPTION = (
    "Click a heading to sort, a row to see it in the pictures and how to run it. All numbers are "
    "in trials.parquet."
)


def _axis_parts(shown: "pl.DataFrame") -> list[Part]:
    """The SLA along the one setting that is varied, if one is and it is a number."""
    key = varied_axis(shown)
    if key is None:
        return []
    return [Part(f"Along {key}", _AXIS_CAPTION, plotly_figure(axis_chart(shown, key)))]


def _load_parts(story: SweepStory) -> list[Part]:
    """Pictures over the load."""
    curves = story.curves
    assert curves is not None
    across, up = curves.choices()
    figures = [
        replace(plotly_figure(curves_chart(curves, x, y)), at=(x.key, y.key))
        for y in up
        for x in across
    ]
    choice = FigureChoice(
        figures,
        [("up", [y.title for y in up]), ("across", [x.title for x in across])],
        "output per GPU against speed for users, over the load",
    )
    parts = [
        Part("What layouts carry", _CURVES_CAPTION + trial_table.FILLS_CAPTION, choice),
    ]
    if curves.target is not None and curves.curves:
        attainment = plotly_figure(attainment_chart(curves))
        parts.append(Part("Within the SLA, by load", _ATTAINMENT_CAPTION, attainment))
    if story.effects:
        chart = tornado_chart(story.effects, source=curves.source, note=curves.note)
        parts.append(Part("What each setting does", _tornado_caption(story), plotly_figure(chart)))
    return parts


def _tornado_caption(story: SweepStory) -> str:
    caption = _TORNADO_CAPTION
    if len(story.effects) > MAX_BARS:
        caption += f" The {MAX_BARS} largest of {len(story.effects)}."
    if story.unpaired:
        names = ", ".join(story.unpaired)
        caption += f" No two layouts differ in {names} alone."
    return caption


def _trial_parts(trials: "pl.DataFrame", objectives: Objectives, story: SweepStory) -> list[Part]:
    """Every trial, as a table and in pictures."""
    charts = SweepCharts(trials, objectives)
    left_out = charts.num_left_out
    sampled = f" {left_out:,} trials off the frontier are left out." if left_out else ""
    is_capacity = story.curves is not None
    caption = _CAPACITY_FRONTIER_CAPTION if is_capacity else _FRONTIER_CAPTION
    frontier = replace(plotly_figure(charts.frontier()), at=(objectives[1], objectives[0]))
    pictures = [Part("Pareto frontier", f"{caption}{sampled}", frontier)]
    rest = [Part("All settings together", _COORDINATES_CAPTION + sampled,
                 charts.parallel_coordinates())]  # fmt: skip
    if not is_capacity:
        spread = plotly_figure(charts.effects())
        rest.insert(0, Part("What each setting does", _SPREAD_CAPTION + sampled, spread))
    hidden = [*objectives, *(metric.key for metric in (*X_METRICS, *Y_METRICS))]
    table = trials_data_table(
        _in_order(trials, objectives, story), trials, hidden=hidden, places=_places(story)
    )
    rows = Part("Layouts" if is_capacity else "Trials", _TABLE_CAPTION, table=table)
    return [rows, *pictures, *rest] if is_capacity else [*pictures, rows, *rest]


def _in_order(
    trials: "pl.DataFrame", objectives: Objectives, story: SweepStory
) -> list[dict[str, Any]]:
    """Ranked trials first, then the frontier, then the others, by the first objective."""
    place = {index: at for at, index in enumerate(story.ranked)}
    rows = trials.filter(trials["status"] == "ok").to_dicts()

    def order(row: dict[str, Any]) -> tuple[int, bool, float, int]:
        value = row[objectives[0]]
        size = float(value) if value is not None and value == value else 0.0
        index = row["trial_id"]
        return place.get(index, len(place)), not row["is_pareto"], -size, index

    return sorted(rows, key=order)


def _places(story: SweepStory) -> dict[int, str] | None:
    """1*, 2=, 3, ...: `*` is the best, `=` ties with it."""
    if not story.ranked:
        return None
    marks = ["*", *"=" * (story.num_tied - 1)]
    return {
        index: f"{at + 1}{marks[at] if at < len(marks) else ''}"
        for at, index in enumerate(story.ranked)
    }


def _lead(trials: "pl.DataFrame") -> str:
    counts = dict(trials.group_by("status").len().iter_rows())
    words = {
        "ok": "finished",
        "infeasible": "infeasible",
        "failed": "failed",
        "screened": "screened out",
    }
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


def _cards(trials: "pl.DataFrame", objectives: Objectives) -> list[tuple[str, str]]:
    front = trial_table.frontier(trials, objectives)
    cards = [("trials", number(len(trials))), ("on the frontier", number(len(front)))]
    for objective in objectives:
        if not front.is_empty():
            best = front.sort(objective, descending=True).row(0, named=True)
            name = trial_table.label(best, trial_table.varied_keys(trials))
            title = f"largest {trial_table.axis_title(objective)}: {name}"
            cards.append((title, number(best[objective])))
    return cards


def _not_run(trials: "pl.DataFrame") -> list[Part]:
    """Infeasible and failed trials with their reasons, one part each."""
    titles = {"infeasible": "Infeasible", "failed": "Failed", "screened": "Screened out"}
    parts = []
    for status, title in titles.items():
        rows = trials.filter(trials["status"] == status).to_dicts()
        if rows:
            parts.append(Part(f"{title}: {len(rows):,}", table=not_run_table(rows, trials)))
    return parts
