"""A chart as plotly draws it in a page.

Two layouts are made of every chart: one for wide windows, and one for telephones, in which panels
stand below each other. Colours of axes and paper are not here: the page has two themes.
"""

from collections.abc import Callable, Sequence
from typing import Any

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
)
from dynosim.plots.page import Figure

Trace = dict[str, Any]

_COLUMN_GAP, _TITLE_PX, _ROW_GAP_PX = 0.08, 30, 46
_NARROW_PANEL_PX = 230
_HOLLOW = {"full": "", "half": "", "hollow": "-open"}
_PALE = "66"  # alpha of a half filled mark, in hexadecimal


def plotly_figure(chart: Chart) -> Figure:
    """The chart as plotly's traces and layouts."""
    data: list[Trace] = []
    for index, panel in enumerate(chart.panels):
        data += _panel_traces(panel, index, columns_of_page=chart.columns)
    wide = _layout(chart, columns=chart.columns, height=chart.height, is_narrow=False)
    rows = -(-len(chart.panels) // chart.columns)
    is_regrouped = rows < len(chart.panels)
    height = (
        max(chart.height, _NARROW_PANEL_PX * len(chart.panels)) if is_regrouped else chart.height
    )
    narrow = _layout(chart, columns=1, height=height, is_narrow=True)
    return Figure(data, wide, narrow, chart.note)


def _panel_traces(panel: Panel, index: int, *, columns_of_page: int) -> list[Trace]:
    suffix = style.axis_suffix(index)
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    traces = []
    for mark in panel.marks:
        draw = _DRAW.get(type(mark))
        if draw is not None:
            traces += [trace | axes for trace in draw(mark, panel)]
    return traces


def _line(mark: LineMark, _: Panel) -> list[Trace]:
    line: Trace = {"color": mark.color, "width": mark.width}
    line |= {"dash": mark.dash} if mark.dash != "solid" else {}
    line |= {"shape": "hv"} if mark.is_stepped else {}
    trace: Trace = {
        "type": "scatter",
        "mode": "lines",
        "x": [*mark.x],
        "y": [*mark.y],
        "line": line,
    }
    trace |= {"opacity": mark.opacity} if mark.opacity < 1.0 else {}
    named = _named(mark.name, mark.group, in_legend=mark.in_legend)
    return [trace | named | _hover(mark.hover, mark.format, mark.name)]


def _points(mark: PointMark, _: Panel) -> list[Trace]:
    is_alike = len(set(mark.fills)) == 1 and len(mark.sizes) == 1
    symbols = [mark.symbol + _HOLLOW[fill] for fill in mark.fills]
    colors = [_filled(mark.color, fill) for fill in mark.fills]
    marker: Trace = {
        "size": mark.sizes[0] if len(mark.sizes) == 1 else [*mark.sizes],
        "symbol": symbols[0] if is_alike else _spread(symbols, len(mark.x)),
        "color": colors[0] if is_alike else _spread(colors, len(mark.x)),
        "line": {"color": mark.color, "width": 1.6 if set(mark.fills) != {"full"} else 0},
    }
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [*mark.x],
        "y": [*mark.y],
        "marker": marker,
    }
    trace |= {"opacity": mark.opacity} if mark.opacity < 1.0 else {}
    if mark.rows:
        loads = mark.loads or (None,) * len(mark.rows)
        trace["customdata"] = [list(pair) for pair in zip(mark.rows, loads, strict=True)]
    if mark.words:
        trace |= _words(mark)
    told = {} if mark.words else _hover(mark.hover, mark.format, mark.name)
    return [trace | _named(mark.name, mark.group) | told]


def _scatter(mark: LineMark | PointMark, mode: str) -> Trace:
    return {"type": "scatter", "mode": mode, "x": [*mark.x], "y": [*mark.y]}


def _words(mark: PointMark) -> Trace:
    below = mark.words_below or (False,) * len(mark.words)
    return {
        "mode": "markers+text",
        "text": [_escape(word) for word in mark.words],
        "textposition": ["bottom right" if is_below else "top left" for is_below in below],
        "textfont": {"size": 11},
        "cliponaxis": False,
        "hovertemplate": f"{mark.format or '%{text}'}<extra></extra>",
    }


