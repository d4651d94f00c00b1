"""What the page and the picture of a sweep draw is what its table of trials says."""

from typing import Any

import polars as pl
import pytest

from dynosim.plots import trials as trial_table
from dynosim.plots.axis_curve import axis_chart, varied_axis
from dynosim.plots.page import Figure
from dynosim.plots.plotly_chart import plotly_figure
from dynosim.plots.png_chart import chart_figure
from dynosim.plots.sweep_charts import SweepCharts
from dynosim.plots.sweep_html import sweep_page

UP, RIGHT = "output_tok_s_per_gpu", "mean_output_token_throughput_per_user"
OBJECTIVES = (UP, RIGHT)


def trial(index: int, tp: int, up: float, right: float, **more: Any) -> dict[str, Any]:
    return {
        "trial_id": index,
        "status": "ok",
        "reason": None,
        "is_pareto": True,
        "is_sla_pareto": True,
        "meets_sla": True,
        "engine.tensor_parallel": tp,
        "engine.block_size": 16,
        "router.mode": "kv",
        "num_gpus": 8 * tp,
        "mean_ttft_ms": 100.0 + index,
        "p99_ttft_ms": 200.0 + index,
        "mean_itl_ms": 10.0 + index,
        "p99_itl_ms": 20.0 + index,
        "prefix_cache_reused_ratio": 0.25 + index / 100,
        "sla_attainment": 0.75 + index / 100,
        "goodput_rps": 3.5 + index,
        "saturated": False,
        "timing_source": "measured",
        "timing_description": "tables",
        "timing_in_range_share": 1.0,
        UP: up,
        RIGHT: right,
        **more,
    }


@pytest.fixture
def trials() -> pl.DataFrame:
    """Four that ran, two of them on the frontier; one has no number, one did not run."""
    no = {"is_pareto": False, "is_sla_pareto": False}
    rows = [
        trial(0, 2, 50.0, 80.0),
        trial(1, 1, 90.0, 20.0, is_sla_pareto=False, meets_sla=False, saturated=True),
        trial(2, 1, 40.0, 30.0, **no, **{"router.mode": "random"}),
        trial(3, 2, 45.0, 60.0, is_pareto=False, timing_in_range_share=0.9),
        trial(4, 2, 45.0, float("nan"), **no),
        trial(5, 4, 99.0, 99.0, status="failed", reason="it broke", **no),
    ]
    return pl.DataFrame(rows)


def named(figure: Figure, name: str) -> dict[str, Any]:
    (found,) = [trace for trace in figure.data if trace.get("name") == name]
    return found


def points(trace: dict[str, Any]) -> list[tuple[float, float]]:
    return list(zip(trace["x"], trace["y"], strict=True))


def test_trials_are_drawn_at_their_objectives_by_tensor_parallelism(trials: pl.DataFrame) -> None:
    figure = plotly_figure(SweepCharts(trials, OBJECTIVES).frontier())
    assert points(named(figure, "TP1")) == [(20.0, 90.0), (30.0, 40.0)]
    assert points(named(figure, "TP2")) == [(80.0, 50.0), (60.0, 45.0)]
    assert named(figure, "TP1")["marker"]["size"] == [12, 8]
    assert named(figure, "TP2")["marker"]["size"] == [12, 8]
    assert not [trace for trace in figure.data if trace["name"] == "TP4"]
    assert figure.layout["yaxis"]["title"]["text"] == "output tokens/s per GPU"
    assert figure.layout["xaxis"]["title"]["text"] == "output tokens/s per user (mean)"


def test_frontiers_run_along_the_horizontal_axis(trials: pl.DataFrame) -> None:
    figure = plotly_figure(SweepCharts(trials, OBJECTIVES).frontier())
    assert points(named(figure, "Pareto frontier")) == [(20.0, 90.0), (80.0, 50.0)]
    assert points(named(figure, "within the SLA")) == [(60.0, 45.0), (80.0, 50.0)]
    same = trials.with_columns(is_sla_pareto="is_pareto")
    names = [
        trace["name"] for trace in plotly_figure(SweepCharts(same, OBJECTIVES).frontier()).data
    ]
    assert "within the SLA" not in names


