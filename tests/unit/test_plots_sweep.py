import json
from pathlib import Path

import polars as pl
import pytest

from dynosim.plots import trials as trial_table
from dynosim.plots.png_chart import chart_figure
from dynosim.plots.sweep_charts import SweepCharts, write_pareto_png
from dynosim.plots.sweep_html import sweep_page, write_sweep_html

OBJECTIVES = ("output_tok_s_per_gpu", "mean_output_token_throughput_per_user")
SHAPES = [(1, 4), (2, 2), (4, 1), (8, 1)]


def trial(index: int, tp: int, workers: int, y: float | None, x: float | None, **more) -> dict:
    return {
        "trial_id": index,
        "status": "ok",
        "reason": None,
        "is_pareto": True,
        "is_sla_pareto": True,
        "meets_sla": True,
        "engine.tensor_parallel": tp,
        "cluster.workers": workers,
        "router.mode": "round-robin" if index % 2 else "least-loaded",
        "engine.max_num_batched_tokens": 8192,
        "num_gpus": tp * workers,
        "saturated": False,
        "timing_source": "measured",
        "timing_description": "tables",
        "timing_in_range_share": 1.0,
        OBJECTIVES[0]: y,
        OBJECTIVES[1]: x,
        **more,
    }


@pytest.fixture
def trials() -> pl.DataFrame:
    rows = [trial(i, *shape, 400.0 - 90 * i, 20.0 + 40 * i) for i, shape in enumerate(SHAPES)]
    rows[0] |= {"saturated": True, "meets_sla": False, "is_sla_pareto": False}
    blank = {"is_pareto": False, "is_sla_pareto": False, "meets_sla": None, "saturated": None}
    blank |= {"timing_source": None, "timing_description": None, "timing_in_range_share": None}
    rows.append(trial(4, 8, 4, None, None, status="infeasible", reason="32 GPUs <budget>", **blank))
    return pl.DataFrame(rows, infer_schema_length=None)


