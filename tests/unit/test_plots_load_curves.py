"""Interactivity curves: which points, where they are carried, and what is drawn."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dynosim.plots.load_curves import (
    Curve,
    X,
    Y,
    curves_figure,
    curves_of,
    curves_plot,
    write_curves_png,
)

TP, WORKERS = "engine.tensor_parallel", "cluster.workers"


def trial(index: int, tp: int, capacity: float | None) -> dict[str, Any]:
    return {
        "trial_id": index, "status": "ok", TP: tp, WORKERS: index + 1, "capacity_load": capacity,
        "timing_source": "estimated", "timing_description": None, "timing_in_range_share": None,
    }  # fmt: skip


def probe(
    index: int, load: float, *, stopped: bool = False, carried: bool = True
) -> dict[str, Any]:
    return {
        "trial_id": index, "load": load, "offered_rps": 2 * load, "attainment": 0.97,
        "is_carried": carried, "is_stopped": stopped,
        X: None if stopped else 100.0 / load, Y: None if stopped else 50.0 * load,
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
        probe(1, 1.0), probe(3, 0.7), probe(0, 0.02, carried=False),
    ]  # fmt: skip
    return pl.DataFrame(rows)


@pytest.fixture
def curves(trials: pl.DataFrame, probes: pl.DataFrame) -> list[Curve]:
    return curves_of(trials, probes, ranked=[2, 3, 1])


def test_a_family_is_drawn_by_its_best_layout(curves: list[Curve]) -> None:
    assert [curve.name for curve in curves] == ["TP2", "TP4"]
    assert curves[0].layout == "3xTP2"
    assert [point.load for point in curves[0].points] == [0.5, 1.5, 1.6]


def test_behind_the_capacity_nothing_is_carried(curves: list[Curve]) -> None:
    assert [point.load for point in curves[0].carried] == [0.5, 1.5]
    assert [point.load for point in curves[0].beyond] == [1.5, 1.6]
    assert all(point.is_carried for point in curves[0].carried)


def test_the_picture_marks_capacities_and_names_the_timing(
    curves: list[Curve], trials: pl.DataFrame, tmp_path: Path
) -> None:
    figure = curves_figure(title="t", curves=curves, trials=trials)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["TP2: 3xTP2", "TP4: 4xTP4"]
    texts = [text.get_text() for text in axes.texts]
    assert "3 req/s" in texts and "ESTIMATED TIMING" in texts
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert [tuple(line.get_xydata()[0]) for line in diamonds] == [
        (100 / 1.5, 75.0),
        (100 / 0.7, 35.0),
    ]
    assert axes.get_xlim()[0] == 0 and axes.get_ylim()[0] == 0
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        write_curves_png(path, title="t", curves=curves, trials=trials)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_without_any_capacity_it_says_so(trials: pl.DataFrame) -> None:
    figure = curves_figure(title="t", curves=[], trials=trials)
    assert "no layout carries any load" in [text.get_text() for text in figure.axes[0].texts]


def test_on_the_screen_a_point_tells_its_load(curves: list[Curve]) -> None:
    drawn = curves_plot(curves, source="measured", note="n")
    carried = next(trace for trace in drawn.data if trace.get("name") == "TP2: 3xTP2")
    assert carried["text"][1].startswith("3 req/s (1.5x)<br>97.0 % within the SLA")
    assert [
        trace["marker"]["symbol"] for trace in drawn.data if "symbol" in trace.get("marker", {})
    ] == ["diamond"] * 2