def test_doubts_are_marked_on_their_trials(trials: pl.DataFrame) -> None:
    figure = plotly_figure(SweepCharts(trials, OBJECTIVES).frontier())
    assert points(named(figure, "saturated")) == [(20.0, 90.0)]
    assert points(named(figure, "misses SLA")) == [(20.0, 90.0)]
    unknown = trials.with_columns(meets_sla=pl.lit(None, pl.Boolean), saturated=pl.lit(False))
    names = [
        trace["name"] for trace in plotly_figure(SweepCharts(unknown, OBJECTIVES).frontier()).data
    ]
    assert names == ["Pareto frontier", "within the SLA", "TP1", "TP2"]


def test_hovering_tells_the_trials_own_numbers(trials: pl.DataFrame) -> None:
    known = trials.with_columns(p99_itl_ms_low=pl.lit(19.5), p99_itl_ms_high=pl.lit(23.25))
    figure = plotly_figure(SweepCharts(known, OBJECTIVES).frontier())
    assert named(figure, "TP1")["text"][0].split("<br>") == [
        "<b>TP1 kv (trial 1)</b>",
        "output tokens/s per GPU: 90",
        "output tokens/s per user (mean): 20",
        "GPUs: 8",
        "TTFT mean (ms): 101",
        "TTFT p99 (ms): 201",
        "ITL mean (ms): 11",
        "ITL p99 (ms): 21 (19.5 to 23.25)",
        "cache reuse: 0.26",
        "within SLA: 0.76",
        "engine.tensor_parallel: 1",
        "router.mode: kv",
        "saturated",
        "misses the SLA",
    ]


def test_parallel_coordinates_hold_every_finished_trial(trials: pl.DataFrame) -> None:
    (trace,) = SweepCharts(trials, OBJECTIVES).parallel_coordinates().data
    tp, mode, up, right = trace["dimensions"]
    assert (tp["label"], tp["ticktext"]) == ("tensor_parallel", ["1", "2"])
    assert (tp["values"], tp["tickvals"]) == ([1, 0, 0, 1], [0, 1])
    assert (mode["label"], mode["values"]) == ("mode", [0, 0, 1, 0])
    assert (up["label"], up["values"]) == ("output tokens/s per GPU", [50.0, 90.0, 40.0, 45.0])
    assert right["values"] == [80.0, 20.0, 30.0, 60.0]
    assert trace["line"]["color"] == up["values"]


def test_boxes_hold_the_first_objective_by_value_of_each_setting(trials: pl.DataFrame) -> None:
    tp, mode = plotly_figure(SweepCharts(trials, OBJECTIVES).effects()).data
    assert (tp["x"], tp["y"]) == (["1", "1", "2", "2"], [90.0, 40.0, 50.0, 45.0])
    assert (mode["x"], mode["y"]) == (["kv", "kv", "kv", "random"], [50.0, 90.0, 45.0, 40.0])
    assert (tp["xaxis"], mode["xaxis"]) == ("x", "x2")
    assert tp["text"][:2] == ["TP1 kv", "TP1 rnd"]


def test_values_of_a_setting_are_in_order_of_size() -> None:
    sizes = [1024, 64, 512]
    rows = [
        trial(index, 1, 10.0 + index, 1.0, **{"engine.block_size": size})
        for index, size in enumerate(sizes)
    ]
    (box,) = plotly_figure(SweepCharts(pl.DataFrame(rows), OBJECTIVES).effects()).data
    assert box["x"] == ["64", "512", "1024"]
    rows[0]["engine.block_size"] = None
    (box,) = plotly_figure(SweepCharts(pl.DataFrame(rows), OBJECTIVES).effects()).data
    assert box["x"] == ["64", "512", "None"]  # words come last


