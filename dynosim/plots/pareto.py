"""The Pareto frontier of a sweep as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.plots import style
from dynosim.plots import trials as trial_table

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the figure's size. Layouts that measure all texts cost as much as the drawing.
MARGINS = {"left": 0.075, "right": 0.985, "bottom": 0.135, "top": 0.93}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def write_pareto_png(
    path: Path | str, *, title: str, trials: "pl.DataFrame", objectives: tuple[str, str]
) -> None:
    """Draw the trials and their frontier; the first objective is upwards, the second to the right.

    The same trials give the same bytes.
    """
    figure = pareto_figure(title=title, trials=trials, objectives=objectives)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def pareto_figure(*, title: str, trials: "pl.DataFrame", objectives: tuple[str, str]) -> "Figure":
    """The frontier as a matplotlib figure that belongs to no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.subplots_adjust(**MARGINS)
    _prepare(axes, title, objectives)
    shown = trial_table.finished(trials, objectives)
    if shown.is_empty():
        axes.text(0.5, 0.5, "no trial finished", transform=axes.transAxes, ha="center")
    else:
        _draw_trials(axes, shown, objectives)
        _draw_frontier(axes, trials, objectives)
        _draw_error_bars(axes, trials, objectives)
        axes.legend(frameon=False, fontsize=9, loc="best")
    note_timing(figure, axes, trials)
    return figure


def note_timing(figure: "Figure", axes: "Axes", trials: "pl.DataFrame") -> None:
    """Name the source of the step times below, and across if they were not measured."""
    source = trial_table.common_source(trials)
    has_run = "ok" in trials["status"].to_list()
    words = style.watermark(source) if has_run else None
    if words:
        axes.text(
            0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", rotation=18,
            fontsize=40, fontweight="bold", color=style.VERMILLION, alpha=0.16, zorder=0,
        )  # fmt: skip
    figure.supxlabel(
        trial_table.timing_note(trials), x=0.01, y=0.012, ha="left", va="bottom", fontsize=8,
        color=style.GREY, wrap=True,
    )  # fmt: skip


def _prepare(axes: "Axes", title: str, objectives: tuple[str, str]) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=style.BLACK)
    axes.set_ylabel(trial_table.axis_title(objectives[0]))
    axes.set_xlabel(trial_table.axis_title(objectives[1]))
    axes.grid(color=style.GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_trials(axes: "Axes", shown: "pl.DataFrame", objectives: tuple[str, str]) -> None:
    """One colour and marker per tensor parallelism (or one for all); doubts are marked over it."""
    key = trial_table.TENSOR_PARALLEL
    rows = shown.to_dicts()
    groups = sorted({row[key] for row in rows}) if key in shown.columns else [None]
    for index, group in enumerate(groups):
        members = [row for row in rows if group is None or row[key] == group]
        axes.scatter(
            *_points(members, objectives),
            s=[44 if row["is_pareto"] else 26 for row in members],
            color=style.PALETTE[index % len(style.PALETTE)],
            marker=_MARKERS[index % len(_MARKERS)],
            alpha=0.85,
            linewidths=0,
            label="trial" if group is None else f"TP{group}",
            zorder=3,
        )
    _mark(axes, [row for row in rows if row.get("saturated")], objectives, "saturated", "o")
    _mark(
        axes, [row for row in rows if trial_table.violates_sla(row)], objectives, "misses SLA", "x"
    )


def _points(rows: list[dict[str, Any]], objectives: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    return [row[objectives[1]] for row in rows], [row[objectives[0]] for row in rows]


def _mark(
    axes: "Axes", rows: list[dict[str, Any]], objectives: tuple[str, str], name: str, marker: str
) -> None:
    if not rows:
        return
    axes.plot(
        *_points(rows, objectives), linestyle="none", marker=marker, label=name, zorder=4,
        markersize=11 if marker == "o" else 6, markerfacecolor="none", markeredgecolor="#555555",
    )  # fmt: skip


def _draw_error_bars(axes: "Axes", trials: "pl.DataFrame", objectives: tuple[str, str]) -> None:
    bars = trial_table.error_bars(trials, objectives)
    for index, bar in enumerate(bars):
        name = trial_table.ERROR_BARS if index == 0 else None
        axes.plot(bar.x, bar.y, color=style.GREY, linewidth=1.1, label=name, zorder=2.5)


def _draw_frontier(axes: "Axes", trials: "pl.DataFrame", objectives: tuple[str, str]) -> None:
    fronts = (
        ("Pareto frontier", trial_table.frontier(trials, objectives), style.BLACK, "-"),
        ("within the SLA", trial_table.sla_frontier(trials, objectives), style.BLACK, "--"),
    )
    for name, rows, color, dashes in fronts:
        if not rows.is_empty():
            points = _points(rows.to_dicts(), objectives)
            axes.plot(*points, color=color, linestyle=dashes, linewidth=1.4, label=name, zorder=2)
    axes.margins(0.08)
    for place in trial_table.frontier_labels(trials, objectives):
        axes.annotate(
            place.text,
            (place.x, place.y),
            textcoords="offset points",
            xytext=(-8, -4) if place.is_left else (7, 6),
            ha="right" if place.is_left else "left",
            va="top" if place.is_left else "bottom",
            fontsize=8,
            color=style.BLACK,
        )