def _band(mark: BandMark, _: Panel) -> list[Trace]:
    edge: Trace = {"type": "scatter", "mode": "lines", "x": [*mark.x], "line": {"width": 0}}
    edge |= {"hoverinfo": "skip", "showlegend": False}
    color = mark.color + f"{round(255 * mark.opacity):02x}"
    filled = edge | {"y": [*mark.high], "fill": "tonexty", "fillcolor": color}
    return [edge | {"y": [*mark.low]}, filled | _named(mark.name, "")]


def _bars(mark: BarMark, panel: Panel) -> list[Trace]:
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "x": [*mark.values],
        "y": [*panel.y.names],
        "marker": {"color": [*mark.colors]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - value for value, high in zip(mark.values, mark.high, strict=True)],
            "arrayminus": [value - low for value, low in zip(mark.values, mark.low, strict=True)],
            "color": style.BLACK,
            "thickness": 1.4,
            "width": 3,
        },
        "showlegend": False,
    }
    told = {"hovertext": [_told(line) for line in mark.hover]}  # `text` would stand in the bars
    return [trace | told | {"hovertemplate": "%{hovertext}<extra></extra>"}]


def _boxes(mark: BoxMark, panel: Panel) -> list[Trace]:
    return [
        {
            "type": "box",
            "x": [panel.x.names[place] for place in mark.at],
            "y": [*mark.values],
            "boxpoints": "all",
            "jitter": 0.4,
            "pointpos": 0,
            "marker": {"color": mark.color, "size": 5, "opacity": 0.6},
            "line": {"width": 1.2, "color": mark.color},
            "showlegend": False,
            "text": [_told(text) for text in mark.hover],
            "hovertemplate": "%{text}: %{y:,.4g}<extra></extra>",
        }
    ]


def _heat(mark: HeatMark, _: Panel) -> list[Trace]:
    return [
        {
            "type": "heatmap",
            "zmin": 0,
            "z": [[*row] for row in mark.values],
            "x": [*mark.x],
            "colorscale": style.SEQUENTIAL,
            "colorbar": {"thickness": 12, "tickformat": ".0%" if mark.is_percent else ""},
            "hovertemplate": f"{mark.format}<extra></extra>",
        }
    ]


_DRAW: dict[type[Mark], Callable[[Any, Panel], list[Trace]]] = {
    LineMark: _line,
    PointMark: _points,
    BandMark: _band,
    BarMark: _bars,
    BoxMark: _boxes,
    HeatMark: _heat,
}


def _named(name: str, group: str, *, in_legend: bool = True) -> Trace:
    named: Trace = {"name": name, "showlegend": in_legend} if name else {"showlegend": False}
    return named | ({"legendgroup": group} if group else {})


def _hover(lines: tuple[str, ...], template: str, name: str) -> Trace:
    if template:
        return {"hovertemplate": f"{template}<extra>{_escape(name)}</extra>"}
    if lines:
        return {
            "text": [_told(line) for line in lines],
            "hovertemplate": "%{text}<extra></extra>",
        }
    return {"hoverinfo": "skip"}


def _told(text: str) -> str:
    """Lines for plotly, which reads a little HTML; the first of several is bold."""
    first, *rest = _escape(text).split("\n")
    return "<br>".join([f"<b>{first}</b>", *rest]) if rest else first


def _escape(text: object) -> str:
    return str(text).replace("&", "&amp;").replace("<", "&lt;")


def _filled(color: str, fill: str) -> str:
    return color + _PALE if fill == "half" else color


def _spread(values: list[str], count: int) -> list[str]:
    return values * count if len(values) == 1 else values


