"""Figures for notebooks: matplotlib figures of the request table and the timeline of one run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynosim.plots import style
from dynosim.plots.chart import BandMark, Chart, ChartAxis, LineMark, Mark, Panel
from dynosim.plots.png_chart import chart_figure

if TYPE_CHECKING:
    import polars as pl
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
    panels = []
    completed = requests.filter(requests["status"] == "completed")
    for place, (color, (name, title)) in enumerate(
        zip(style.PALETTE, _LATENCIES.items(), strict=False)
    ):
        ordered = np.sort(completed[name].drop_nulls().to_numpy()).tolist()
        shares = [rank / len(ordered) for rank in range(1, len(ordered) + 1)]
        is_wide = bool(ordered) and 0 < ordered[0] < ordered[-1] / 30
        panels.append(
            Panel(
                x=ChartAxis(title=title, is_log=is_wide),
                y=ChartAxis(title="" if place else "share of requests"),
                marks=(LineMark(x=ordered, y=shares, color=color, width=2.1, is_stepped=True),),
            )
        )
    return _figure(panels, report, height=330, columns=len(panels))


def timeline_figure(timeline: "pl.DataFrame", *, report: Report) -> "Figure":
    """Queue, batch and KV use of every worker over time, from `timeline_table`."""
    num_workers = int(timeline["worker_id"].n_unique())
    seconds = timeline["start_ms"].to_numpy().reshape(num_workers, -1)[0] / 1000
    panels = []
    for place, (name, title) in enumerate(_LEVELS.items()):
        levels = timeline[name].to_numpy().reshape(num_workers, -1)
        marks = _levels(seconds.tolist(), levels, has_names=place == 0)
        is_last = place == len(_LEVELS) - 1
        x = ChartAxis(title="virtual time (s)" if is_last else "")
        panels.append(Panel(title=title, x=x, y=ChartAxis(from_zero=True), marks=marks))
    return _figure(panels, report, height=600, shares_x=True)


def _levels(seconds: Sequence[float], levels: NDArray[Any], *, has_names: bool) -> tuple[Mark, ...]:
    """Of each worker, or of many their mean between the least and the most."""
    values = np.ma.masked_invalid(levels.astype(np.float64))  # a worker that is not there
    if len(values) <= MAX_LINES:
        return tuple(
            LineMark(
                x=seconds,
                y=row.filled(np.nan).tolist(),
                color=style.PALETTE[worker],
                width=1.5,
                name=f"worker {worker}" if has_names else "",
            )
            for worker, row in enumerate(values)
        )
    low, mean, high = (
        np.ma.filled(fold(axis=0), np.nan).tolist()
        for fold in (values.min, values.mean, values.max)
    )
    names = ("all workers", "mean") if has_names else ("", "")
    return (
        BandMark(x=seconds, low=low, high=high, color=style.SKY, opacity=0.4, name=names[0]),
        LineMark(x=seconds, y=mean, color=style.BLUE, name=names[1]),
    )


def _figure(panels: Sequence[Panel], report: Report, **options: Any) -> "Figure":
    """A figure with the run's timing note at its foot."""
    source, note = report.get("timing_source"), style.timing_note(report)
    return chart_figure(Chart(panels=tuple(panels), source=source, note=note, **options))
