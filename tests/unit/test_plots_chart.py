"""One description, two renderers: every mark is drawn in both, at the same places."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

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
from dynosim.plots.plotly_chart import plotly_figure
from dynosim.plots.png_chart import chart_figure
from dynosim.plots.tornado import MAX_BARS, TornadoBar, tornado_chart

LINE = LineMark(x=[1, 2, None], y=[3.0, 4.0, None], color="#112233", name="a line", dash="dash")


def chart_of(*marks: Mark, **axes: ChartAxis) -> Chart:
    panel = Panel(x=axes.get("x", ChartAxis()), y=axes.get("y", ChartAxis()), marks=marks)
    return Chart(panels=(panel,), source="measured", note="n", height=400)


def test_a_line_is_drawn_with_its_gaps() -> None:
    (trace,) = plotly_figure(chart_of(LINE)).data
    assert (trace["x"], trace["y"]) == ([1, 2, None], [3.0, 4.0, None])
    assert trace["line"] == {"color": "#112233", "width": 1.8, "dash": "dash"}
    (line,) = chart_figure(chart_of(LINE)).axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [3.0, 4.0, np.nan])
    assert (line.get_linestyle(), line.get_label()) == ("--", "a line")


def test_points_carry_their_rows_and_how_sure_they_are() -> None:
    mark = PointMark(
        x=[1, 2, 3], y=[4, 5, 6], color="#112233", fills=("full", "half", "hollow"),
        rows=(7, 8, 9), loads=(0.5, 1.0, 2.0), hover=("a<b", "c\nd", "e"),
    )  # fmt: skip
    (trace,) = plotly_figure(chart_of(mark)).data
    assert trace["marker"]["symbol"] == ["circle", "circle", "circle-open"]
    assert trace["marker"]["color"] == ["#112233", "#11223366", "#112233"]
    assert trace["customdata"] == [[7, 0.5], [8, 1.0], [9, 2.0]]
    assert trace["text"] == ["a&lt;b", "<b>c</b><br>d", "e"]
    (group,) = chart_figure(chart_of(mark)).axes[0].collections
    assert group.get_offsets().tolist() == [[1, 4], [2, 5], [3, 6]]
    assert group.get_facecolors()[:, 3].tolist() == [1.0, 0.4, 0.0]


def test_bars_have_the_interval_of_each_on_both() -> None:
    mark = BarMark(values=[0.5, -0.25], low=[0.25, -0.5], high=[1.0, 0.0], colors=("#111111",) * 2)
    chart = chart_of(mark, y=ChartAxis(names=("one", "two")), x=ChartAxis(is_percent=True))
    (trace,) = plotly_figure(chart).data
    assert (trace["x"], trace["y"]) == ([0.5, -0.25], ["one", "two"])
    assert trace["error_x"]["array"] == [0.5, 0.25]
    assert trace["error_x"]["arrayminus"] == [0.25, 0.25]
    axes = chart_figure(chart).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [0.5, -0.25]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["one", "two"]
    (errors,) = axes.collections
    assert [path.vertices[:, 0].tolist() for path in errors.get_paths()] == [[0.25, 1], [-0.5, 0]]


def test_bands_boxes_heat_maps_and_rules_are_drawn_on_both() -> None:
    band = BandMark(x=[1, 2], low=[0, 1], high=[2, 3], color="#112233", opacity=0.4)
    low, high = plotly_figure(chart_of(band)).data
    assert (low["y"], high["y"], high["fillcolor"]) == ([0, 1], [2, 3], "#11223366")
    (area,) = chart_figure(chart_of(band)).axes[0].collections
    assert area.get_paths()[0].vertices[:, 1].max() == 3

    box = BoxMark(at=[0, 1, 1], values=[1, 2, 4], color="#112233", hover=("x", "y", "z"))
    chart = chart_of(box, x=ChartAxis(names=("p", "q")))
    (trace,) = plotly_figure(chart).data
    assert (trace["x"], trace["y"]) == (["p", "q", "q"], [1, 2, 4])
    assert chart_figure(chart).axes[0].lines[-1].get_xydata().tolist() == [[0, 1], [1, 2], [1, 4]]

    heat = HeatMark(x=[0, 1], values=[[1, None], [3, 4]], format="%{z}")
    (trace,) = plotly_figure(chart_of(heat)).data
    assert trace["z"] == [[1, None], [3, 4]] and trace["zmin"] == 0
    (mesh,) = chart_figure(chart_of(heat)).axes[0].collections
    assert mesh.get_array().filled(-1).tolist() == [[1, -1], [3, 4]]

    rule = RuleMark(at=0.95, text="asked for")
    figure = plotly_figure(chart_of(rule))
    (shape,) = figure.layout["shapes"]
    assert (shape["y0"], shape["y1"], shape["xref"]) == (0.95, 0.95, "x domain")
    assert figure.layout["annotations"][0]["text"] == "asked for"
    axes = chart_figure(chart_of(rule)).axes[0]
    assert list(axes.lines[0].get_ydata()) == [0.95, 0.95]
    assert [text.get_text() for text in axes.texts] == ["asked for"]


def test_telephones_get_one_panel_below_the_other() -> None:
    panel = Panel(x=ChartAxis(), y=ChartAxis(), marks=(LINE,), title="t")
    chart = Chart(panels=(panel,) * 4, source=None, note="", height=500, columns=2)
    figure = plotly_figure(chart)
    narrow = figure.narrow_layout
    assert narrow is not None and narrow["height"] > figure.layout["height"]
    wide = [figure.layout[f"xaxis{suffix}"]["domain"] for suffix in ("", "2", "3", "4")]
    assert wide[0] == wide[2] != wide[1] == wide[3]
    assert all(narrow[f"xaxis{suffix}"]["domain"] == [0, 1] for suffix in ("", "2", "3", "4"))
    domains = [narrow[f"yaxis{suffix}"]["domain"] for suffix in ("", "2", "3", "4")]
    assert all(upper[0] > lower[1] for upper, lower in pairwise(domains))
    labelled = replace(panel, labels=(Label("beside", 1.0, 3.0, False),))
    figure = plotly_figure(replace(chart, panels=(labelled,), columns=1))
    assert figure.narrow_layout is not None
    texts = [
        [note["text"] for note in layout["annotations"]]
        for layout in (figure.layout, figure.narrow_layout)
    ]
    assert "beside" in texts[0] and "beside" not in texts[1]


def test_panels_over_one_axis_share_it() -> None:
    panel = Panel(x=ChartAxis(title="time"), y=ChartAxis(), marks=(LINE,))
    chart = Chart(panels=(panel, panel), source="measured", note="", height=500, shares_x=True)
    layout = plotly_figure(chart).layout
    assert layout["xaxis"]["matches"] == "x2" and not layout["xaxis"]["showticklabels"]
    assert (layout["xaxis"]["title"]["text"], layout["xaxis2"]["title"]["text"]) == ("", "time")
    first, second = chart_figure(chart).axes
    assert first.get_shared_x_axes().joined(first, second)
    assert (first.get_xlabel(), second.get_xlabel()) == ("", "time")


@pytest.mark.parametrize("color", [*style.PALETTE, *style.BLUE_TONES, *style.ORANGE_TONES])
def test_every_colour_has_one_for_dark_pages(color: str) -> None:
    assert color in style.DARK_COLORS


def bar(name: str, effect: float, *, is_tie: bool = False) -> TornadoBar:
    return TornadoBar(name, effect, effect - 0.1, effect + 0.1, is_tie, f"told {name}")


def test_the_largest_effect_is_on_top_and_ties_are_grey() -> None:
    bars = [bar("small", 0.01, is_tie=True), bar("large", -0.5), bar("middle", 0.25)]
    chart = tornado_chart(bars, source="measured", note="n")
    assert chart.panels[0].y.names == ("small", "middle", "large")  # from below
    (mark,) = chart.panels[0].marks
    assert isinstance(mark, BarMark)
    assert mark.colors == (style.GREY, style.BLUE, style.VERMILLION)
    assert mark.values == [0.01, 0.25, -0.5]
    many = tornado_chart([bar(str(i), i / 100) for i in range(40)], source=None, note="")
    assert len(many.panels[0].y.names) == MAX_BARS
    json.dumps(plotly_figure(many).data)
    empty = tornado_chart([], source=None, note="")
    assert "no two layouts" in chart_figure(empty).axes[0].texts[0].get_text()