def _layout(chart: Chart, *, columns: int, height: int, is_narrow: bool) -> dict[str, Any]:
    layout = style.plotly_layout(source=chart.source, height=height, is_narrow=is_narrow)
    layout["showlegend"] = chart.has_legend
    if chart.empty:
        layout["annotations"].append(_in_the_middle(chart.empty))
    margin = layout["margin"]
    inner = height - margin["t"] - margin["b"]
    rows = -(-len(chart.panels) // columns)
    for index, panel in enumerate(chart.panels):
        suffix = style.axis_suffix(index)
        across, top, bottom = _place(chart, index, columns, rows, inner)
        is_last = index == len(chart.panels) - 1
        x_axis = _axis(panel.x) | {"domain": across, "anchor": f"y{suffix}"}
        if chart.shares_x and not is_last:
            last = style.axis_suffix(len(chart.panels) - 1)
            x_axis |= {"showticklabels": False, "title": {"text": ""}, "matches": f"x{last}"}
        layout[f"xaxis{suffix}"] = x_axis
        layout[f"yaxis{suffix}"] = _axis(panel.y) | {
            "domain": [bottom, top],
            "anchor": f"x{suffix}",
        }
        if panel.title:
            title = style.panel_title(_escape(panel.title), across[0], top + 4 / inner)
            layout["annotations"].append(title)
        labels = () if is_narrow else panel.labels  # they would cover each other
        layout["annotations"] += _notes(panel, labels, suffix)
        layout.setdefault("shapes", []).extend(_rules(panel, suffix))
    return layout


def _place(
    chart: Chart, index: int, columns: int, rows: int, inner: int
) -> tuple[list[float], float, float]:
    """From left to right, top and bottom of a panel, in shares of the drawing."""
    row, column = divmod(index, columns)
    width = (1 - _COLUMN_GAP * (columns - 1)) / columns
    left = column * (width + _COLUMN_GAP)
    title = _TITLE_PX / inner if any(panel.title for panel in chart.panels) else 0.0
    gap = 0.0 if chart.shares_x else _ROW_GAP_PX / inner
    slot = (1 + gap) / rows
    top = 1 - row * slot - title
    bottom = max(0.0, 1 - (row + 1) * slot + gap)
    return [left, min(1.0, left + width)], top, bottom


def _axis(axis: ChartAxis) -> dict[str, Any]:
    options: dict[str, Any] = {"type": "linear"}
    if axis.is_log:
        options |= {"type": "log", "dtick": 1 if axis.is_decades else "D2"}
    if axis.limits is not None:
        options["range"] = [*axis.limits]
    elif axis.from_zero:
        options["rangemode"] = "tozero"
    if axis.is_percent:
        options["tickformat"] = ".0%"
    if axis.names:
        options |= {"type": "category", "categoryorder": "array", "categoryarray": [*axis.names]}
    return style.axis(_escape(axis.title), **options)


def _notes(panel: Panel, labels: Sequence[Label], suffix: str) -> list[dict[str, Any]]:
    """Labels of points, words at bars, names of rules."""
    at = {"xref": f"x{suffix}", "yref": f"y{suffix}", "showarrow": False}
    notes = [
        at
        | {
            "text": _escape(label.text),
            "x": label.x,
            "y": label.y,
            "xanchor": "right" if label.is_left else "left",
            "xshift": -8 if label.is_left else 8,
            "yshift": -10 if label.is_left else 9,
            "font": {"size": 11},
        }
        for label in labels
    ]
    for mark in panel.marks:
        if isinstance(mark, RuleMark) and mark.text:
            is_across = mark.axis == "y"
            edge = {"xref" if is_across else "yref": "paper", "x" if is_across else "y": 1.0}
            notes.append(
                at
                | {mark.axis: mark.at, "text": _escape(mark.text), "font": {"size": 11}}
                | edge
                | {"xanchor": "right", "yanchor": "bottom"}
            )
    return notes


def _rules(panel: Panel, suffix: str) -> list[dict[str, Any]]:
    shapes = []
    for mark in panel.marks:
        if isinstance(mark, RuleMark):
            along = "x" if mark.axis == "y" else "y"
            shapes.append(
                {
                    "type": "line",
                    "layer": "below",
                    f"{mark.axis}ref": f"{mark.axis}{suffix}",
                    f"{along}ref": f"{along}{suffix} domain",
                    f"{mark.axis}0": mark.at,
                    f"{mark.axis}1": mark.at,
                    f"{along}0": 0,
                    f"{along}1": 1,
                    "line": {"color": mark.color or style.GREY, "width": 1.4, "dash": "dash"},
                }
            )
    return shapes


def _in_the_middle(text: str) -> dict[str, Any]:
    middle = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    return middle | {"text": _escape(text), "font": {"size": 14}}
