import pytest
from toy_runs import ToyTiming, toy_run

from dynosim.metrics import request_table, summarize, timeline_table
from dynosim.plots.notebook import latency_cdf, timeline_figure


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
