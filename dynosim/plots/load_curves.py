"""Interactivity curves: output tokens/s per GPU against tokens/s per user, over the load.

A family is a tensor parallelism; its curve is that of its best layout. Where the load is carried
the curve is solid and thick; behind its capacity, marked by a diamond, thin and pale, and it ends
with the last load that was run to its end. One description, drawn for paper and for the screen.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.plots import style
from dynosim.plots import trials as trial_table
from dynosim.plots.page import Figure as PageFigure
from dynosim.plots.pareto import MARGINS, note_timing

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

X, Y = "median_output_token_throughput_per_user", "output_tok_s_per_gpu"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A layout at one load."""

    x: float  # output tokens a second of the median user
    y: float  # output tokens a second and GPU
    load: float
    offered_rps: float
    attainment: float | None
    is_carried: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """A family's best layout, by rising load. `points[at_capacity]` is its capacity."""

    name: str
    layout: str
    color: str
    points: tuple[CurvePoint, ...]
    at_capacity: int

    @property
    def carried(self) -> tuple[CurvePoint, ...]:
        """The loads that it carries."""
        return self.points[: self.at_capacity + 1]

    @property
    def beyond(self) -> tuple[CurvePoint, ...]:
        """Its capacity and the loads behind it."""
        return self.points[self.at_capacity :]


def curves_of(trials: "pl.DataFrame", probes: "pl.DataFrame", ranked: list[int]) -> list[Curve]:
    """The curves of all families that carry anything; `ranked` are trials, the best first."""
    by_trial = {row["trial_id"]: row for row in trials.to_dicts()}
    keys = trial_table.varied_keys(trials)
    best: dict[Any, int] = {}
    for index in ranked:
        best.setdefault(by_trial[index].get(trial_table.TENSOR_PARALLEL), index)
    curves = []
    for place, (family, index) in enumerate(sorted(best.items(), key=lambda item: str(item[0]))):
        points = _points(probes, index)
        capacity = by_trial[index]["capacity_load"]
        at = next((i for i, point in enumerate(points) if point.load == capacity), None)
        if at is None:
            continue
        curves.append(
            Curve(
                "layout" if family is None else f"TP{family}",
                trial_table.label(by_trial[index], keys),
                style.PALETTE[place % len(style.PALETTE)],
                points,
                at,
            )
        )
    return curves


def _points(probes: "pl.DataFrame", index: int) -> tuple[CurvePoint, ...]:
    import polars as pl

    rows = probes.filter((pl.col("trial_id") == index) & ~pl.col("is_stopped")).sort("load")
    return tuple(
        CurvePoint(
            row[X], row[Y], row["load"], row["offered_rps"], row["attainment"], row["is_carried"]
        )
        for row in rows.to_dicts()
        if row.get(X) is not None and row.get(Y) is not None
    )


def write_curves_png(
    path: Path | str, *, title: str, curves: list[Curve], trials: "pl.DataFrame"
) -> None:
    """Draw the curves. The same curves give the same bytes."""
    figure = curves_figure(title=title, curves=curves, trials=trials)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def curves_figure(*, title: str, curves: list[Curve], trials: "pl.DataFrame") -> "Figure":
    """The curves as a matplotlib figure that belongs to no window system.

    `trials` tell what the step times are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.subplots_adjust(**MARGINS)
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=style.BLACK)
    axes.set_ylabel(trial_table.axis_title(Y))
    axes.set_xlabel(trial_table.axis_title(X))
    axes.grid(color=style.GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for curve in curves:
        beyond, carried, end = curve.beyond, curve.carried, curve.points[curve.at_capacity]
        axes.plot([p.x for p in beyond], [p.y for p in beyond], color=curve.color, linewidth=1.0,
                  alpha=0.45)  # fmt: skip
        axes.plot(
            [p.x for p in carried], [p.y for p in carried], color=curve.color, linewidth=2.6,
            marker="o", markersize=4, label=f"{curve.name}: {curve.layout}",
        )  # fmt: skip
        axes.plot([end.x], [end.y], color=curve.color, marker="D", markersize=10)
        axes.annotate(
            f"{end.offered_rps:.3g} req/s", (end.x, end.y), textcoords="offset points",
            xytext=(8, 6), fontsize=8, color=style.BLACK,
        )  # fmt: skip
    if curves:
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9, loc="best")
    else:
        axes.text(0.5, 0.5, "no layout carries any load", transform=axes.transAxes, ha="center")
    note_timing(figure, axes, trials)
    return figure


def curves_plot(curves: list[Curve], *, source: str | None, note: str) -> PageFigure:
    """The curves as a plotly figure; hovering tells the load."""
    layout = style.plotly_layout(source=source, note=note, height=560)
    layout["xaxis"] = style.axis(trial_table.axis_title(X), rangemode="tozero")
    layout["yaxis"] = style.axis(trial_table.axis_title(Y), rangemode="tozero")
    data: list[dict[str, Any]] = []
    for curve in curves:
        name, end = f"{curve.name}: {curve.layout}", curve.points[curve.at_capacity]
        data += [
            {**_trace(curve.beyond), "mode": "lines", "showlegend": False, "opacity": 0.45,
             "line": {"color": curve.color, "width": 1}},
            {**_trace(curve.carried), "mode": "lines+markers", "name": name,
             "line": {"color": curve.color, "width": 3}, "marker": {"size": 6}},
            {**_trace((end,)), "mode": "markers", "showlegend": False,
             "marker": {"color": curve.color, "size": 14, "symbol": "diamond"}},
        ]  # fmt: skip
    return PageFigure(data, layout)


def _trace(points: tuple[CurvePoint, ...]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "text": [_told(point) for point in points],
        "hoverinfo": "text",
    }


def _told(point: CurvePoint) -> str:
    share = "" if point.attainment is None else f"<br>{100 * point.attainment:.1f} % within the SLA"
    return (
        f"{point.offered_rps:.3g} req/s ({point.load:.3g}x){share}"
        f"<br>{point.y:.0f} tok/s/GPU, {point.x:.0f} tok/s/user"
    )