def test_tables_list_trials_with_their_numbers_best_first(trials: pl.DataFrame) -> None:
    sure = trials.with_columns(
        is_pareto_share=pl.when(pl.col("trial_id") == 0).then(0.625).otherwise(1.0),
        goodput_rps_low=pl.lit(3.0),
        goodput_rps_high=pl.lit(6.125),
    )
    page = sweep_page("t", "", sure, OBJECTIVES)
    parts = {part.title: part for part in page.parts}
    table = parts["Trials"].table
    assert table is not None
    assert [column.title for column in table.columns if not column.is_hidden] == [
        "trial", "layout", "tensor_parallel", "mode", "GPUs", "out tok/s/GPU", "out tok/s/user",
        "TTFT mean (ms)",
        "TTFT p99 (ms)", "ITL mean (ms)", "ITL p99 (ms)", "reuse", "in SLA", "goodput/s", "remarks",
    ]  # fmt: skip
    first, second = table.rows[0], table.rows[1]
    assert first == [
        1, "TP1 kv", 1, "kv", 8, 90, 20, 101, 201, 11, 21, 0.26, 0.76, (4.5, "4.5 (3 to 6.125)"),
        "on the frontier, saturated, misses SLA",
    ]  # fmt: skip
    assert second[:7] == [0, "TP2 kv", 2, "kv", 16, 50, 80]
    assert second[-1] == "on the frontier, there in 62 % of replays"
    assert [row[0] for row in table.rows] == [1, 0, 3, 4, 2]
    failed = parts["Failed: 1"].table
    assert failed is not None
    assert [list(row) for row in failed.rows] == [[5, "TP4 kv", 4, "kv", "it broke"]]


def test_cards_and_notes_count_and_name_the_best(trials: pl.DataFrame) -> None:
    page = sweep_page("t", "", trials, OBJECTIVES)
    assert page.cards == [
        ("trials", "6"),
        ("on the frontier", "2"),
        ("largest output tokens/s per GPU: TP1 kv", "90"),
        ("largest output tokens/s per user (mean): TP2 kv", "80"),
    ]
    assert page.lead == "6 trials: 5 finished, 1 failed"
    assert [note.text for note in page.notes] == [
        "Step times measured: tables · at least 90.0 % of steps inside the measured range",
        "1 of 4 trials are saturated (ringed): their latencies depend on the length of the trace, "
        "so compare their throughput only.",
        "1 of 4 trials miss the SLA (crossed).",
    ]
    assert [note.is_warning for note in page.notes] == [True, True, False]


def test_measured_steps_inside_their_range_are_no_warning(trials: pl.DataFrame) -> None:
    sure = trials.with_columns(timing_in_range_share=pl.lit(1.0))
    note = sweep_page("t", "", sure, OBJECTIVES).notes[0]
    assert (note.text, note.is_warning) == (
        "Step times measured: tables · 100 % of steps inside the measured range",
        False,
    )


def test_the_picture_draws_the_same_points(trials: pl.DataFrame) -> None:
    axes = chart_figure(SweepCharts(trials, OBJECTIVES).frontier()).axes[0]
    drawn = {group.get_label(): group.get_offsets().tolist() for group in axes.collections}
    assert drawn == {
        "TP1": [[20.0, 90.0], [30.0, 40.0]],
        "TP2": [[80.0, 50.0], [60.0, 45.0]],
        "saturated": [[20.0, 90.0]],
        "misses SLA": [[20.0, 90.0]],
    }
    sizes = {group.get_label(): group.get_sizes().tolist() for group in axes.collections}
    assert sizes["TP1"] == sizes["TP2"] and sizes["TP1"][0] > sizes["TP1"][1]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "Pareto frontier": [[20.0, 90.0], [80.0, 50.0]],
        "within the SLA": [[60.0, 45.0], [80.0, 50.0]],
    }
    assert axes.get_ylabel() == "output tokens/s per GPU"


def test_labels_stand_at_their_points_and_turn_left_near_the_edge(trials: pl.DataFrame) -> None:
    labels = trial_table.frontier_labels(trials, OBJECTIVES)
    assert [(label.text, label.x, label.y, label.is_left) for label in labels] == [
        ("TP1 kv", 20.0, 90.0, False),
        ("TP2 kv", 80.0, 50.0, True),
        ("TP2 kv", 60.0, 45.0, False),
    ]
    notes = plotly_figure(SweepCharts(trials, OBJECTIVES).frontier()).layout["annotations"]
    names = ("text", "x", "y", "xanchor", "xshift")
    drawn = [tuple(note[name] for name in names) for note in notes if "TP" in note["text"]]
    assert drawn == [
        ("TP1 kv", 20.0, 90.0, "left", 8),
        ("TP2 kv", 80.0, 50.0, "right", -8),
        ("TP2 kv", 60.0, 45.0, "left", 8),
    ]


