import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_runs import ToyRun, ToyTiming, toy_run

from dynosim.metrics import summarize
from dynosim.plots import series, style
from dynosim.plots.page import Figure, Note, Page, Part, render_page, write_page
from dynosim.plots.plotly_chart import plotly_figure
from dynosim.plots.run_figures import RunFigures
from dynosim.plots.run_html import run_notes, run_page, write_run_html


def report_of(run: ToyRun) -> dict:
    return summarize(run.result, run.timing, sla=None, wall_time_ms=1.0)


def page_of(run: ToyRun) -> Page:
    return run_page("a run", "name: x\n", report_of(run), run.result, run.trace)


def texts(figure: Figure) -> list[str]:
    return [annotation["text"] for annotation in figure.layout["annotations"]]


def test_page_is_one_file_that_asks_nobody(tmp_path: Path) -> None:
    run = toy_run()
    path = tmp_path / "report.html"
    write_run_html(
        path, title="<b>", config_yaml="a: </script>", report=report_of(run),
        result=run.result, trace=run.trace,
    )  # fmt: skip
    page = path.read_text()
    assert "&lt;b&gt;" in page
    assert "a: &lt;/script&gt;" in page
    links = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[^>]*>", page)
    assert links == ['<link rel="icon" href="data:,">']
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert len(re.findall(r'<div class="figure"', page)) == 5


@pytest.mark.parametrize("workers", [1, 12])
@pytest.mark.parametrize("requests", [0, 1, 60])
def test_every_figure_is_valid_json_for_any_run(workers: int, requests: int) -> None:
    for part in page_of(toy_run(requests, workers=workers)).parts:
        if part.figure:
            json.dumps([part.figure.data, part.figure.layout], allow_nan=False)


@pytest.mark.parametrize(
    ("source", "words"),
    [("measured", None), ("derived", "DERIVED TIMING"), ("estimated", "ESTIMATED TIMING")],
)
def test_every_plot_says_what_its_times_rest_on(source: str, words: str | None) -> None:
    figures = [part.figure for part in page_of(toy_run(timing=ToyTiming(source=source))).parts]
    figures = [figure for figure in figures if figure]
    assert len(figures) == 5
    for figure in figures:
        assert f"Step times {source}: toy line" in figure.note
        assert (words in texts(figure)) if words else not any("TIMING" in t for t in texts(figure))


def test_notes_warn_of_what_the_reader_must_know() -> None:
    run = toy_run()
    report = report_of(run) | {
        "saturated": True,
        "saturation_reason": "the queue kept growing",
        "timing_in_range_share": 0.98765,
        "timing_notes": "all-reduce substituted",
        "rejected_requests": 3,
    }
    notes = run_notes(report, replace(run.trace, skipped_lines=7))
    words = " ".join(note.text for note in notes)
    for part in ("98.8 %", "Saturated", "all-reduce substituted", "3 rejected", "7 bad lines"):
        assert part in words
    assert all(note.is_warning for note in notes)


def test_a_clean_run_has_one_plain_note() -> None:
    run = toy_run()
    (note,) = run_notes(report_of(run), run.trace)
    assert not note.is_warning


def test_marks_on_the_distributions_are_the_reports_percentiles() -> None:
    run = toy_run()
    report = report_of(run)
    figure = plotly_figure(RunFigures(run.result, report).latencies())
    marks = [trace for trace in figure.data if trace["mode"] == "markers+text"]
    for mark, metric in zip(marks, ("ttft_ms", "itl_ms", "tpot_ms", "e2e_latency_ms"), strict=True):
        assert mark["x"] == [report[f"{name}_{metric}"] for name in ("median", "p90", "p99")]


def test_share_reads_whole_only_when_it_is() -> None:
    assert style.share_text(1.0) == "100 %"
    assert style.share_text(0.99999) == "99.9 %"
    assert style.share_text(0.00001) == "0.1 %"
    assert style.share_text(0.0) == "0 %"


def test_distribution_keeps_both_ends_and_stays_exact() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.random(5000), rng.integers(1, 9, 5000).astype(np.float64)
    x, y = series.distribution(values, weights)
    assert len(x) <= series.MAX_CURVE_POINTS + 2
    assert x[0] == values.min()
    assert (x[-1], y[-1]) == (values.max(), 1.0)
    for point, share in zip(x, y, strict=True):
        assert share == pytest.approx(weights[values <= point].sum() / weights.sum())


def test_interval_percentiles_are_nearest_ranks_of_each_interval() -> None:
    interval = np.array([0, 0, 0, 2, 2])
    values = np.array([3.0, 1.0, 2.0, 9.0, 8.0])
    (median,) = series.interval_percentiles(
        interval, values, np.array([1.0, 1.0, 1.0, 1.0, 3.0]), num_intervals=3, percents=(50,)
    )
    assert median[0] == 2.0
    assert np.isnan(median[1])
    assert median[2] == 8.0


def test_numbers_are_short_and_nan_is_null() -> None:
    values = np.array([1.23456789, np.nan, 3.0, np.inf])
    assert series.rounded(values) == [1.23457, None, 3, None]
    assert series.rounded(np.array([1, 2])) == [1, 2]


def test_a_page_cannot_be_broken_out_of(tmp_path: Path) -> None:
    figure = Figure([{"name": "</script><script>alert(1)"}], {"height": 10})
    page = Page("t", "l", [Note("<i>")], [("<u>", "1")], [Part("<s>", figure=figure)])
    text = render_page(page)
    for tag in ("<i>", "<u>", "<s>", "<script>alert"):
        assert tag not in text
    write_page(tmp_path / "p.html", page)
    assert (tmp_path / "p.html").read_text() == text
