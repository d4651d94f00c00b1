"""Measured and predicted distributions, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynosim.plots import style
from dynosim.plots.series import distribution, mean_row_gaps
from dynosim.records import FloatArray, RequestLog, RequestStatus, RunResult
from dynosim_runtime.validate.compare import latency_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = (
    ("Time to first token", "ttft_ms"),
    ("Inter-token latency, all gaps", "itl"),
    ("Time per output token, per request", "tpot_ms"),
    ("End-to-end latency", "e2e_ms"),
)
_WIDE = 30  # largest over smallest: beyond it, a logarithmic axis


def write_comparison_png(
    path: Path,
    predicted: RunResult,
    measured: RequestLog,
    measured_gaps_ms: FloatArray,
    *,
    title: str,
) -> None:
    """Draw the cumulative distributions of both. The same data give the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=style.BLACK)
    axes = figure.subplots(2, 2).ravel()
    for panel, (name, key) in zip(axes, _PANELS, strict=True):
        if key == "itl":
            gaps, weights = mean_row_gaps(predicted.steps)
            stalled = predicted.stalled_gaps_ms
            foretold = np.concatenate((gaps, stalled))
            weights = np.concatenate((weights, np.ones(len(stalled))))
            seen = measured_gaps_ms
        else:
            foretold = _completed(predicted.requests, key)
            weights = np.ones(len(foretold))
            seen = _completed(measured, key)
        _draw(panel, foretold, weights, "predicted", style.ORANGE)
        _draw(panel, seen, np.ones(len(seen)), "measured", style.BLUE)
        panel.set_title(name, loc="left", fontsize=11, fontweight="bold", color=style.BLACK)
        _finish(panel, np.concatenate((foretold, seen)))
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _completed(log: RequestLog, name: str) -> FloatArray:
    values: FloatArray = latency_ms(log, name)[log.status == RequestStatus.COMPLETED]
    return values


def _draw(panel: "Axes", values: FloatArray, weights: FloatArray, label: str, colour: str) -> None:
    x, y = distribution(values, weights)
    panel.plot(x, y, drawstyle="steps-post", color=colour, label=label, linewidth=1.6)


def _finish(panel: "Axes", values: FloatArray) -> None:
    known = values[values > 0]
    if len(known) and known.max() > _WIDE * known.min():
        panel.set_xscale("log")
    panel.set_xlabel("ms")
    panel.set_ylim(0, 1.02)
    panel.grid(color=style.GRID)
    panel.legend(frameon=False, loc="lower right")
