"""A chart as a picture file, drawn with matplotlib. The same chart gives the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.plots import style
from dynosim.plots.chart import (
    BandMark,
    BarMark,
    BoxMark,
    Chart,
    ChartAxis,
    HeatMark,
    Label,
    LineMark,
    Mark,
    Panel,
    PointMark,
    RuleMark,
    Values,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, PX_PER_IN = 10.0, 96.0
# Of the figure's size. Layouts that measure all texts cost as much as the drawing.
_LEFT, _LEFT_OF_BARS, _RIGHT = 0.08, 0.3, 0.985
_BOTTOM_PX, _TOP_PX = 82, 42
_SYMBOLS = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v",
    "cross": "P", "x": "X", "star": "*", "circle-open": "o", "x-thin": "x",
}  # fmt: skip
_DASHES = {"solid": "-", "dash": "--", "dot": ":"}


def write_chart_png(path: Path | str, chart: Chart, *, title: str = "") -> None:
    """Draw the chart into a file."""
    figure = chart_figure(chart, title=title)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def chart_figure(chart: Chart, *, title: str = "", width_in: float = WIDTH_IN) -> "Figure":
    """The chart as a matplotlib figure that belongs to no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, chart.height / PX_PER_IN))
    FigureCanvasAgg(figure)
    rows = -(-len(chart.panels) // chart.columns)
    grid = figure.subplots(
        rows, chart.columns, squeeze=False, sharex="all" if chart.shares_x else "none"
    )
    has_bars = any(isinstance(mark, BarMark) for panel in chart.panels for mark in panel.marks)
    spacing = {"hspace": 0.28, "wspace": 0.2} if len(chart.panels) > 1 else {}
    figure.subplots_adjust(
        left=_LEFT_OF_BARS if has_bars else _LEFT,
        right=_RIGHT,
        bottom=_BOTTOM_PX / chart.height,
        top=1 - _TOP_PX / chart.height,
        **spacing,
    )
    for index, panel in enumerate(chart.panels):
        row, column = divmod(index, chart.columns)
        axes = grid[row][column]
        is_inner = chart.shares_x and row < rows - 1
        _draw_panel(axes, panel, has_x_title=not is_inner)
        _watermark(axes, chart)
        if chart.has_legend and axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=9, loc="best")
    first = grid[0][0]
    if title:
        first.set_title(title, loc="left", fontsize=13, fontweight="bold", color=style.BLACK)
    if chart.empty:
        first.text(0.5, 0.5, chart.empty, transform=first.transAxes, ha="center")
    figure.supxlabel(
        chart.note,
        x=0.01,
        y=8 / chart.height,
        ha="left",
        va="bottom",
        fontsize=8,
        color=style.GREY,
        wrap=True,
    )
    return figure


def _watermark(axes: "Axes", chart: Chart) -> None:
    words = style.watermark(chart.source)
    if words and not chart.empty:
        size = 40 if len(chart.panels) == 1 else 18
        axes.text(
            0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", rotation=18,
            fontsize=size, fontweight="bold", color=style.VERMILLION, alpha=0.16, zorder=0,
        )  # fmt: skip


