from dataclasses import replace

import numpy as np
import pytest
from toy_runs import ToyTiming, toy_run

from dynosim.metrics import request_table, summarize, timeline_table
from dynosim.plots.notebook import MAX_LINES, latency_cdf, timeline_figure
from dynosim.records import RequestStatus


@pytest.mark.parametrize("workers", [2, 12])
def test_figures_of_a_run_carry_its_timing_note(workers: int) -> None:
    run = toy_run(workers=workers, timing=ToyTiming(source="estimated"))
    report = summarize(run.result, run.timing, sla=None, wall_time_ms=1.0)
    figures = (
        latency_cdf(request_table(run.result, run.trace), report=report),
        timeline_figure(timeline_table(run.result), report=report),
    )
    for figure in figures:
        assert "Step times estimated" in figure.get_supxlabel()
        for axes in figure.axes:
            assert "ESTIMATED TIMING" in [text.get_text() for text in axes.texts]
        figure.canvas.draw()


def test_distributions_are_of_completed_requests_alone() -> None:
    run = toy_run(20)
    log = run.result.requests
    status = log.status.copy()
    status[4] = int(RequestStatus.FAILED)
    result = replace(run.result, requests=replace(log, status=status))
    figure = latency_cdf(request_table(result, run.trace), report={"timing_source": "measured"})
    done = np.arange(20) != 4
    gaps = np.where(log.output_tokens > 1, log.output_tokens - 1, np.nan)
    tpot_ms = ((log.finish_ms - log.first_token_ms) / gaps)[done]
    samples = [
        (log.first_token_ms - log.arrival_ms)[done],
        tpot_ms[~np.isnan(tpot_ms)],
        (log.finish_ms - log.arrival_ms)[done],
    ]
    for axes, sample in zip(figure.axes, samples, strict=True):
        (line,) = axes.lines
        assert line.get_xdata().tolist() == pytest.approx(sorted(sample))
        shares = [place / len(sample) for place in range(1, len(sample) + 1)]
        assert line.get_ydata().tolist() == pytest.approx(shares)
        is_wide = max(sample) > 30 * min(sample)
        assert axes.get_xscale() == ("log" if is_wide else "linear")


@pytest.mark.parametrize("workers", [MAX_LINES, MAX_LINES + 1])
def test_levels_are_drawn_by_worker_or_as_mean_and_extremes(workers: int) -> None:
    run = toy_run(40, workers=workers)
    table = timeline_table(run.result)
    figure = timeline_figure(table, report={"timing_source": "measured"})
    count = len(table) // workers
    seconds = [start / 1000 for start in table["start_ms"].to_list()[:count]]
    for axes, column in zip(figure.axes, ("waiting", "running", "kv_used_share"), strict=True):
        values = np.array(table[column].to_list()).reshape(workers, count)
        expected = values if workers <= MAX_LINES else values.mean(axis=0, keepdims=True)
        assert len(axes.lines) == len(expected)
        for line, row in zip(axes.lines, expected, strict=True):
            assert line.get_xdata().tolist() == seconds
            assert line.get_ydata().tolist() == pytest.approx(row.tolist())
        if workers > MAX_LINES:
            (band,) = axes.collections
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == (values.min(), values.max())