@pytest.mark.parametrize(
    ("right", "up", "is_shown"),
    [(12.9, 4.4, False), (13.1, 4.4, True), (12.9, 4.6, True), (13.1, 4.6, True)],
)
def test_a_label_is_left_out_where_it_would_cover_another(
    right: float, up: float, is_shown: bool
) -> None:
    """Within 13 % of the width and 4.5 % of the height of another label."""
    no = {"is_pareto": False, "is_sla_pareto": False}
    rows = [trial(0, 1, 0.0, 0.0), trial(1, 2, up, right), trial(2, 4, 100.0, 100.0, **no)]
    labels = trial_table.frontier_labels(pl.DataFrame(rows), OBJECTIVES)
    assert len(labels) == 1 + is_shown


def test_unfinished_numbers_are_not_drawn(trials: pl.DataFrame) -> None:
    assert trial_table.finished(trials, OBJECTIVES)["trial_id"].to_list() == [0, 1, 2, 3]
    assert trial_table.finished(trials, (UP, UP))["trial_id"].to_list() == [0, 1, 2, 3, 4]


# ---- along one setting ---------------------------------------------------------------------------

BOOT = "cluster.startup.boot_s"


def along(*rows: tuple[float | str | None, float | None], key: str = BOOT) -> pl.DataFrame:
    """Trials of one setting, with what was within the SLA; the later the cheaper."""
    kept = {name: value for name, value in trial(0, 1, 1.0, 1.0).items() if "." not in name}
    return pl.DataFrame(
        [
            kept
            | {
                "trial_id": index,
                key: at,
                "sla_attainment": share,
                "gpu_hours": 9.0 - index,
                "p99_ttft_ms": 100.0 + index,
            }
            for index, (at, share) in enumerate(rows)
        ]
    )


CLIFF = along((60.0, 0.8), (5.0, 0.98), (300.0, 0.38))


def test_the_sla_along_the_setting_that_varies_is_what_trials_say() -> None:
    assert varied_axis(CLIFF) == BOOT
    chart = axis_chart(CLIFF, BOOT)
    drawn = plotly_figure(chart)
    lines = [trace for trace in drawn.data if trace["mode"] == "lines"]
    points = [trace for trace in drawn.data if trace["mode"] == "markers"]
    assert [(line["x"], line["y"]) for line in lines[:1]] == [
        ([5.0, 60.0, 300.0], [0.98, 0.8, 0.38])
    ]
    assert [panel.y.title for panel in chart.panels] == [
        "requests within the SLA", "TTFT p99 (s)", "GPU hours",
    ]  # fmt: skip
    assert lines[1]["y"] == pytest.approx([0.101, 0.1, 0.102])
    assert lines[2]["y"] == [8.0, 9.0, 7.0]
    assert [place[0] for place in points[0]["customdata"]] == [1, 0, 2]  # rows of the table
    assert points[0]["text"][2].endswith("38.0 % requests within the SLA")
    assert chart.panels[0].x.title == "cluster.startup.boot (s)"
    assert chart.panels[0].y.limits == (0.0, 1.02)
    picture = chart_figure(chart)
    ys = picture.axes[0].lines[0].get_ydata()
    assert list(ys) == [0.98, 0.8, 0.38]


def test_what_does_not_differ_is_not_drawn() -> None:
    same = CLIFF.with_columns(gpu_hours=pl.lit(2.0), p99_ttft_ms=pl.lit(5.0))
    assert len(axis_chart(same, BOOT).panels) == 1


@pytest.mark.parametrize(
    "trials",
    [
        along((5.0, 0.9), (60.0, 0.8)),  # no curve
        along((5.0, 0.9), (60.0, None), (90.0, None)),
        along(("a", 0.9), ("b", 0.8), ("c", 0.7), key="router.mode"),
        CLIFF.with_columns(pl.Series("cluster.workers", [1, 2, 3])),
        CLIFF.drop("sla_attainment"),
        CLIFF.with_columns(status=pl.lit("failed")),
    ],
)
def test_where_not_one_number_alone_varies_there_is_no_such_figure(trials: pl.DataFrame) -> None:
    assert varied_axis(trials) is None
    assert not [
        part for part in sweep_page("t", "", trials, OBJECTIVES).parts
        if part.title.startswith("Along")
    ]  # fmt: skip


def test_the_page_of_a_sweep_along_one_setting_begins_with_it() -> None:
    page = sweep_page("cliff", "", CLIFF, OBJECTIVES)
    assert [part.title for part in page.parts][:2] == [f"Along {BOOT}", "Pareto frontier"]