def _draw_panel(axes: "Axes", panel: Panel, *, has_x_title: bool) -> None:
    axes.grid(color=style.GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.title:
        axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(panel.x.title if has_x_title else "")
    axes.set_ylabel(panel.y.title)
    if panel.x.is_log:
        axes.set_xscale("log")
    if panel.y.is_log:
        axes.set_yscale("log")
    for order, mark in enumerate(panel.marks):
        _DRAW[type(mark)](axes, mark, panel, 2.0 + 0.1 * order)
    if panel.labels:
        axes.margins(0.08)
    for label in panel.labels:
        _draw_label(axes, label)
    _limit(axes, panel.x, "x")
    _limit(axes, panel.y, "y")


def _limit(axes: "Axes", axis: ChartAxis, side: str) -> None:
    setter = axes.set_xlim if side == "x" else axes.set_ylim
    if axis.limits is not None:
        setter(*(10**end if axis.is_log else end for end in axis.limits))
    elif axis.from_zero:
        setter(0)
    if axis.is_percent:
        from matplotlib.ticker import PercentFormatter

        (axes.xaxis if side == "x" else axes.yaxis).set_major_formatter(
            PercentFormatter(1.0, decimals=0)
        )
    if axis.names:
        (axes.set_xticks if side == "x" else axes.set_yticks)(range(len(axis.names)), axis.names)


def _floats(values: Values) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _line(axes: "Axes", mark: LineMark, _: Panel, order: float) -> None:
    axes.plot(
        _floats(mark.x), _floats(mark.y), color=mark.color, linewidth=0.85 * mark.width,
        linestyle=_DASHES[mark.dash], alpha=mark.opacity, zorder=order,
        label=mark.name if mark.name and mark.in_legend else None,
        drawstyle="steps-post" if mark.is_stepped else "default",
    )  # fmt: skip


def _points(axes: "Axes", mark: PointMark, _: Panel, order: float) -> None:
    is_open = mark.symbol.endswith(("-open", "-thin"))
    marker = _SYMBOLS[mark.symbol]
    fills = mark.fills * len(mark.x) if len(mark.fills) == 1 else mark.fills
    sizes = mark.sizes * len(mark.x) if len(mark.sizes) == 1 else mark.sizes
    alphas = {"full": 1.0, "half": 0.4, "hollow": 0.0}
    faces = [(mark.color, 0.0 if is_open else alphas[fill]) for fill in fills]
    colors = (
        {"color": mark.color} if marker == "x" else {"facecolors": faces, "edgecolors": mark.color}
    )
    is_solid = set(fills) == {"full"} and not is_open
    axes.scatter(
        _floats(mark.x), _floats(mark.y), s=[(0.75 * size) ** 2 for size in sizes],
        marker=marker, zorder=order, alpha=None if mark.opacity == 1 else mark.opacity,
        label=mark.name or None, linewidths=0 if is_solid else 1.4,
        **colors,
    )  # fmt: skip
    for place, word in enumerate(mark.words):
        is_below = bool(mark.words_below) and mark.words_below[place]
        at = (_floats(mark.x)[place], _floats(mark.y)[place])
        axes.annotate(
            word, at, textcoords="offset points", xytext=(7, -4) if is_below else (-6, 5),
            fontsize=8, color=style.BLACK, ha="left" if is_below else "right",
            va="top" if is_below else "bottom",
        )  # fmt: skip


def _band(axes: "Axes", mark: BandMark, _: Panel, order: float) -> None:
    axes.fill_between(
        _floats(mark.x), _floats(mark.low), _floats(mark.high), color=mark.color,
        alpha=mark.opacity, label=mark.name or None, linewidth=0, zorder=order,
    )  # fmt: skip


def _bars(axes: "Axes", mark: BarMark, _: Panel, order: float) -> None:
    values = np.asarray(mark.values, dtype=np.float64)
    spread = np.array([values - mark.low, np.asarray(mark.high) - values])
    places = np.arange(len(values))
    axes.barh(
        places, values, color=[*mark.colors], xerr=spread, ecolor=style.BLACK, capsize=2,
        height=0.62, zorder=order,
    )  # fmt: skip


def _boxes(axes: "Axes", mark: BoxMark, panel: Panel, order: float) -> None:
    at, values = np.asarray(mark.at), np.asarray(mark.values)
    groups = [values[at == place] for place in range(len(panel.x.names))]
    axes.boxplot(groups, positions=range(len(groups)), widths=0.5, zorder=order)
    axes.plot(at, values, linestyle="none", marker="o", markersize=3, color=mark.color, alpha=0.5)


def _heat(axes: "Axes", mark: HeatMark, _: Panel, order: float) -> None:
    levels = np.array([_floats(row) for row in mark.values])
    mesh = axes.pcolormesh(
        np.asarray(_floats(mark.x)), np.arange(len(levels)), np.ma.masked_invalid(levels),
        cmap=style.SEQUENTIAL.lower(), vmin=0, shading="nearest", zorder=order,
    )  # fmt: skip
    axes.figure.colorbar(mesh, ax=axes)


def _rule(axes: "Axes", mark: RuleMark, _: Panel, order: float) -> None:
    draw = axes.axhline if mark.axis == "y" else axes.axvline
    draw(mark.at, color=mark.color or style.GREY, linestyle="--", linewidth=1.1, zorder=1.5)
    if mark.text and mark.axis == "y":
        axes.annotate(
            mark.text, (1.0, mark.at), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", va="bottom", fontsize=8, color=style.BLACK,
        )  # fmt: skip


_DRAW: dict[type[Mark], Callable[[Any, Any, Panel, float], None]] = {
    LineMark: _line,
    PointMark: _points,
    BandMark: _band,
    BarMark: _bars,
    BoxMark: _boxes,
    HeatMark: _heat,
    RuleMark: _rule,
}


def _draw_label(axes: "Axes", label: Label) -> None:
    axes.annotate(
        label.text, (label.x, label.y), textcoords="offset points",
        xytext=(-8, -4) if label.is_left else (7, 6), ha="right" if label.is_left else "left",
        va="top" if label.is_left else "bottom", fontsize=8, color=style.BLACK,
    )  # fmt: skip
