"""Residuals of a fit as a picture: over time, and against what a model may have missed."""

from pathlib import Path

import numpy as np

from dynosim.fit.measurements import Measurements
from dynosim.fit.replay import Predicted
from dynosim.plots.style import BLUE, GREY, VERMILLION


def plot_residuals(measured: Measurements, predicted: Predicted, count: int, path: Path) -> None:
    """Writes a PNG of relative errors; requests behind the first `count` were not fitted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    colors = np.where(np.arange(len(measured)) < count, BLUE, VERMILLION)
    errors = {
        "first token": 100 * (predicted.ttft_ms / np.maximum(measured.ttft_ms, 1e-9) - 1),
        "first to last token": 100
        * (predicted.decode_ms / np.where(measured.decode_ms > 0, measured.decode_ms, np.nan) - 1),
    }
    against = {
        "arrival, s": measured.arrival_ms / 1000,
        "prompt, tokens": measured.input_tokens,
        "output, tokens": measured.output_tokens,
    }
    for row, (name, error) in zip(axes, errors.items(), strict=True):
        for axis, (label, values) in zip(row, against.items(), strict=True):
            axis.scatter(values, error, s=9, c=colors, linewidths=0)
            axis.axhline(0, color=GREY, linewidth=0.8)
            axis.set_xlabel(label)
        row[0].set_ylabel(f"{name}: error, %")
    figure.suptitle(f"{Path(measured.source).name}: blue fitted, red not seen by the fit")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
