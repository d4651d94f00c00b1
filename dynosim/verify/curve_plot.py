"""A throughput curve as a picture: output over time, measured and predicted."""

from pathlib import Path

from dynosim.plots.style import BLUE, GREY
from dynosim.verify.matrix import percent
from dynosim.verify.verdict import RecordingVerdict


def plot_curve(verdict: RecordingVerdict, path: Path) -> None:
    """Writes a PNG of a verdict that has a curve."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    second = verdict.series["second"]
    axis.step(second, verdict.series["measured"], where="pre", color=GREY, label="measured")
    axis.step(second, verdict.series["predicted"], where="pre", color=BLUE, label="predicted")
    axis.set_xlabel("s")
    axis.set_ylabel("output tokens/s")
    axis.set_ylim(bottom=0)
    axis.legend()
    off = percent(verdict.distances["curve"], signed=False)
    axis.set_title(
        f"{verdict.recording}: mean deviation {off} of the mean\n{verdict.timing}", fontsize=8
    )
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