def test_picture_is_a_png_and_the_same_every_time(trials: pl.DataFrame, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        write_pareto_png(path, title="t", trials=trials, objectives=OBJECTIVES)
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_picture_marks_doubts_and_names_the_timing(trials: pl.DataFrame) -> None:
    figure = chart_figure(SweepCharts(trials, OBJECTIVES).frontier())
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert {"saturated", "misses SLA", "Pareto frontier", "within the SLA"} <= set(names)
    assert "Step times measured: tables" in figure.get_supxlabel()
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert "4xTP1 ll" in labels


def test_picture_of_estimated_times_says_so_across(trials: pl.DataFrame) -> None:
    estimated = trials.with_columns(pl.lit("estimated").alias("timing_source"))
    figure = chart_figure(SweepCharts(estimated, OBJECTIVES).frontier())
    assert "ESTIMATED TIMING" in [text.get_text() for text in figure.axes[0].texts]


def test_mixed_sources_are_not_passed_off_as_measured(trials: pl.DataFrame) -> None:
    source = pl.when(pl.col("trial_id") == 1).then(pl.lit("derived")).otherwise("timing_source")
    mixed = trials.with_columns(source.alias("timing_source"))
    assert trial_table.common_source(mixed) == "mixed"
    assert "derived and measured" in trial_table.timing_note(mixed)


def test_layouts_of_one_sweep_name_the_tables_and_versions_that_they_share(
    trials: pl.DataFrame,
) -> None:
    texts = [
        f"tables 0.12.0: M on h200_sxm, vllm 0.24.0, tensor_parallel {n}, plus 1 ms (H100, 0.1)"
        for n in (2, 8)
    ]
    second = pl.when(pl.col("trial_id") == 1).then(pl.lit(texts[1])).otherwise(pl.lit(texts[0]))
    mixed = trials.with_columns(second.alias("timing_description"))
    note = trial_table.timing_note(mixed)
    assert ": tables 0.12.0: M on h200_sxm, vllm 0.24.0, plus 1 ms (H100, 0.1) ·" in note
    assert "tensor_parallel" not in note


def test_a_sweep_without_a_finished_trial_still_has_its_files(
    trials: pl.DataFrame, tmp_path: Path
) -> None:
    none = trials.filter(pl.col("status") != "ok")
    write_pareto_png(tmp_path / "p.png", title="t", trials=none, objectives=OBJECTIVES)
    write_sweep_html(
        tmp_path / "r.html", title="t", spec_yaml="", trials=none, objectives=OBJECTIVES
    )
    page = (tmp_path / "r.html").read_text()
    assert "No trial finished" in page
    assert "32 GPUs &lt;budget&gt;" in page


def test_page_tells_frontier_reasons_and_warnings(trials: pl.DataFrame) -> None:
    page = sweep_page("t", "space: {}", trials, OBJECTIVES)
    titles = [part.title for part in page.parts]
    assert titles[0] == "Pareto frontier"
    assert "Infeasible: 1" in titles
    assert page.lead == "5 trials: 4 finished, 1 infeasible"
    assert any("1 of 4 trials are saturated" in note.text for note in page.notes)
    for part in page.parts:
        if part.figure:
            json.dumps([part.figure.data, part.figure.layout], allow_nan=False)
            assert "Step times measured: tables" in part.figure.note


def test_hover_tells_configuration_and_escapes_it(trials: pl.DataFrame) -> None:
    odd = trials.with_columns(pl.lit("<x>").alias("router.mode"), pl.col("trial_id"))
    odd = odd.with_columns(pl.concat_str("router.mode", "trial_id").alias("router.mode"))
    figure = sweep_page("t", "", odd, OBJECTIVES).parts[0].figure
    assert figure is not None
    hovers = [text for trace in figure.data for text in trace.get("text", [])]
    assert all("&lt;x>" in text for text in hovers)


def test_one_trial_and_nothing_varied(trials: pl.DataFrame) -> None:
    page = sweep_page("t", "", trials.head(1), OBJECTIVES)
    for part in page.parts:
        if part.figure:
            json.dumps([part.figure.data, part.figure.layout], allow_nan=False)
    chart_figure(SweepCharts(trials.head(1), OBJECTIVES).frontier())


def test_keys_of_the_space_are_the_dotted_ones(trials: pl.DataFrame) -> None:
    assert trial_table.varied_keys(trials) == [
        "engine.tensor_parallel",
        "cluster.workers",
        "router.mode",
    ]
    names = trial_table.short_names(["a.x", "b.x", "a.y"])
    assert names == {"a.x": "a.x", "b.x": "b.x", "a.y": "y"}


def test_label_names_shape_router_and_budget() -> None:
    row = trial(1, 2, 4, 1.0, 1.0)
    keys = ["router.mode", "engine.max_num_batched_tokens", "engine.block_size"]
    row["engine.block_size"] = 32
    assert trial_table.label(row, keys) == "4xTP2 rr 8192 block_size=32"
    assert trial_table.label({"trial_id": 3}, []) == "trial 3"


def test_labels_that_would_cover_another_are_left_out(trials: pl.DataFrame) -> None:
    twins = pl.concat([trials, trials])
    one = trial_table.frontier_labels(trials, OBJECTIVES)
    assert len(trial_table.frontier_labels(twins, OBJECTIVES)) == len(one)


def test_intervals_are_drawn_where_they_were_made(trials: pl.DataFrame) -> None:
    plain = sweep_page("t", "", trials, OBJECTIVES).parts[0].figure
    assert plain is not None
    assert trial_table.error_bars(trials, OBJECTIVES) == []
    ends = {f"{OBJECTIVES[0]}_low": 290.0, f"{OBJECTIVES[0]}_high": 305.0}
    ends |= {f"{OBJECTIVES[1]}_low": 61.0, f"{OBJECTIVES[1]}_high": 70.0}  # 60 is not inside
    one = pl.col("trial_id") == 1
    sure = trials.with_columns(pl.when(one).then(value).alias(key) for key, value in ends.items())
    bars = trial_table.error_bars(sure, OBJECTIVES)
    assert [(bar.x, bar.y) for bar in bars] == [
        ((60.0, 60.0), (290.0, 305.0)),
        ((61.0, 70.0), (310.0, 310.0)),
    ]
    page = sweep_page("t", "", sure, OBJECTIVES)
    drawn = page.parts[0].figure
    assert drawn is not None and len(drawn.data) == len(plain.data) + 1
    line = next(trace for trace in drawn.data if trace["name"] == trial_table.ERROR_BARS)
    assert line["y"] == [290.0, 305.0, None, 310.0, 310.0, None]
    hovers = [text for trace in drawn.data for text in trace.get("text", [])]
    assert sum("(290 to 305)" in text for text in hovers) == 1
    table = next(part.table for part in page.parts if part.table is not None)
    assert (310, "310 (290 to 305)") in table.rows[1]
    figure = chart_figure(SweepCharts(sure, OBJECTIVES).frontier())
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names.count(trial_table.ERROR_BARS) == 1
