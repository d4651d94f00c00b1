"""Pictures over the load: which points, where they are carried, and what is drawn on both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dynosim.plots import style
from dynosim.plots.chart import Chart, LineMark, PointMark, RuleMark
from dynosim.plots.families import FamilyStyle, LayoutFamily, family_of, family_styles
from dynosim.plots.load_curves import (
    OWN_LOAD_NAME,
    X_METRICS,
    Y_METRICS,
    Curve,
    CurvePoint,
    LoadCurves,
    X,
    Y,
    attainment_chart,
    curves_chart,
    curves_of,
)
from dynosim.plots.plotly_chart import plotly_figure
from dynosim.plots.png_chart import chart_figure, write_chart_png

TP, WORKERS, MODE = "engine.tensor_parallel", "cluster.workers", "cluster.mode"
HOURS = Y_METRICS[2]


def trial(index: int, tp: int, capacity: float | None) -> dict[str, Any]:
    return {
        "trial_id": index, "status": "ok", TP: tp, WORKERS: index + 1, "capacity_load": capacity,
        "capacity_load_low": None if capacity is None else 0.9 * capacity,
        "capacity_load_high": None if capacity is None else 1.1 * capacity,
        "timing_source": "estimated", "timing_description": None, "timing_in_range_share": None,
    }  # fmt: skip


def probe(
    index: int, load: float, *, stopped: bool = False, carried: bool = True, **more: Any
) -> dict[str, Any]:
    return {
        "trial_id": index, "load": load, "offered_rps": 2 * load, "attainment": 0.97,
        "is_carried": carried, "is_stopped": stopped, "num_gpus": 4,
        "reason": None if carried else "94.0% of requests within the SLA",
        "timing_source": "measured", "timing_in_range_share": 1.0, HOURS.key: 1 / load,
        X: None if stopped else 100.0 / load, Y: None if stopped else 50.0 * load, **more,
    }  # fmt: skip


@pytest.fixture
def trials() -> pl.DataFrame:
    rows = [trial(0, 1, None), trial(1, 2, 1.0), trial(2, 2, 1.5), trial(3, 4, 0.7)]
    return pl.DataFrame(rows)


@pytest.fixture
def probes() -> pl.DataFrame:
    rows = [
        probe(2, 3.0, stopped=True, carried=False),
        probe(2, 0.5), probe(2, 1.5), probe(2, 1.6, carried=False),
        probe(2, 1.8, carried=False, reason="overloaded: 90 more requests at the end"),
        probe(2, 2.0, carried=False),
        probe(1, 1.0), probe(0, 0.02, carried=False),
        probe(3, 0.7, timing_source="derived"), probe(3, 1.1, carried=False),
    ]  # fmt: skip
    return pl.DataFrame(rows)


@pytest.fixture
def drawn(trials: pl.DataFrame, probes: pl.DataFrame) -> LoadCurves:
    curves = curves_of(trials, probes, ranked=[2, 3, 1])
    return LoadCurves(curves, "estimated", "the note", best=2, target=0.95)


def lines(chart: Chart, name: str) -> list[tuple[float, float]]:
    (found,) = [
        mark for mark in chart.panels[0].marks if isinstance(mark, LineMark) and mark.name == name
    ]
    return list(zip(found.x, found.y, strict=True))  # type: ignore[arg-type]


def points(chart: Chart, symbol: str) -> list[PointMark]:
    marks = chart.panels[0].marks
    return [mark for mark in marks if isinstance(mark, PointMark) and mark.symbol == symbol]


def test_a_family_is_drawn_by_its_best_layout(drawn: LoadCurves) -> None:
    assert [curve.name for curve in drawn.curves] == ["TP2: 3xTP2", "TP4: 4xTP4"]
    assert [point.load for point in drawn.curves[0].points] == [0.5, 1.5, 1.6, 1.8, 2.0]


def test_behind_the_capacity_nothing_is_carried_and_behind_overload_nothing_is_drawn(
    drawn: LoadCurves,
) -> None:
    curve = drawn.curves[0]
    assert [point.load for point in curve.carried] == [0.5, 1.5]
    assert [point.load for point in curve.beyond] == [1.5, 1.6]
    assert [point.load for point in curve.shown] == [0.5, 1.5, 1.6]
    assert all(point.is_carried for point in curve.carried)


def test_thick_is_what_is_carried_and_pale_what_is_not(drawn: LoadCurves) -> None:
    marks = [mark for mark in curves_chart(drawn).panels[0].marks if isinstance(mark, LineMark)]
    pale, thick = marks[0], marks[1]
    assert thick.name == "TP2: 3xTP2" and thick.width > 2 * pale.width and pale.opacity < 0.5
    assert (list(thick.x), list(thick.y)) == ([200.0, 100 / 1.5], [25.0, 75.0])
    assert (list(pale.x), list(pale.y)) == ([100 / 1.5, 100 / 1.6], [75.0, 80.0])


def test_diamonds_stand_at_capacities_and_a_star_on_the_best(drawn: LoadCurves) -> None:
    chart = curves_chart(drawn)
    at = [(mark.x[0], mark.y[0], mark.rows, mark.loads) for mark in points(chart, "diamond")]
    assert at == [(100 / 1.5, 75.0, (2,), (1.5,)), (100 / 0.7, 35.0, (3,), (0.7,))]
    (star,) = points(chart, "star")
    assert (star.x[0], star.y[0], star.rows) == (100 / 1.5, 75.0, (2,))


def test_whiskers_reach_as_far_as_the_interval_of_the_capacity(drawn: LoadCurves) -> None:
    """Throughput grows with the load, what a token costs falls."""
    for metric, expected in ((Y_METRICS[0], [67.5, 82.5]), (HOURS, [1 / 1.35, 1 / 1.65])):
        marks = curves_chart(drawn, y=metric).panels[0].marks
        whisker = next(m for m in marks if isinstance(m, LineMark) and m.color == style.GREY)
        assert list(whisker.y) == pytest.approx(expected)
    marks = curves_chart(drawn, y=replace(Y_METRICS[0], power=0)).panels[0].marks
    greys = [m for m in marks if isinstance(m, LineMark) and m.color == style.GREY]
    assert [mark.name for mark in greys] == [OWN_LOAD_NAME]


def test_the_workloads_own_load_is_a_line_through_the_curves(drawn: LoadCurves) -> None:
    """Between 0.5 and 1.5 along the logarithm; between 0.7 and 1.1 likewise."""
    (first, second) = sorted(lines(curves_chart(drawn), OWN_LOAD_NAME))
    assert first[1] == pytest.approx(50.0) and second[1] == pytest.approx(50.0)
    assert 100 / 1.1 < first[0] < second[0] < 200
    closed = replace(drawn, load_word="in flight")
    names = [m.name for m in curves_chart(closed).panels[0].marks if isinstance(m, LineMark)]
    assert OWN_LOAD_NAME not in names


def test_marks_are_filled_as_their_times_are_sure(drawn: LoadCurves) -> None:
    first, second = points(curves_chart(drawn), "diamond")
    assert (first.fills, second.fills) == (("full",), ("half",))


def test_axes_offer_what_some_point_has(drawn: LoadCurves) -> None:
    across, up = drawn.choices()
    assert across == [X_METRICS[0]]
    assert up == [Y_METRICS[0], HOURS]
    chart = curves_chart(drawn, y=HOURS)
    assert chart.panels[0].y.title == HOURS.title
    assert lines(chart, "TP2: 3xTP2")[0] == (200.0, 2.0)


def test_attainment_is_drawn_against_the_load_of_a_gpu(drawn: LoadCurves) -> None:
    chart = attainment_chart(drawn)
    assert lines(chart, "TP4: 4xTP4") == [(2 * 0.7 / 4, 0.97), (2 * 1.1 / 4, 0.97)]
    (rule,) = [mark for mark in chart.panels[0].marks if isinstance(mark, RuleMark)]
    assert (rule.at, rule.axis, rule.text) == (0.95, "y", "asked for: 95 %")
    assert chart.panels[0].y.limits == (0.9, 1.005)


def test_both_pictures_draw_the_same_and_name_the_timing(drawn: LoadCurves) -> None:
    chart = curves_chart(drawn)
    axes = chart_figure(chart, title="t").axes[0]
    page = plotly_figure(chart)
    on_paper = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    for trace in page.data:
        if trace["mode"] == "lines" and trace["showlegend"]:
            pairs = [list(pair) for pair in zip(trace["x"], trace["y"], strict=True)]
            assert on_paper[trace["name"]] == pairs
    assert axes.get_xlim()[0] == 0 and axes.get_ylim()[0] == 0
    assert page.layout["xaxis"]["rangemode"] == page.layout["yaxis"]["rangemode"] == "tozero"
    texts = [text.get_text() for text in axes.texts]
    assert "TP2  3/s" in texts and "ESTIMATED TIMING" in texts
    notes = [note["text"] for note in page.layout["annotations"]]
    assert "TP2  3/s" in notes and "ESTIMATED TIMING" in notes
    assert page.note == "the note"


def test_the_same_curves_give_the_same_bytes(drawn: LoadCurves, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        write_chart_png(path, curves_chart(drawn), title="t")
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_without_any_capacity_it_says_so() -> None:
    chart = curves_chart(LoadCurves((), "measured", "n"))
    assert "no layout carries any load" in [t.get_text() for t in chart_figure(chart).axes[0].texts]
    notes = plotly_figure(chart).layout["annotations"]
    assert [note["text"] for note in notes] == ["no layout carries any load"]


def test_on_the_screen_a_point_tells_its_load(drawn: LoadCurves) -> None:
    (trace,) = [
        trace
        for trace in plotly_figure(curves_chart(drawn)).data
        if trace.get("customdata") == [[2, 1.5]] and trace["marker"]["symbol"] == "diamond"
    ]
    assert trace["text"] == [
        "<b>3xTP2 on 4 GPUs</b><br>3 requests/s (1.5x)<br>75 tok/s/GPU, 66.7 tok/s/user"
        "<br>97.0 % within the SLA<br>the most that it carries"
    ]


def test_families_have_tones_of_their_mode_and_marks_of_their_own() -> None:
    sizes = (1, 2, 4)
    rows = [{TP: tp, MODE: mode} for mode in ("agg", "disagg") for tp in sizes]
    families = [family_of(row) for row in rows]
    assert [family.name for family in families[2:4]] == ["TP4", "disagg TP1+TP1"]
    assert family_of({}) == LayoutFamily(False, 0)
    looks = family_styles(families)
    assert len({look.color for look in looks.values()}) == len(families)
    assert len({look.symbol for look in looks.values()}) == len(families)
    for family, look in looks.items():
        tones = style.ORANGE_TONES if family.is_disaggregated else style.BLUE_TONES
        assert look.color in tones and look.color in style.DARK_COLORS
    assert looks == family_styles(reversed(families))


def test_labels_that_would_cover_each_other_are_left_out_but_the_bests() -> None:
    """Three capacities close together: the best one's name stays, though another is higher."""

    def curve(row: int, decode: int, at: tuple[float, float]) -> Curve:
        point = CurvePoint(
            {X_METRICS[0].key: at[0], Y_METRICS[0].key: at[1]}, 1.0, 5.0, 4, 1.0, True, False,
            "full",
        )  # fmt: skip
        family = LayoutFamily(True, 1, decode)
        look = FamilyStyle("#000000", "circle")
        return Curve(family, row, f"1P1D TP1+TP{decode}", look, (point,), 0)

    curves = (curve(0, 1, (50, 100)), curve(1, 2, (51, 99)), curve(2, 4, (20, 40)))
    chart = curves_chart(LoadCurves(curves, None, "", best=1))
    texts = [label.text for label in chart.panels[0].labels]
    assert texts == ["disagg TP1+TP2  5/s", "disagg TP1+TP4  5/s"]
    assert curves[0].name == "disagg 1P1D TP1+TP1"
