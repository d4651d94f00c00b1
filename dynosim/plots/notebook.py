"""Figures for notebooks: matplotlib figures of the request table and the timeline of one run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.plots import style

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

_LATENCIES = {
    "ttft_ms": "Time to first token (ms)",
    "tpot_ms": "Time per output token (ms)",
    "e2e_ms": "End-to-end latency (ms)",
}
_LEVELS = {
    "waiting": "waiting requests",
    "running": "running requests",
    "kv_used_share": "KV blocks in use (share)",
}
MAX_LINES = 8  # workers drawn one by one; of more, the mean and the extremes are drawn


def latency_cdf(requests: "pl.DataFrame", *, report: Report) -> "Figure":
    """Cumulative distributions of the completed requests' latencies, from `request_table`."""
    figure = _figure(10, 3.4, report)
    panels = figure.subplots(1, len(_LATENCIES), sharey=True)
    completed = requests.filter(requests["status"] == "completed")
    for axes, color, (name, title) in zip(panels, style.PALETTE, _LATENCIES.items(), strict=False):
        ordered = np.sort(completed[name].drop_nulls().to_numpy())
        shares = np.arange(1, len(ordered) + 1) / max(1, len(ordered))
        axes.step(ordered, shares, where="post", color=color, linewidth=1.8)
        if len(ordered) and ordered[0] > 0 and ordered[-1] > 30 * ordered[0]:
            axes.set_xscale("log")
        axes.set_xlabel(title)
        _quiet(axes, report)
    panels[0].set_ylabel("share of requests")
    return figure


def timeline_figure(timeline: "pl.DataFrame", *, report: Report) -> "Figure":
    """Queue, batch and KV use of every worker over time, from `timeline_table`."""
    figure = _figure(10, 6.2, report)
    panels = figure.subplots(len(_LEVELS), 1, sharex=True)
    num_workers = int(timeline["worker_id"].n_unique())
    seconds = timeline["start_ms"].to_numpy().reshape(num_workers, -1)[0] / 1000
    for axes, (name, title) in zip(panels, _LEVELS.items(), strict=True):
        levels = timeline[name].to_numpy().reshape(num_workers, -1)
        values = np.ma.masked_invalid(levels)  # a worker that is not there
        if num_workers <= MAX_LINES:
            for worker, row in enumerate(values):
                color = style.PALETTE[worker]
                axes.plot(seconds, row, color=color, linewidth=1.3, label=f"worker {worker}")
        else:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(seconds, low, high, color=style.SKY, alpha=0.4, label="all workers")
            axes.plot(seconds, values.mean(axis=0), color=style.BLUE, label="mean")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(bottom=0)
        _quiet(axes, report)
    panels[-1].set_xlabel("virtual time (s)")
    panels[0].legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
    return figure


def _figure(width: float, height: float, report: Report) -> "Figure":
    """A figure with the run's timing note at its foot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    note = style.timing_note(report)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=style.GREY, wrap=True)
    return figure


def _quiet(axes: "Axes", report: Report) -> None:
    axes.grid(color=style.GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    words = style.watermark(report.get("timing_source"))
    if words:
        axes.text(
            0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", rotation=14,
            fontsize=17, fontweight="bold", color=style.VERMILLION, alpha=0.18,
        )  # fmt: skip
